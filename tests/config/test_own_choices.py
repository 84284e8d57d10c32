"""A folder says what was done, never whom to talk to: hosts and paths outside are the user's own choices."""

from __future__ import annotations

import json
import socket
import stat
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import config as schema
from pipeline.config.fields import keys
from pipeline.config.own_choices import CHOICES, OUTSIDE, RESUME_KEYS, choose, keep_choices, kept_choices
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep.plan import load_sweep
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.training.checkpoints import Checkpoints

# Text that is a label: it names neither a host nor a file, whatever is in it.
LABELS = {
    "name": "of the folder only letters, digits, dots and hyphens are used",
    "tracking.experiment": "looked up in the tracker",
    "data.source.split": "compared with names in an archive",
    "data.source.kind": "looked up among the sources",
    "data.source.label_field": "compared with names of members, keys and columns",
    "evaluation.extractor": "looked up among the extractors",
    "model.energy": "looked up among the energy networks",
    # Mappings: what may be searched is a list of its own.
    "sweep.space": "",
    "spaces": "",
}
FOREIGN = ["http://stranger.example/x", "s3://stranger/x", "/home/somebody/.ssh", "~/.ssh", "../../x", "host:6379"]
PLACES = st.sampled_from(FOREIGN) | st.from_regex(r"(https?|s3|ftp)://[a-z]{1,8}\.example/[a-z]*", fullmatch=True)


def config_with(key: str, value: object) -> schema.Config:
    values = {
        "name": "small",
        "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
        "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
    }
    return schema.apply(schema.from_dict(values), {key: value})


UNMARKED = [key for key in keys(schema.Config) if "str" in key.type and not key.rule.outside]


@settings(max_examples=40)
@given(key=st.sampled_from(UNMARKED), place=PLACES)
def test_a_key_that_is_not_marked_names_no_host_and_no_path(key, place):
    if key.name in LABELS:
        return
    with pytest.raises(UserError):
        validate(config_with(key.name, [place] if key.type.startswith("list") else place))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(OUTSIDE), place=PLACES, needed=st.sets(st.sampled_from(OUTSIDE)))
@example(key="tracking.uri", place="http://stranger.example", needed=set(RESUME_KEYS))
@example(key="ray.address", place="host:6379", needed=set(RESUME_KEYS))
def test_what_only_a_folder_says_is_refused_or_dropped(tmp_path, key, place, needed):
    saved = config_with(key, place)
    try:
        choose(saved, {}, str(tmp_path), needed)
    except UserError as error:
        assert key in needed and f"{key}=" in str(error) and "\n" not in str(error)
    else:
        default = next(known.default for known in keys(schema.Config) if known.name == key)
        assert key not in needed
        assert attrgetter(key)(saved) == (place if key == "data.store" else default)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(CHOICES), mine=PLACES, theirs=PLACES)
def test_what_was_chosen_here_holds_whatever_the_folder_says(tmp_path, key, mine, theirs):
    keep_choices(str(tmp_path / "sweep"), config_with(key, mine))
    saved = config_with(key, theirs)
    choose(saved, {}, str(tmp_path / "sweep" / "trials" / "000" / "checkpoints" / "step-00000010"), CHOICES)
    assert attrgetter(key)(saved) == mine
    group, _, name = key.rpartition(".")
    for typed in ({key: theirs}, {group: {name: theirs}} if group else {key: theirs}):
        saved = config_with(key, theirs)
        choose(saved, typed, str(tmp_path / "sweep"), CHOICES)
        assert attrgetter(key)(saved) == theirs


