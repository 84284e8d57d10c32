"""The how-to pages: their code is saved and their commands are run as they are typed there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pipeline.training.checkpoints import read
from tests.docs.test_documents import FENCE
from tests.helpers.cli import PATIENCE, environment, summary
from tests.helpers.plugins import forget, no_plugins

__all__ = ["no_plugins"]

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
EXAMPLE = Path(__file__).parents[2] / "examples" / "my_project"


def save(page: str, home: Path) -> list[list[str]]:
    """Save the Python of a page as ``mine.py``, and return its commands."""
    text = (PAGES / page).read_text(encoding="utf-8")
    blocks = {kind: [m["code"] for m in FENCE.finditer(text) if m["language"] == kind] for kind in ("python", "sh")}
    (home / "mine.py").write_text("\n".join(blocks["python"]))
    return [shlex.split(line) for block in blocks["sh"] for line in block.splitlines()]


def test_my_metric(home, done, monkeypatch, no_plugins):
    shards, evaluate, train = save("my-metric.md", home)
    with monkeypatch.context() as elsewhere:
        # The store of this test is there already.
        elsewhere.setenv("GEBM_STORES", str(home / "made"))
        done("shards", *shards[3:])
    done("evaluate", *evaluate[3:])
    scores = json.loads((home / "scores" / "evaluation.json").read_text())["scores"]
    assert abs(scores["gap"]) < 1e-3 < scores["gap_standard_error"] and "kid" not in scores
    printed = done("train", *train[3:], "train.warmup_energy_steps=1")
    [trial] = json.loads((home / "gap" / "summary.json").read_text())["trials"]
    assert trial["metrics"]["gap_gebm"] > 0 and trial["metrics"]["gap_base_standard_error"] > 0
    assert "gap" in printed


def test_my_task(home, done, no_plugins):
    [train] = save("my-task.md", home)
    done("train", *train[3:], "train.warmup_energy_steps=1")
    summary = json.loads((home / "mine" / "summary.json").read_text())
    [trial] = summary["trials"]
    assert (trial["status"], summary["metric"], summary["mode"]) == (
        "finished",
        "energy_distance_validation_gebm",
        "min",
    )
    assert all(trial["metrics"][f"energy_distance{name}"] > 0 for name in ("_gebm", "_validation_gebm", "_base"))
    assert summary["measure"] == "energy distance to test rows, chosen by that to validation rows"
    assert "energy_distance_along_chain.png" in {path.name for path in (home / "mine").rglob("*.png")}


def test_my_network_and_my_sampler(home, done, call_with_ray, no_plugins):
    (_, _, train, *trained), (_, _, _, *images), (_, _, sample, *sampled) = save("network-and-sampler.md", home)
    done(train.removeprefix("pipeline."), *trained, "train.warmup_energy_steps=1")
    summary = json.loads((home / "tower" / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["finished"]
    printed = done(sample.removeprefix("pipeline."), *sampled, "output=drawn")
    assert "64 samples (3,)" in printed and np.isfinite(np.load(home / "drawn" / "samples.npy")).all()
    settings = json.loads((home / "drawn" / "settings.json").read_text())["sampler"]
    assert (settings["name"], settings["settings"]) == ("warm", {"gamma": 1.5})

    # The one of images is checked as a training checks it, and a launcher does without a training.
    done("submit", "launch=slurm", *images)
    status, _, refused = call_with_ray("submit", "launch=slurm", *images[:-1])
    assert (status, images[-1]) == (2, "model.width=null") and "set model.width=null" in refused

    # Named for the sweep here, it need not be named again; of a copy of the folder somebody has to trust it.
    words = [word for word in sampled if not word.startswith(("plugins=", "checkpoint="))]
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        done("sample", "checkpoint=tower/trials/000", *words, "output=again")
    assert np.array_equal(np.load(home / "again" / "samples.npy"), np.load(home / "drawn" / "samples.npy"))
    os.rename(home / "tower", home / "elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        status, _, refused = call_with_ray("sample", "checkpoint=elsewhere/trials/000", "output=none")
    assert status == 2
    assert re.search(rf"needs model.networks=tower, .* add 'plugins=\[{home}/mine.py\]'", refused)


@pytest.mark.usefixtures("mlflow_tables")
def test_the_example_of_a_folder_of_ones_own(tmp_path, done, call_with_ray, no_plugins, monkeypatch):
    """Swept on two workers, interrupted, resumed, evaluated, sampled and served, by the commands of its readme."""
    folder = tmp_path / "copy"
    shutil.copytree(EXAMPLE, folder)
    monkeypatch.chdir(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = [line for m in FENCE.finditer(text) if m["language"] == "sh" for line in m["code"].splitlines()]
    sweep, resume, evaluate, sample, serve, _ = map(shlex.split, lines)

    def started(name: str, *words: str) -> tuple[int, str, str]:
        """Call a command in a process that has loaded no plugin."""
        with pytest.MonkeyPatch.context() as patch:
            forget(patch)
            return call_with_ray(name, *words)

    # Ctrl-C while the first trial runs, which begins after its workers have started.
    running = Interruption(folder / "swept")
    status, _, errors = started("sweep", *sweep[3:])
    running.join()
    assert status == 130 and f"python -m pipeline.sweep resume={folder}/swept" in errors, errors
    assert [trial["status"] for trial in summary(folder / "swept")["trials"]] == ["running"]

    commands = [(words[2].removeprefix("pipeline."), *words[3:]) for words in (resume, evaluate, sample)]
    outputs = []
    for name, *words in commands:
        status, printed, errors = started(name, *words)
        assert status == 0 and "Traceback" not in printed + errors, printed + errors
        outputs.append(printed)
    found = summary(folder / "swept")
    assert [trial["status"] for trial in found["trials"]] == ["finished", "finished"]
    assert found["workers_per_trial"] == 2
    assert json.loads((folder / "scored" / "evaluation.json").read_text())["scores"]["distance_gebm"] > 0
    assert np.load(folder / "drawn" / "samples.npy").shape == (64, 3)

    # Served by the command that is printed at the end, or by that of the readme, whose consent is of the same file.
    assert f"GEBM_PLUGINS={folder}/mine.py mlflow models serve -m models:/curve@best" in outputs[0]
    consent, database, model = serve[0].partition("=")[2], serve[1].partition("=")[2], serve[serve.index("-m") + 1]
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        patch.setenv("GEBM_PLUGINS", consent)
        mlflow.set_tracking_uri(database)
        answer = mlflow.pyfunc.load_model(model).predict(pd.DataFrame({"num_samples": [3]}))
    assert len(answer) == 3 and np.isfinite(answer["energy"]).all()


class Interruption(threading.Thread):
    """Ctrl-C of this process once a sweep in it has a trial that runs.

    Args:
        folder: The sweep's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.start()

    def run(self) -> None:
        due = time.monotonic() + PATIENCE
        while time.monotonic() < due:
            if (self._folder / "summary.json").exists() and any(
                trial["status"] == "running" for trial in summary(self._folder)["trials"]
            ):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.1)


