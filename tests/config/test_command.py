"""What a user mistypes: one line that says what to do, status 2, and nothing has started."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from pipeline import config as schema
from pipeline.__main__ import main as run_command
from pipeline.config.command import command, report_error
from pipeline.config.help import COMMANDS
from pipeline.runtime.errors import LockLost, UserError
from pipeline.training.build_model import build_model
from pipeline.training.checkpoints import Checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
VERBS = ("sweep", "train", "shards", "sample", "evaluate")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.base_lrr=1", ["base_lrr", "Train", "did you mean train.base_lr? "]),
        ("sampler.stepsize=1", ["did you mean sampler.step_size? `--cfg job`"]),
        ("nothing.at_all=1", ["nothing"]),
        ("train.base_lr=fast", ["train.base_lr", "fast"]),
        ("train.batch_size=1.5", ["train.batch_size", "1.5"]),
        ("conf=lsum", ["conf/lsum", "lsun", "cifar10"]),
        ("sweeps=bayes", ["sweeps/bayes", "asha", "optuna"]),
        ("conf=null", ["conf=", "key=value"]),
        ("conf", ["conf: ", "key=value"]),
        ("train.base_lr=1e-4,1e-3", ["train.base_lr"]),
    ],
)
def test_words_that_no_verb_understands(refused, verb, word, expected):
    line = refused(verb, word)
    assert all(part in line for part in expected), line


@pytest.mark.parametrize("verb", ["sweep", "train"])
@pytest.mark.parametrize(
    ("args", "expected"),
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
def test_what_a_sweep_and_a_training_run_refuse(refused, verb, args, expected):
    line = refused(verb, *args)
    assert all(part in line for part in expected), line


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("{train.base_lrr:{choice:[1,2]}}", ["train.base_lrr"]),
        ("{train.base_lr:{log_uniform:[1e-3,1e-4]}}", ["train.base_lr", "the lower first"]),
        ("{train.base_lr:{uniform:[-1,1]}}", ["train.base_lr=-1"]),
        ("{sampler.name:{choice:[ula,nuts]}}", ["sampler.name=nuts"]),
        ("{train.base_lr:{normal:[0,1]}}", ["normal", "log_uniform"]),
        ("{train.batch_size:{uniform:[32,64]}}", ["train.batch_size"]),
    ],
)
def test_search_spaces_that_cannot_be(refused, space, expected):
    line = refused("sweep", f"++sweep.space={space}")
    assert "sweep.space" in line and all(part in line for part in expected), line


@pytest.mark.parametrize("experiment", ["lsun", "cifar10", "celeba", "imagenet32"])
@pytest.mark.parametrize("verb", ["sweep", "train"])
def test_a_missing_store_names_the_command_that_makes_it(refused, verb, experiment):
    line = refused(verb, f"conf={experiment}")
    assert f"`python -m pipeline.shards conf={experiment} data.store={experiment}-32 data.source.url=" in line


def test_a_storage_that_hangs_is_refused_in_time(refused, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes what comes, and it is never read
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        fsspec.filesystem("s3").clear_instance_cache()
        line = refused("sweep", "conf=digits", "data.store=s3://bucket/digits", "data.timeout=0.5")
        assert "cannot reach s3://bucket/digits: no answer within data.timeout=0.5 seconds" in line
        fsspec.filesystem("s3").clear_instance_cache()


def test_shards_needs_to_know_where_the_published_files_are(refused):
    assert "'lsun' needs a url" in refused("shards", "conf=lsun")
    assert "nowhere.zip" in refused("shards", "conf=cifar10", "data.source.url=nowhere.zip")
    assert "data.num_writers=-1" in refused("shards", "data.num_writers=-1")


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
    for args, expected in (
        (["sampler.name=nuts"], "sampler.name=nuts"),
        (["sampler.step_size=-1"], "sampler.step_size=-1"),
        (["model.latent_dim=5"], "another architecture"),
        (["model.networks=sngan_convnet"], "resolution"),
    ):
        assert expected in refused(verb, f"checkpoint={url}", *args)
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
    for name, state in (("other", {"config": config}), ("foreign", {})):
        Checkpoints(str(tmp_path / name)).save(1, model=tensors, training={}, state=state, score=1.0)
    line = refused("sweep", "sweeps=mcmc", "checkpoint=other")
    assert "another architecture" in line and "absent" in line
    assert "does not say what it was trained with" in refused("sweep", "sweeps=mcmc", "checkpoint=foreign")


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


# What each verb's config is made of; a trained model's checkpoint says the rest.
GROUPS = {
    "sweep": ("conf", "sweeps"),
    "submit": ("conf", "sweeps"),
    "train": ("conf",),
    "shards": ("conf",),
    "sample": (),
    "evaluate": (),
}


@pytest.mark.parametrize("verb", GROUPS)
def test_help_lists_experiments_searches_and_examples(call, verb):
    status, printed, errors = call(verb, "--help")
    assert status == 0 and errors == ""
    for group, names in (("conf", schema.experiments()), ("sweeps", schema.searches())):
        for name, line in names.items():
            assert bool(re.search(rf"^  {name} +{re.escape(line)}$", printed, re.MULTILINE)) == (group in GROUPS[verb])
            assert line, f"{group}/{name}.yaml does not say in its first comment what it is"
    assert f"Examples:\n  python -m pipeline.{verb}" in printed
    for variable in ("GEBM_STORES", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID"):
        assert variable in printed
    assert re.search(r"^Exit status:\n  0 ", printed, re.MULTILINE) and "  2  " in printed
    assert max(map(len, printed.splitlines())) <= 120
    if verb in ("sweep", "train"):
        assert f"python -m pipeline.{verb} resume=" in printed and "summary.json" in printed


@pytest.mark.parametrize("verb", GROUPS)
def test_each_example_of_the_help_is_a_command_that_can_be_read(call, verb):
    _, printed, _ = call(verb, "--help")
    printed_examples = printed.partition("Examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    examples = [shlex.split(line, comments=True) for line in printed_examples.splitlines()]
    assert len(examples) >= {"sweep": 5, "submit": 4, "train": 4, "shards": 5}.get(verb, 3)
    for python, flag, module, *args in examples:
        assert (python, flag, module) == ("python", "-m", f"pipeline.{verb}")
        args = [re.sub(r"<\w+>|\.\.\.", "x", word) for word in args]
        status, printed, errors = call(verb, *args, *([] if "--cfg" in args else ["--cfg", "job"]))
        assert status == 0 and printed, errors


def test_a_mistake_of_ours_is_told_without_secrets(monkeypatch, capsys):
    """What no test foresees ends in a traceback, which quotes what a library was given."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    monkeypatch.setattr(sys, "argv", ["pipeline.broken"])

    @command("Break.", ["python -m pipeline.broken"])
    def main(config: schema.Config, named: dict) -> int:
        raise RuntimeError("no answer from https://me:canary@example.org with hush-hush-hush")

    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert stop.value.code == 1 and errors.startswith("Traceback")
    assert "RuntimeError: no answer from https://***@example.org with ***" in errors
    assert "canary" not in errors and "hush" not in errors  # nor in the line of the source that it quotes


