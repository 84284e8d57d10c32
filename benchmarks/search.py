"""``python -m benchmarks.search``: the cost of a sampler's setting, in a process that keeps its model, and as a trial.

A model is trained for a moment, of points (``toy``) and of images (``digits``). Then settings of its sampler are
searched by ``python -m pipeline.sweep`` as a user runs it, in two ways in the same run. *warm*: the space is of the
sampler alone, and a slot's process keeps model, data and base samples for the next setting. *trial*: some of these
settings are trials as of a search over anything that is trained, whose process keeps its imports alone for the next;
the space has the seed in it, with one value, and nothing is left to train. The scores of these are checked to be equal,
to the last digit.

*CPU, s* are seconds of processor time, user and system, of everything that the command starts and of itself. *A further
setting* is what is added by one more: what was taken from the end of the first round, a setting a slot, to that of the
last one, by their number, with its standard error by at most ten parts of that time. *Chains and features* of it are
those of the same settings in a bare process, which in the warm way has kept what all settings share. *Beyond* is the
rest: scores and their errors, pictures, reports, the driver, the tracker and Ray. So for a trial with nothing left to
train it is the trial's fixed cost. *Once* is what a sweep takes before and after, its first round included.

A machine that is shared with others makes seconds of the clock longer, and hardly those of processors. Tables of an
experiment that is not requested are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import cli, harness
from benchmarks.process_cpu import RAYS_OWN, Usage, run
from gebm.folding import folded
from pipeline import tasks
from pipeline.config import precision
from pipeline.evaluation.local_chains import LocalJob, run_local_chains
from pipeline.evaluation.shared_results import SharedResults
from pipeline.tasks.base import TaskWorker
from pipeline.tracking.summary import read_summary
from pipeline.training.build_model import load_model

__all__ = ["EXPERIMENTS", "Found", "main", "tables"]

EXPERIMENTS = {"toy": "train.base_steps=20", "digits": "train.base_steps=60"}
"""Experiments, and how long their model is trained."""

_TRAINING = ("train.warmup_energy_steps=1", "train.report_every=20", "train.final_energy_steps=20")
_PARTS = 10


class Found(NamedTuple):
    """A search as it was measured.

    Attributes:
        usage: What its processes took.
        ends: When each setting was reported, in seconds since 1970, in order.
        scores: Step size -> the score.
        bare: Seconds of processor time of a setting's chains and features alone, of several settings.
        slots: Settings side by side.
    """

    usage: Usage
    ends: list[float]
    scores: dict[float, float]
    bare: list[float]
    slots: int

    @property
    def rounds(self) -> list[float]:
        """When each round of settings, one a slot, had ended, in seconds since 1970."""
        return self.ends[self.slots - 1 :: self.slots]

    @property
    def further(self) -> int:
        """Number of settings after the first round, to the end of the last whole one."""
        return (len(self.rounds) - 1) * self.slots

    def further_cpu(self) -> harness.Mean:
        """Return the processor time of a further setting, and its standard error by the parts."""
        last = len(self.rounds) - 1
        cuts = np.unique(np.linspace(0, last, min(_PARTS, last) + 1).round().astype(int)).tolist()
        parts = [self.usage.between(self.rounds[a], self.rounds[b]) for a, b in itertools.pairwise(cuts)]
        taken = [sum(part.values()) for part in parts]
        rates = [cpu / (self.slots * (b - a)) for cpu, (a, b) in zip(taken, itertools.pairwise(cuts), strict=True)]
        return harness.Mean(sum(taken) / self.further, harness.Mean.of(rates).error)


class _Features:
    """Scorer that only makes features, as a task measures samples."""

    primary = "none"

    def __init__(self, worker: TaskWorker) -> None:
        self._worker = worker

    def kept_rows(self, total: int) -> Tensor:
        return torch.zeros(total, dtype=torch.bool)

    def show(self, samples: Tensor) -> Tensor:
        return samples

    def features(self, shown: Tensor) -> dict[str, Tensor]:
        return {"features": self._worker.features(shown)}

    def score(self, features: dict[str, Tensor], *, end: bool) -> dict[str, float]:
        return {self.primary: 0.0}


def _bare(checkpoint: str, store: str, samples: int | None, steps: list[float], warm: bool) -> list[float]:
    """Run the chains of settings in this process, and return the seconds of processor time of each."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model, config, *_ = load_model(checkpoint, {"data.store": store}, device)
    if samples:
        config.evaluation.num_samples = samples
    scorer, shared, seconds = _Features(tasks.make(config).open(0, 1, device)), SharedResults(), []
    for step_size in steps:
        shared = shared if warm else SharedResults()
        started = time.process_time()
        settings = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, step_size=step_size))
        dtype = precision.sampling_dtype(settings, device)
        fused = shared.get("folded", lambda dtype=dtype: folded(model, dtype))
        job = LocalJob(model, fused, settings, scorer, 0, 1, shared, lambda step, features: None)
        run_local_chains(job, settings.evaluation.batch_size, lambda steps: None)
        seconds.append(time.process_time() - started)
    # The first has made what all share.
    return seconds[1:] if warm else seconds


def _step_sizes(count: int, seed: int) -> list[float]:
    """Return the settings, in an order in which later ones are not always better: those that are have pictures."""
    values = [float(f"{value:.6g}") for value in np.geomspace(1e-4, 1e-2, count)]
    return random.Random(seed).sample(values, count)