def test_improve_my_gan(home, done, no_plugins):
    text = (PAGES / "improve-my-gan.md").read_text(encoding="utf-8")
    blocks = {kind: [m["code"] for m in FENCE.finditer(text) if m["language"] == kind] for kind in ("python", "sh")}
    (home / "gan.py").write_text(blocks["python"][0])
    (home / "weights.py").write_text(blocks["python"][1])
    subprocess.run([sys.executable, "weights.py"], cwd=home, env=environment(home), check=True)
    train, sweep, evaluate = (shlex.split(line)[2:] for line in blocks["sh"][0].splitlines())
    printed = done(train[0].removeprefix("pipeline."), *train[1:], "train.warmup_energy_steps=1")
    assert re.search(
        r"generator.pth: .*; taken: G_ema, the moving average; left over: G, step", " ".join(printed.split())
    )
    summary = json.loads((home / "better" / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["finished"]
    assert read(str(home / "better" / "imported")).state["imported"]["base"]["taken"] == "G_ema"

    # The generator is what it was, and the energy is not what the discriminator was.
    checkpoint = read(str(home / "better" / "trials" / "000"))
    generator = torch.load(home / "generator.pth", weights_only=True)["G_ema"]
    assert all(torch.equal(checkpoint.model[f"base.network.{name}"], generator[name]) for name in generator)
    discriminator = torch.load(home / "discriminator.pt", weights_only=True)
    assert not torch.equal(checkpoint.model["energy.network.network.judge.weight"], discriminator["judge.weight"])
    assert (checkpoint.state["config"]["model"]["base"], checkpoint.state["base_step"]) == (None, 20)

    # Nobody needs the files any more.
    (home / "generator.pth").unlink()
    done(sweep[0].removeprefix("pipeline."), *sweep[1:])
    trials = json.loads((home / "chains" / "summary.json").read_text())["trials"]
    assert sorted(trial["params"]["sampler.beta"] for trial in trials) == [1.0, 10.0]
    scored = done(evaluate[0].removeprefix("pipeline."), *evaluate[1:])
    assert re.search(r"fid, added by energy and chain +-?[\d.]+ ± [\d.]+", scored)


def test_one_training_on_a_cluster(call, tmp_path):
    text = (PAGES.parent / "clusters.md").read_text(encoding="utf-8").partition("\n## One training, no search\n")[2]
    words = shlex.split(next(FENCE.finditer(text))["code"].replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "pipeline.submit"] and words[-1] == "apply=true"
    status, printed, errors = call("submit", *words[3:-1], "launch.folder=job")
    assert status == 0, printed + errors
    config = yaml.safe_load((tmp_path / "job" / "job.yaml").read_text())["config"]
    assert (config["sweep"]["space"], config["sweep"]["num_trials"], config["sweep"]["scheduler"]) == ({}, 1, "none")
    assert config["scale"]["num_workers"] == 8


def test_first_run_on_my_cluster(call, tmp_path):
    text = (PAGES / "first-run-on-my-cluster.md").read_text(encoding="utf-8").replace("/shared", str(tmp_path))
    commands = [shlex.split(match["code"]) for match in FENCE.finditer(text) if match["language"] == "sh"]
    shards, ray, slurm, report, again_on_ray, again = (
        [word.removeprefix("pipeline.") for word in words[2:]] for words in commands
    )
    status, printed, errors = call(*shards)
    assert status == 0, printed + errors
    for command in (ray, again_on_ray):
        status, _, errors = call(*(word.replace(":8265", ":1") for word in command))
        assert status == 2 and errors.startswith("error: no job API of Ray at http://127.0.0.1:1"), errors
    # The other one is tried as it is typed: what is written is what Slurm gets.
    status, printed, errors = call(*slurm)
    assert status == 0, printed + errors
    script = (tmp_path / "launches" / "first" / "sweep.sh").read_text()
    assert {"#SBATCH --nodes=2", "#SBATCH --partition=gpu", "#SBATCH --time=0:30:00"} <= set(script.splitlines())
    assert f"sbatch {tmp_path}/launches/first/sweep.sh" in printed
    status, printed, errors = call(*again)
    assert status == 0 and f"its results come to {tmp_path}/sweeps/first-slurm" in printed, printed + errors
    # Nothing ran here.
    status, _, errors = call(*report)
    assert status == 2 and "no sweep at" in errors, errors
