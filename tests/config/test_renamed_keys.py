"""Keys that had another name before: what a run has written is read, what a user writes is refused."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

from pipeline import config as schema
from pipeline.config.compose import RENAMED_KEYS
from pipeline.runtime.errors import UserError

PAIRS = sorted(RENAMED_KEYS.items())
VALUES = {
    "data.hold": True,
    "data.writers": 3,
    "data.reader_workers": 2,
    "data.read_ahead": 4,
    "tracking.patience": 5.0,
    "sweep.points": 6,
    "train.nonfinite_restarts": 1,
}


def written(**keys: object) -> dict:
    """A config as a run has written it, with every key, and some by another name."""
    values = schema.to_dict(
        schema.from_dict(
            {
                "name": "x",
                "data": {"store": "s", "source": {"kind": "digits"}},
                "model": {"networks": "dcgan"},
            }
        )
    )
    for new in RENAMED_KEYS.values():
        group, _, name = new.partition(".")
        del values[group][name]
    for key, value in keys.items():
        group, _, name = key.partition(".")
        values[group][name] = value
    return values


def test_every_new_name_is_a_key_and_no_old_one_is():
    config = OmegaConf.structured(schema.Config)
    assert set(VALUES) == set(RENAMED_KEYS)
    for old, new in PAIRS:
        assert OmegaConf.select(config, new, default="none") != "none"
        assert OmegaConf.select(config, old, default="none") == "none"


def test_what_an_earlier_run_has_written_has_the_new_names():
    config = OmegaConf.create(schema.to_dict(schema.from_saved(written(**VALUES))))
    assert {old: OmegaConf.select(config, new) for old, new in PAIRS} == VALUES


def test_what_was_begun_before_there_were_lanes_has_one():
    values = written(**{"data.lanes": 8})
    assert schema.from_saved(values).data.lanes == 8
    del values["data"]["lanes"]
    assert (schema.from_saved(values).data.lanes, schema.from_dict(values).data.lanes) == (1, 64)


def test_a_search_of_an_earlier_run_is_over_the_same_keys():
    values = written()
    values["sweep"]["space"] = {"train.nonfinite_restarts": {"choice": [0, 1]}}
    values["spaces"] = {"training": {"train.nonfinite_restarts": {"choice": [0, 1]}}}
    config = schema.from_saved(values)
    assert list(config.sweep.space) == list(config.spaces["training"]) == ["train.max_nonfinite_restarts"]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_what_a_user_writes_is_refused_and_the_new_name_is_said(call, tmp_path, old, new):
    group, _, name = old.partition(".")
    values = {
        "name": "old",
        "data": {"store": "digits-8", "source": {"kind": "digits"}},
        "model": {"networks": "dcgan"},
    }
    values.setdefault(group, {})[name] = VALUES[old]
    (tmp_path / "mine" / "conf").mkdir(parents=True)
    (tmp_path / "mine" / "conf" / "old.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(values)}")
    for words in ([f"{old}={VALUES[old]}"], [f"++{old}={VALUES[old]}"], ["--config-dir", "mine", "conf=old"]):
        status, _, printed = call("sweep", *words)
        assert status == 2 and printed.count("\n") == 1, printed
        assert old in printed and f"is called {new} now" in printed, printed
    with pytest.raises(UserError, match=f"it is called {new} now"):
        schema.apply(schema.from_saved(written()), {old: VALUES[old]})
