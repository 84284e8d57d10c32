"""Untrusted files: whatever is in them, nothing runs, and the error is a one-line message."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import config as schema
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep.plan import load_sweep
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.training.build_model import trained_config
from pipeline.training.checkpoints import Checkpoints, read
from tests.helpers.untrusted import JSON, changed, one_line, paths

MANY = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
SOME = settings(MANY, max_examples=60)  # a config takes a hundredth of a second to be read


@pytest.fixture(scope="module")
def config() -> schema.Config:
    return schema.from_dict(
        {
            "name": "small",
            "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    training = {"trainer": {"tensors": {"a": torch.ones(2)}, "values": {"base_step": 10}}, "list": [1, None, "x"]}
    state = {"config": schema.to_dict(config), "position": {"epoch": 0, "step": 3}, "report": {"base_step": 10}}
    url = Checkpoints(str(folder)).save(10, model={"w": torch.ones(3)}, training=training, state=state, score=1.0)
    return Path(url)


@contextlib.contextmanager
def written(path: Path, content: bytes):
    """A file with another content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def look(path: Path) -> None:
    """Whatever a verb reads of a checkpoint before it builds a model."""
    validate(trained_config(read(str(path))))


NAMES = ("model.safetensors", "training.safetensors", "state.json")


@MANY
@given(name=st.sampled_from(NAMES), content=st.binary(max_size=200))
def test_any_bytes_in_place_of_a_part_of_a_checkpoint(checkpoint, name, content):
    with written(checkpoint / name, content):
        one_line(look, checkpoint)


@MANY
@given(name=st.sampled_from(NAMES[:2]), at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_tensors_that_were_changed_and_signed_again(checkpoint, name, at, byte, cut):
    data = bytearray((checkpoint / name).read_bytes())
    data[at % len(data)] = byte
    data = bytes(data[: len(data) - cut])
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"][name] = hashlib.sha256(data).hexdigest()
    with written(checkpoint / name, data), written(checkpoint / "state.json", json.dumps(state).encode()):
        one_line(look, checkpoint)


@SOME
@given(data=st.data(), other=JSON, how=st.sampled_from(["another", "gone", "more"]))
def test_a_state_with_anything_at_any_place(checkpoint, data, other, how):
    state = json.loads((checkpoint / "state.json").read_text())
    document = changed(state, data.draw(st.sampled_from(paths(state))), other, how)
    with written(checkpoint / "state.json", json.dumps(document).encode()):
        one_line(look, checkpoint)


@MANY
@given(content=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_index_of_checkpoints(checkpoint, content):
    with written(checkpoint.parent / "index.json", content):
        one_line(read, str(checkpoint.parent.parent))


@SOME
@given(data=st.data(), other=JSON, how=st.sampled_from(["another", "gone", "more"]))
def test_a_config_with_anything_at_any_place(config, data, other, how):
    values = schema.to_dict(config)
    document = changed(values, data.draw(st.sampled_from(paths(values))), other, how)
    one_line(lambda: validate(schema.from_saved(document)))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "config.yaml").write_text(yaml.safe_dump(schema.to_dict(config)))
    trial = TrialRecord("000", {"train.energy_lr": 1e-3}, "running", {"fid_gebm": 1.0}, evaluations=[{"base_step": 1}])
    SweepSummary(str(folder), metric="fid_gebm", mode="min", shown=("fid_base",), facts={}, trials=[trial]).write()
    return folder


@SOME
@given(data=st.data(), other=JSON, how=st.sampled_from(["another", "gone", "more"]))
def test_a_summary_with_anything_at_any_place(sweep, data, other, how):
    summary = json.loads((sweep / "summary.json").read_text())
    document = changed(summary, data.draw(st.sampled_from(paths(summary))), other, how)
    with written(sweep / "summary.json", json.dumps(document).encode()):
        one_line(load_sweep, str(sweep))


@SOME
@given(content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_config_of_a_sweep(sweep, content):
    with written(sweep / "config.yaml", content):
        one_line(load_sweep, str(sweep))


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", "a/b", "", ".", "trials\\x", None, 3])
def test_a_trial_that_leads_elsewhere_is_refused(sweep, name):
    summary = json.loads((sweep / "summary.json").read_text())
    summary["trials"][0]["name"] = name
    with (
        written(sweep / "summary.json", json.dumps(summary).encode()),
        pytest.raises(UserError, match=r"summary\.json is damaged"),
    ):
        load_sweep(str(sweep))


@pytest.mark.parametrize("text", ["${oc.env:GEBM_TEST_SECRET}", "${oc.env:HOME}", "${oc.decode:'1'}", "${name}", "${"])
def test_no_secret_of_the_environment_is_read_for_an_untrusted_file(sweep, checkpoint, config, monkeypatch, text):
    monkeypatch.setenv("GEBM_TEST_SECRET", "hush-hush")
    values = schema.to_dict(config)
    values["data"]["source"]["url"] = text
    state = json.loads((checkpoint / "state.json").read_text())
    state["config"] = values
    with (
        written(sweep / "config.yaml", yaml.safe_dump(values).encode()),
        pytest.raises(UserError, match=r"data\.source\.url"),
    ):
        load_sweep(str(sweep))
    with (
        written(checkpoint / "state.json", json.dumps(state).encode()),
        pytest.raises(UserError, match=r"data\.source\.url"),
    ):
        trained_config(read(str(checkpoint)))


def test_what_says_how_to_make_an_object_is_an_unknown_key(config):
    values = schema.to_dict(config)
    values["model"]["_target_"] = "os.system"
    with pytest.raises(UserError, match="_target_"):
        schema.from_dict(values)


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{c}: &{c} [{', '.join(['*' + chr(ord(c) - 1)] * 9)}]\n" for c in "bcdefghi"),
        "[" * 5000,
        "a: " * 3000,
        "!!python/object/apply:os.system ['true']",
    ],
    ids=["aliases", "depth", "keys", "object"],
)
def test_a_config_that_is_a_bomb_is_one_line(sweep, bomb):
    with written(sweep / "config.yaml", bomb.encode()), pytest.raises(UserError):
        load_sweep(str(sweep))