def test_choices_are_the_users_alone_and_outside_of_the_results(tmp_path, state_folder):
    keep_choices(str(tmp_path), config_with("tracking.uri", "http://mine.example"))
    [path] = [path for path in (state_folder / "gebm").rglob("*.json") if str(tmp_path) in path.read_text()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not list(tmp_path.iterdir())
    assert kept_choices(str(tmp_path))["tracking.uri"] == "http://mine.example"
    path.write_text("{")
    assert kept_choices(str(tmp_path)) == {}


def test_the_environment_and_names_of_stores_are_choices_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine.example")
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    monkeypatch.setenv("GEBM_STORES", str(tmp_path / "stores"))
    for key, own in (
        ("tracking.uri", "http://mine.example"),
        ("ray.address", "mine:6379"),
        ("data.store", "digits-8"),
        ("data.store", str(tmp_path / "stores" / "digits-8")),
    ):
        saved = config_with(key, own)
        choose(saved, {}, str(tmp_path), RESUME_KEYS)
        assert attrgetter(key)(saved) == own
    for foreign in (f"{tmp_path}/stores/../x", f"{tmp_path}/storesx/y", "a/../../x", "./x"):
        with pytest.raises(UserError, match=r"data\.store="):
            choose(config_with("data.store", foreign), {}, str(tmp_path), RESUME_KEYS)


@pytest.fixture
def offline(monkeypatch):
    """Any connection fails the test."""

    def connect(*_: object) -> None:
        raise AssertionError("it talks to somebody")

    monkeypatch.setattr(socket.socket, "connect", connect)


def write_sweep(folder: Path, config: schema.Config, params: dict) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(schema.to_dict(config)))
    trial = TrialRecord("000", params, "running")
    SweepSummary(str(folder), metric="fid_gebm", mode="min", shown=("fid_base",), facts={}, trials=[trial]).write()


@pytest.mark.parametrize("key", RESUME_KEYS)
def test_a_resumed_folder_talks_to_nobody_it_names(refused, offline, tmp_path, key):
    write_sweep(tmp_path / "sweep", config_with(key, "http://127.0.0.1:9/x"), {})
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").iterdir()}
    assert f"{key}=http://127.0.0.1:9/x" in refused("sweep", "resume=sweep")
    assert {path: path.read_bytes() for path in (tmp_path / "sweep").iterdir()} == before


@pytest.mark.parametrize(
    "params",
    [{"tracking.uri": "http://x"}, {"tracking[uri]": "x"}, {"tracking": {"uri": "x"}}, {"data.store": "s3://x"}],
)
def test_a_trials_parameters_name_nobody(tmp_path, params):
    write_sweep(tmp_path / "sweep", config_with("seed", 1), params)
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        load_sweep(str(tmp_path / "sweep"))


@pytest.mark.parametrize("key", ["data.store", "data.cache", "evaluation.weights"])
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_checkpoint_talks_to_nobody_it_names(refused, offline, tmp_path, command, key):
    config = config_with(key, "http://127.0.0.1:9/x")
    state = {"config": schema.to_dict(config), "position": {"epoch": 0, "step": 3}}
    Checkpoints(str(tmp_path / "trial")).save(10, model={"w": torch.ones(3)}, training={}, state=state, score=1.0)
    assert f"{key}=http://127.0.0.1:9/x" in refused(command, "checkpoint=trial")


def test_a_name_does_not_lead_out_of_the_results(tmp_path, monkeypatch):
    from pipeline.sweep.plan import _resolve_output

    monkeypatch.chdir(tmp_path)
    output, *_ = _resolve_output(config_with("name", "../../x y"), resuming=False)
    assert Path(output).parent == tmp_path / "results"


def test_what_is_kept_is_json_of_this_version(tmp_path, state_folder):
    keep_choices(str(tmp_path), config_with("seed", 1))
    [path] = [path for path in (state_folder / "gebm").rglob("*.json") if str(tmp_path) in path.read_text()]
    document = json.loads(path.read_text())
    document["choices"]["tracking.uri"] = ["x"]
    path.write_text(json.dumps(document))
    assert "tracking.uri" not in kept_choices(str(tmp_path))


def test_weights_that_are_read_once_are_kept_for_no_later_command():
    """Files of choices from before there was the key have all that is kept."""
    assert "model.base" in OUTSIDE and "model.base" not in CHOICES
