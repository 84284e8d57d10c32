"""``python -m benchmarks.search``: what a setting of a sampler costs, in a warm process and in a trial of its own.

A toy of points is trained for a moment. Then the same settings of its sampler are searched twice, by
``python -m pipeline.sweep`` as a user runs it. *trial*: each setting is a trial with a ``TorchTrainer``, as of a search
over anything that is trained; the space has the seed in it, with one value, and nothing is left to train. *warm*: the
space is of the sampler alone, and its settings share one process a slot. The scores are checked to be equal.

*CPU, s*: seconds of processor time by kind of process, user and system, of everything that the command starts and of
itself, looked at four times a second: what a process takes in its last quarter of a second is missing. A process that
has not said what it is for is *idle*. Divided by the number of settings; what a sweep costs once, such as the driver's
imports, is in it, and less of it the more settings there are. *processes*: how many of a kind there were.

*further setting, s*: wall-clock seconds of the sweep from the first setting's end to the last one's, by their number.
*evaluation, s*: seconds of a setting's evaluation by its own clock, chains and features included, pictures as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from benchmarks import cli, harness
from pipeline.tracking.summary import read_summary

__all__ = ["Run", "main"]

_REPOSITORY = Path(__file__).resolve().parents[1]
_INTERVAL = 0.25
_SMALL = ("train.base_steps=20", "train.warmup_energy_steps=1", "train.report_every=20", "scale.use_gpu=false")


class Run(NamedTuple):
    """A command as it was measured.

    Attributes:
        seconds: From its start to its end.
        cpu: Kind of process -> seconds of processor time.
        processes: Kind of process -> how many there were.
    """

    seconds: float
    cpu: dict[str, float]
    processes: dict[str, int]


def _kind(process: psutil.Process) -> str:
    """Return what a process is for: the name that Ray gives it, or the program's."""
    words = process.cmdline()
    title = words[0] if words else process.name()
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split("(")[0].strip().replace("IDLE", "idle")
    return "raylet" if "raylet" in title else "gcs_server" if "gcs_server" in title else "other"


def _measure(command: list[str], folder: Path) -> Run:
    """Run a command, and look at what it and its processes take."""
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_STATE_HOME": str(folder / "state")}
    started, seen = time.monotonic(), {}
    with (folder / "log").open("w") as log:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        times = one.cpu_times()
                        kind = "driver" if one.pid == process.pid else _kind(one)
                        seen[one.pid, one.create_time()] = kind, times.user + times.system
            time.sleep(_INTERVAL)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{(folder / 'log').read_text()}")
    cpu: Counter[str] = Counter()
    for kind, seconds in seen.values():
        cpu[kind] += seconds
    return Run(time.monotonic() - started, dict(cpu), dict(Counter(kind for kind, _ in seen.values())))


def _search(arguments: argparse.Namespace, folder: Path, checkpoint: str, *, warm: bool) -> tuple[Run, dict[str, Any]]:
    """Search the settings; return what that took, and the trials' scores with two times."""
    output = folder / ("warm" if warm else "trial")
    values = [1e-3 * 1.1**index for index in range(arguments.settings)]
    seed = "" if warm else f",seed:{{choice:[{arguments.seed}]}}"
    run = _measure(
        [
            *(sys.executable, "-m", "pipeline.sweep", "sweeps=grid", f"checkpoint={checkpoint}", f"output={output}"),
            f"++sweep.space={{sampler.step_size:{{choice:{str(values).replace(' ', '')}}}{seed}}}",
            *(f"data.store={folder / 'toy'}", "train.base_steps=20", "scale.use_gpu=false", "tracking.register=false"),
            *(f"sweep.max_concurrent={arguments.slots}", f"evaluation.num_samples={arguments.samples}"),
            f"sampler.num_steps={arguments.steps}",
        ],
        folder,
    )
    _, trials = read_summary(str(output))
    ends = sorted((output / "trials" / trial.name / "reports.jsonl").stat().st_mtime for trial in trials)
    return run, {
        "scores": {trial.params["sampler.step_size"]: trial.metrics["distance_gebm"] for trial in trials},
        "evaluation": sum(trial.metrics["evaluation_seconds"] for trial in trials) / len(trials),
        "further": (ends[-1] - ends[0]) / max(len(ends) - 1, 1),
    }


def _tables(runs: dict[str, tuple[Run, dict[str, Any]]], settings: int) -> dict[str, list[dict[str, Any]]]:
    """Return the results as tables."""
    kinds = sorted(
        {kind for run, _ in runs.values() for kind in run.cpu}, key=lambda kind: -runs["trial"][0].cpu.get(kind, 0)
    )
    return {
        "a setting": [
            {
                "search": name,
                "CPU, s": sum(run.cpu.values()) / settings,
                "CPU without driver, s": (sum(run.cpu.values()) - run.cpu["driver"]) / settings,
                "wall, s": run.seconds / settings,
                "further setting, s": found["further"],
                "evaluation, s": found["evaluation"],
            }
            for name, (run, found) in runs.items()
        ],
        "by kind of process": [
            {"process": kind}
            | {f"{name}, CPU, s a setting": run.cpu.get(kind, 0.0) / settings for name, (run, _) in runs.items()}
            | {f"{name}, processes": run.processes.get(kind, 0) for name, (run, _) in runs.items()}
            for kind in kinds
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, repeat=1, warm_up=False)
    parser.add_argument("--settings", type=cli.positive, default=20, help="settings of the sampler")
    parser.add_argument("--slots", type=cli.positive, default=2, help="settings side by side")
    parser.add_argument("--samples", type=cli.positive, default=500, help="samples of an evaluation")
    parser.add_argument("--steps", type=cli.positive, default=50, help="MCMC steps of a chain")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train = [sys.executable, "-m", "pipeline.train", "conf=toy", *_SMALL, f"data.store={folder / 'toy'}"]
        _measure([*train, f"output={folder / 'model'}", f"seed={arguments.seed}", "tracking.register=false"], folder)
        _, (trained,) = read_summary(str(folder / "model"))
        runs = {
            name: _search(arguments, folder, str(trained.checkpoint), warm=name == "warm") for name in ("trial", "warm")
        }
    if runs["trial"][1]["scores"] != runs["warm"][1]["scores"]:
        sys.exit(f"the scores differ: {[found['scores'] for _, found in runs.values()]}")
    tables = _tables(runs, arguments.settings)
    for rows in tables.values():
        print(harness.table(rows), end="\n\n")
    print(f"written: {harness.write(arguments.out, 'search', torch.device('cpu'), vars(arguments), tables)}")


if __name__ == "__main__":
    main()