def test_the_exit_status_says_whose_mistake_it_was(monkeypatch, capsys):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    for error, status in (
        (UserError("no store at s3://hush-hush-hush: make one"), 2),
        (LockLost("another sweep has taken over hush-hush-hush"), 1),
        (KeyError("hush-hush-hush"), 1),
        (KeyboardInterrupt(), 130),
    ):
        assert report_error(error) == status
        printed = capsys.readouterr().err
        assert printed and "hush" not in printed
        if isinstance(error, UserError | LockLost):
            assert printed.startswith("error: ") and printed.count("\n") == 1


def test_a_reference_to_nothing_is_one_line_without_the_command_line(monkeypatch, capsys):
    """Hydra would print all overrides as they are where its task raises an error."""
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    overrides = ["conf=digits", "data.store=/x/${oc.env:NO_SUCH_VARIABLE}", "tracking.uri=http://me:canary@host"]
    monkeypatch.setattr(sys, "argv", ["pipeline.any", *overrides])

    @command("Run.", ["python -m pipeline.any"])
    def main(config: schema.Config, named: dict) -> int:
        raise AssertionError("it does not run")

    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert "NO_SUCH_VARIABLE" in errors and "canary" not in errors


# What a shell completes.


@pytest.fixture
def completed(monkeypatch, capsys) -> Callable[[str], list[str]]:
    """The words that a line may be completed by."""

    def words(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setattr(sys, "argv", ["pipeline", "-sc", "query=bash"])
        run_command()
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.split()

    return words


def test_a_shell_is_told_the_experiments_the_searches_and_the_keys(completed):
    top = completed("python -m pipeline.sweep ")
    assert {"conf=", "sweeps=", "train.", "data.", "output=", "resume=", "log="} <= set(top)
    assert all(word[-1] in "=." for word in top)  # no folder next to conf/ is a group
    assert completed(".venv/bin/python -X dev -m pipeline.sweep conf=") == [f"conf={n}" for n in schema.experiments()]
    assert completed("python3 -m pipeline.train conf=lsun sweeps=") == [f"sweeps={n}" for n in schema.searches()]
    assert completed("python -m pipeline.sweep train.energy_l") == ["train.energy_lr="]
    assert completed("python -m pipeline.sweep conf=lsun data.store=") == ["data.store=lsun-32"]
    assert completed("python -m pipeline.submit launch=") == ["launch=kuberay", "launch=ray", "launch=slurm"]
    assert completed("python -m pipeline submit launch=s") == ["launch=slurm"]
    assert completed("bin/gebm submit launch=s") == ["launch=slurm"]
    assert completed("gebm sweep train.energy_l") == ["train.energy_lr="]
    assert completed("gebm ") == completed("python -m pipeline sw") == list(COMMANDS)
    assert completed("gebm report ") == completed("python -m pipeline.compare results/a ") == []


def test_the_tabulator_completes_in_a_real_bash(tmp_path, call):
    """A terminal, a bash without any settings, and keys as they are typed; the line is printed and not run."""
    status, script, _ = call("sweep", "-sc", "install=bash")
    assert status == 0 and "complete " in script
    (tmp_path / "completion").write_text(script)
    (tmp_path / "some-file.csv").touch()
    leader, follower = pty.openpty()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gebm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    (tmp_path / "bin" / "gebm").chmod(0o755)
    paths = {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=tmp_path,
        env={**os.environ, **paths, "TERM": "dumb", "PS1": "$ ", "INPUTRC": "/dev/null"},
        start_new_session=True,
    )
    os.close(follower)

    def typed(keys: str) -> str:
        """What the line has become, which Ctrl-A and a word in front of it have bash print."""
        os.write(leader, f"{keys}\x01echo '<' \x05 '>'\n".encode())
        seen = ""
        while not (found := re.search(r"^< (.*) >\r?$", seen, re.MULTILINE)):
            seen += os.read(leader, 65536).decode()
        return found[1]

    try:
        os.write(leader, b". ./completion\n")
        assert typed("python -m pipeline.sweep conf=ls\ttrain.energy_l\t1e-4") == (
            "python -m pipeline.sweep conf=lsun train.energy_lr=1e-4"
        )
        assert typed("python3 -m pipeline.submit launch=sl\tapp\ttrue") == (
            "python3 -m pipeline.submit launch=slurm apply=true"
        )
        assert typed("python -m pipeline.shards data.source.url=./some\t") == (
            "python -m pipeline.shards data.source.url=./some-file.csv"
        )
        assert typed("gebm sw\tconf=ls\tseed=3") == "gebm sweep conf=lsun seed=3"
        assert typed("python some\t") == "python some-file.csv"  # whatever else python is asked for, as before
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)


@pytest.mark.parametrize("args", [["-sc", "install=fish"], ["--shell-completion", "query"]])
def test_of_other_shells_it_says_which_there_is(refused, args):
    assert "install=bash" in refused("sweep", *args)


def test_the_config_can_be_shown(call):
    status, printed, _ = call("sweep", "conf=lsun", "--cfg", "job")
    assert status == 0
    assert "networks: sngan_resnet" in printed and "base_steps: 150000" in printed


@pytest.mark.parametrize("args", [["conf=lsun"], ["train.base_lr=fast"]])
def test_it_is_the_same_from_any_directory(tmp_path, args):
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", *args],
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


@pytest.mark.parametrize("verb", [*VERBS, "submit"])
@pytest.mark.parametrize("args", [["-m"], ["--multirun"], ["--multi"], ["-rm"], ["hydra.mode=MULTIRUN"]])
def test_several_jobs_at_once_are_refused_by_every_command(refused, tmp_path, verb, args):
    for words in ([*args, "seed=1,2,3"], ["seed=1", *args]):
        line = refused(verb, *words)
        assert "sweeps=grid" in line and "one command each" in line
    assert not list(tmp_path.iterdir())