def _search(arguments: argparse.Namespace, folder: Path, name: str, checkpoint: str, *, warm: bool) -> Found:
    """Search settings of one model in one of the two ways, and run the chains of some of them alone."""
    output = folder / ("warm" if warm else "trial")
    step_sizes = _step_sizes(arguments.settings, arguments.seed)
    compared = step_sizes[: arguments.compared]
    values = str(step_sizes if warm else compared).replace(" ", "")
    seed = "" if warm else f",seed:{{choice:[{arguments.seed}]}}"
    store = str(folder / name)
    usage = run(
        "sweep",
        *("sweeps=grid", f"checkpoint={checkpoint}", f"output={output}", f"data.store={store}"),
        f"++sweep.space={{sampler.step_size:{{choice:{values}}}{seed}}}",
        *(EXPERIMENTS[name], "scale.use_gpu=false", "tracking.register=false", "sweep.finalists=0"),
        *(f"sweep.max_concurrent={arguments.slots}", f"seed={arguments.seed}"),
        *([f"evaluation.num_samples={arguments.samples}"] if arguments.samples else []),
        folder=folder,
    )
    _, trials = read_summary(str(output), checkpoint)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        bare = pool.submit(_bare, checkpoint, store, arguments.samples, compared, warm).result()
    metric = "distance_gebm" if name == "toy" else "fid_gebm"
    return Found(
        usage,
        sorted((output / "trials" / trial.name / "reports.jsonl").stat().st_mtime for trial in trials),
        {trial.params["sampler.step_size"]: trial.metrics[metric] for trial in trials},
        bare,
        arguments.slots,
    )


def tables(name: str, runs: dict[str, Found]) -> dict[str, list[dict[str, Any]]]:
    """Return the results as tables.

    Args:
        name: The experiment.
        runs: The two ways.
    """
    settings, processes = [], {}
    for way, found in runs.items():
        further, bare = found.further_cpu(), harness.Mean.of(found.bare)
        usage, start, end = found.usage, found.rounds[0], found.rounds[-1]
        spent = {kind: seconds / found.further for kind, seconds in usage.between(start, end).items()}
        settings.append(
            {
                "search": way,
                "settings": len(found.ends),
                "a further setting, CPU s": further,
                "chains and features, CPU s": bare,
                "beyond, CPU s": further.minus(bare),
                "once, CPU s": sum(usage.total.values()) - further.mean * found.further,
                "a further setting, wall s": (end - start) / found.further,
                "the sweep, wall s": usage.wall,
            }
        )
        processes[way] = usage, spent
    kinds = sorted(
        {kind for usage, _ in processes.values() for kind in usage.seconds},
        key=lambda kind: -max(spent.get(kind, 0.0) for _, spent in processes.values()),
    )
    return {
        f"{name}: a setting": settings,
        f"{name}: by process": [
            {"process": kind, "is": "driver" if kind == "driver" else "Ray's" if kind in RAYS_OWN else "a trial's"}
            | {f"{way}, CPU s a setting": spent.get(kind, 0.0) for way, (_, spent) in processes.items()}
            | {f"{way}, CPU s in all": usage.total.get(kind, 0.0) for way, (usage, _) in processes.items()}
            | {f"{way}, processes": usage.processes.get(kind, 0) for way, (usage, _) in processes.items()}
            for kind in kinds
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, repeat=1, warm_up=False)
    parser.add_argument("--conf", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="experiments")
    parser.add_argument(
        "--settings", type=cli.positive, default=100, help="settings of the sampler, two rounds or more"
    )
    parser.add_argument("--compared", type=cli.positive, default=6, help="of them that are trials as well")
    parser.add_argument("--slots", type=cli.positive, default=2, help="settings side by side")
    parser.add_argument("--samples", type=cli.positive, help="samples of an evaluation; none: the experiment's")
    arguments = parser.parse_args()
    if not 2 * arguments.slots <= arguments.compared <= arguments.settings:
        parser.error(
            "a further round needs a first one: give twice --slots or more, and no more compared than settings"
        )
    return arguments


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = _arguments()
    earlier = arguments.out / "search-cpu.json"
    results: dict[str, Any] = json.loads(earlier.read_text())["results"] if earlier.exists() else {}
    for name in arguments.conf:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            words = (f"data.store={folder / name}", f"output={folder / 'model'}", f"seed={arguments.seed}")
            quick = (EXPERIMENTS[name], *_TRAINING, "scale.use_gpu=false", "tracking.register=false")
            run("train", f"conf={name}", *quick, *words, folder=folder)
            _, (trained,) = read_summary(str(folder / "model"))
            checkpoint = str(trained.checkpoint)
            ways = {"trial": False, "warm": True}
            runs = {way: _search(arguments, folder, name, checkpoint, warm=warm) for way, warm in ways.items()}
        known = runs["warm"].scores
        if wrong := {step: score for step, score in runs["trial"].scores.items() if score != known[step]}:
            sys.exit(f"the scores differ: {[(score, known[step]) for step, score in wrong.items()]}")
        measured = tables(name, runs)
        for rows in measured.values():
            print(harness.table(rows), end="\n\n")
        results |= measured
    print(f"written: {harness.write(arguments.out, 'search', torch.device('cpu'), vars(arguments), results)}")


if __name__ == "__main__":
    main()
