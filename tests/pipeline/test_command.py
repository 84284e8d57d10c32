"""What a user mistypes: one line that says what to do, status 2, and nothing has started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline import config as schema
from pipeline.checkpoints import Checkpoints
from pipeline.trial import build_model

REPOSITORY = Path(__file__).resolve().parents[2]
VERBS = ("sweep", "train", "shards", "sample", "evaluate")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("train.base_lrr=1", ["base_lrr", "Train"]),
        ("nothing.at_all=1", ["nothing"]),
        ("train.base_lr=fast", ["train.base_lr", "fast"]),
        ("train.batch_size=1.5", ["train.batch_size", "1.5"]),
        ("conf=lsum", ["conf/lsum", "lsun", "cifar10"]),
        ("sweeps=bayes", ["sweeps/bayes", "asha", "optuna"]),
        ("conf=null", ["conf=", "key=value"]),
        ("conf", ["'conf'", "key=value"]),
        ("train.base_lr=1e-4,1e-3", ["train.base_lr"]),
    ],
)
def test_words_that_no_verb_understands(refused, verb, word, told):
    line = refused(verb, word)
    assert all(part in line for part in told), line


@pytest.mark.parametrize("verb", ["sweep", "train"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sampler.name=nuts"], ["sampler.name=nuts", "ula", "mala"]),
        (["model.networks=unet"], ["model.networks=unet", "dcgan", "sngan_resnet"]),
        (["model.networks=sngan_resnet"], ["model", "resolution", "8"]),
        (["data.resolution=30"], ["resolution", "30"]),
        (["data.resolution=16"], ["holds images of 8 pixels", "data.resolution=16"]),
        (["train.batch_size=5000"], ["1797", "train.batch_size=5000"]),
        (["scale.num_workers=3"], ["train.batch_size=128", "multiple of 3"]),
        (["seed=-1"], ["seed=-1"]),
        (["sweep.metric=kid_gebm"], ["sweep.metric=kid_gebm", "evaluation.metrics"]),
        (["resume=nowhere"], ["nowhere", "summary.json"]),
        (["resume=foo://x"], ["foo://x"]),
        (["output=foo://x"], ["foo://x"]),
        (["checkpoint=nowhere"], ["nowhere", "state.json"]),
        (["checkpoint=foo://x"], ["foo://x"]),
        (["data.store=foo://x"], ["foo://x"]),
        (["tracking.uri=foo://x"], ["foo://x", "tracking.uri"]),
    ],
)
def test_what_a_sweep_and_a_training_run_refuse(refused, verb, words, told):
    line = refused(verb, *words)
    assert all(part in line for part in told), line


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("{train.base_lrr:{choice:[1,2]}}", ["train.base_lrr"]),
        ("{train.base_lr:{log_uniform:[1e-3,1e-4]}}", ["train.base_lr", "the lower first"]),
        ("{train.base_lr:{uniform:[-1,1]}}", ["train.base_lr=-1"]),
        ("{sampler.name:{choice:[ula,nuts]}}", ["sampler.name=nuts"]),
        ("{train.base_lr:{normal:[0,1]}}", ["normal", "log_uniform"]),
        ("{train.batch_size:{uniform:[32,64]}}", ["train.batch_size"]),
    ],
)
def test_search_spaces_that_cannot_be(refused, space, told):
    line = refused("sweep", f"++sweep.space={space}")
    assert "sweep.space" in line and all(part in line for part in told), line


@pytest.mark.parametrize("experiment", ["lsun", "cifar10", "celeba", "imagenet32"])
@pytest.mark.parametrize("verb", ["sweep", "train"])
def test_a_missing_store_names_the_command_that_makes_it(refused, verb, experiment):
    line = refused(verb, f"conf={experiment}")
    assert f"`python -m pipeline.shards conf={experiment} data.store={experiment}-32 data.source.url=" in line


def test_shards_needs_to_know_where_the_published_files_are(refused):
    assert "'lsun' needs a url" in refused("shards", "conf=lsun")
    assert "nowhere.zip" in refused("shards", "conf=cifar10", "data.source.url=nowhere.zip")
    assert "data.writers=-1" in refused("shards", "data.writers=-1")


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_sampling_and_evaluating_need_a_model(refused, verb, stores, tmp_path):
    assert "checkpoint=" in refused(verb)
    assert "nowhere" in refused(verb, "checkpoint=nowhere")
    assert "foo://x" in refused(verb, "checkpoint=foo://x")
    config = schema.from_dict(
        {
            "name": "digits",
            "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
        }
    )
    trial = Checkpoints(str(tmp_path / "trial"))
    state = {"config": schema.to_dict(config)}
    training = {"trainer": {"tensors": {}}}
    url = trial.save(1, model=build_model(config).state_dict(), training=training, state=state, score=1.0)
    for words, told in (
        (["sampler.name=nuts"], "sampler.name=nuts"),
        (["sampler.step_size=-1"], "sampler.step_size=-1"),
        (["model.latent_dim=5"], "another architecture"),
        (["model.networks=sngan_convnet"], "resolution"),
    ):
        assert told in refused(verb, f"checkpoint={url}", *words)
    Path(url, "model.safetensors").write_bytes(b"\x80\x04")
    assert "model.safetensors is damaged" in refused(verb, f"checkpoint={url}")


def test_a_search_over_the_sampler_alone_needs_a_trained_model(refused):
    assert "checkpoint=" in refused("sweep", "sweeps=mcmc")


def test_a_checkpoint_of_another_architecture_is_refused(refused, tmp_path):
    config = {
        "name": "digits",
        "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
        "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
    }
    tensors = {"other.weight": torch.ones(2, 3)}
    for name, state in (("other", {"config": config}), ("stranger", {})):
        Checkpoints(str(tmp_path / name)).save(1, model=tensors, training={}, state=state, score=1.0)
    line = refused("sweep", "sweeps=mcmc", "checkpoint=other")
    assert "another architecture" in line and "absent" in line
    assert "does not say what it was trained with" in refused("sweep", "sweeps=mcmc", "checkpoint=stranger")


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"trials": 3}', '{"trials": [{"nothing": 1}]}', "\xff"])
def test_a_damaged_sweep_is_not_resumed(refused, tmp_path, damage):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "summary.json").write_text(damage)
    assert "summary.json" in refused("sweep", "resume=sweep")


@pytest.mark.parametrize("config", [None, "", "[]", "name: x\nnothing: 1\n", "name: [", "name: x\n"])
def test_a_sweep_whose_config_is_lost_or_damaged_is_not_resumed(refused, tmp_path, config):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "summary.json").write_text(json.dumps({"trials": []}))
    if config is not None:
        (tmp_path / "sweep" / "config.yaml").write_text(config)
    refused("sweep", "resume=sweep")


def test_an_output_that_holds_a_sweep_is_left_alone(refused, tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text("{}")
    assert f"resume={tmp_path / 'done'}" in refused("sweep", "output=done")
    assert (tmp_path / "done" / "summary.json").read_text() == "{}"


def test_an_output_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write to output=" in refused("sweep", "output=file/below")


@pytest.mark.parametrize("verb", ["sweep", "train"])
def test_an_unreachable_tracker_is_refused_within_seconds(refused, verb):
    begun = time.monotonic()
    line = refused(verb, f"tracking.uri=http://127.0.0.1:{closed_port()}")
    assert "no MLflow tracker" in line and "tracking.uri" in line
    assert time.monotonic() - begun < 60  # MLflow's own patience is minutes


@pytest.mark.parametrize("verb", (*VERBS, "submit"))
def test_help_lists_experiments_searches_and_examples(call, verb):
    status, printed, errors = call(verb, "--help")
    assert status == 0 and errors == ""
    assert all(f"  {name}" in printed for name in (*schema.experiments(), *schema.searches()))
    assert f"Examples:\n  python -m pipeline.{verb}" in printed


def test_the_config_can_be_shown(call):
    status, printed, _ = call("sweep", "conf=lsun", "--cfg", "job")
    assert status == 0
    assert "networks: sngan_resnet" in printed and "base_steps: 150000" in printed


@pytest.mark.parametrize("words", [["conf=lsun"], ["train.base_lr=fast"]])
def test_it_is_the_same_from_any_directory(tmp_path, words):
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GEBM_STORES": str(tmp_path / "stores")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
