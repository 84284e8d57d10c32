"""``python -m benchmarks.overhead``: the overhead of a trial over a bare loop of the same trainer.

*bare*: ``gebm.Trainer`` in a plain loop in a process of its own, on batches that lie in memory, with no report.
*trial*: ``python -m pipeline.train`` as a user runs it: Ray, a reader on a store, reports, evaluations, checkpoints,
and MLflow in a database file. Both train the same networks with the same settings from the same seed on the same
batches in the same order, so that on a CPU their losses are the same bit for bit; the table has the last of them.

*seconds*: from one base step to another, the same two in both. Of a trial they are those of its first and of its last
report, at the times at which MLflow has them, less the evaluations in between, whose own ``evaluation_seconds`` say
how long they took: whatever else happens in between is in it, checkpoints and the reports' way through Ray included.
A report may reach MLflow a quarter of a second sooner or later than another, so trials of some seconds say nothing.

*overhead*: seconds of the trial by seconds of the bare loop of the same round, less one. *in steps* is the part of it
for which the trial's own steps were slower, by the rate that the trial reports; *between steps* is the rest.

*start-up*: from the start of the command to the first base step, interpreter and Ray's cluster included; *end*: from
the last report to the end of the command. What evaluations measure with, the feature extractor and the data's
statistics, is made before the first round.

*A trial's fixed cost*: seconds of processor time of the trial's own processes, which are that of Tune, those of Ray
Train and the worker, less those of the bare process for the same numbers of steps and evaluations, without its imports.
*Driver* and *Ray* are those of the command, which many trials share.

Fairness: the rounds alternate, with the first of the two in turn. Both get OMP_NUM_THREADS threads. Ray runs
its workers at niceness 15, so that its own processes come first; the bare loop gets the same niceness, for what else
runs on the machine would otherwise slow down one of them only. Warm-ups of the alternation are left out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from mlflow import MlflowClient

from benchmarks import cli, harness
from benchmarks.process_cpu import RAYS_OWN, run
from gebm import initialize_log_partition
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position
from pipeline.evaluation.base import EvaluationRun
from pipeline.tasks.open_store import ensure_store
from pipeline.tracking.summary import read_summary
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.energy_health import EnergyHealth
from pipeline.training.progress import evaluation_due
from pipeline.training.step_generator import step_generator
from pipeline.training.trial_evaluation import TrialEvaluation
from pipeline.training.trial_folder import TrialFolder
from pipeline.training.worker import Worker

__all__ = ["Bare", "Trial", "main"]

_NICENESS = 15


class Bare(NamedTuple):
    """A bare loop as it was measured.

    Attributes:
        seconds: From the base step of the trial's first report to the last base step.
        energy_loss: Mean over the base steps of the trial's last report, in nats.
        cpu: Seconds of processor time of all steps and evaluations, without the start of the process.
    """

    seconds: float
    energy_loss: float
    cpu: float


class Trial(NamedTuple):
    """A trial as it was measured.

    Attributes:
        seconds: From the first report to the last, less the evaluations in between.
        in_steps: What of it the worker spent in steps, by its own clock.
        evaluations: Seconds of the evaluations in between.
        start_up: From the start of the command to the first base step, in seconds.
        end: From the last report to the end of the command, in seconds.
        energy_loss: Of the last report, in nats.
        cpu: Kind of process -> seconds of processor time, see :mod:`benchmarks.process_cpu`.
    """

    seconds: float
    in_steps: float
    evaluations: float
    start_up: float
    end: float
    energy_loss: float
    cpu: dict[str, float]

    @property
    def own_cpu(self) -> float:
        """Seconds of processor time of the trial's own processes."""
        return sum(seconds for kind, seconds in self.cpu.items() if kind not in ("driver", *RAYS_OWN))


def _overrides(arguments: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Keys of the experiment ``digits`` that are others here."""
    return {
        "data.store": str(folder / "digits-8"),
        "model.networks": "dcgan",
        "model.width": arguments.width,
        "train.base_steps": arguments.steps,
        "train.batch_size": arguments.batch,
        "train.energy_steps": arguments.energy_steps,
        "train.warmup_energy_steps": arguments.energy_steps,
        "train.report_every": arguments.report_every,
        "train.final_energy_steps": 0,
        "evaluation.every": arguments.evaluate_every,
        "evaluation.num_samples": arguments.samples,
        "evaluation.chain_points": 1,
        "sampler.num_steps": 10,
        "scale.cpus_per_worker": arguments.threads,
        "scale.use_gpu": device.type == "cuda",
        "seed": arguments.seed,
    }


def _experiment(overrides: dict[str, Any]) -> schema.Config:
    return schema.apply(
        schema.from_dict(yaml.safe_load((schema.config_root() / "conf" / "digits.yaml").read_text())), overrides
    )


def _reports(config: schema.Config) -> list[int]:
    """Return the base steps at which a trial reports."""
    train, steps = config.train, range(1, config.train.base_steps + 1)
    return [s for s in steps if s % train.report_every == 0 or s % config.evaluation.every == 0 or s == steps[-1]]


def _run_bare(values: dict[str, Any], device: torch.device, folder: str) -> Bare:
    """Train in a plain loop, and evaluate after it; runs in a process of its own."""
    os.nice(_NICENESS - os.nice(0))
    config = schema.from_dict(values)
    train = config.train
    task = tasks.make(config).open(0, 1, device)
    read = task.batches(Position(epoch=0, step=0))
    cpu = time.process_time()
    batches = iter(list(itertools.islice(read, train.base_steps * train.energy_steps)))
    model = model_to_train(config, device)
    initialize_log_partition(model, train.log_partition_samples, step_generator(config, "log-partition", 0))
    trainer = make_trainer(model, config, device)
    reports = _reports(config)
    infos, began = [], 0.0
    for step in range(train.base_steps):
        if step == reports[0]:
            harness.synchronise(device)
            began = time.perf_counter()
        infos.append(trainer.step(batches, step_generator(config, "step", step)))
    harness.synchronise(device)
    seconds = time.perf_counter() - began
    # As a report takes the mean, in the same order of sums.
    losses = torch.stack([torch.stack([info.energy_loss, info.base_loss]) for info in infos[reports[-2] :]])
    health = EnergyHealth(trainer.objective, train.gradient_guard, train.beta2)
    evaluation = TrialEvaluation(config, task, Worker(0, 1, device), trainer.objective, health)
    for step in filter(functools.partial(evaluation_due, config), range(1, train.base_steps + 1)):
        evaluation.report(trainer.sampling_model(), step, TrialFolder(config, folder), f"step-{step}", EvaluationRun())
    return Bare(seconds, losses.float().cpu()[:, 0].mean().item(), time.process_time() - cpu)


def _bare(config: schema.Config, device: torch.device, folder: Path) -> Bare:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run_bare, schema.to_dict(config), device, str(folder)).result()


def _trial(overrides: dict[str, Any], folder: Path, name: str) -> Trial:
    """Run the command, and take its times from MLflow."""
    words = [f"{key}={value}" for key, value in overrides.items()]
    # In the temporary folder, for there MLflow's database is made.
    niceness = {"RAY_worker_niceness": str(_NICENESS)}
    usage = run("train", "conf=digits", *words, f"output={folder / name}", folder=folder, environment=niceness)
    document, (trial,) = read_summary(str(folder / name))
    client = MlflowClient(document["tracking_uri"])

    def history(metric: str) -> list[Any]:
        return sorted(client.get_metric_history(str(trial.mlflow_run_id), metric), key=lambda point: point.step)

    reports = history("rate/base_steps_per_second")
    first, last = reports[0], reports[-1]
    evaluations = sum(point.value for point in history("rate/evaluation_seconds") if point.step > first.step)
    lengths = [(after.step - before.step) / after.value for before, after in itertools.pairwise(reports)]
    return Trial(
        seconds=(last.timestamp - first.timestamp) / 1000 - evaluations,
        in_steps=sum(lengths),
        evaluations=evaluations,
        start_up=first.timestamp / 1000 - usage.times[0] - first.step / first.value,
        end=usage.times[-1] - last.timestamp / 1000,
        energy_loss=history("train/energy_loss")[-1].value,
        cpu=usage.total,
    )


def _of_ray(trial: Trial) -> float:
    """Return the seconds of processor time of Ray's own processes."""
    return sum(trial.cpu.get(kind, 0.0) for kind in RAYS_OWN)


def _tables(bares: list[Bare], trials: list[Trial], steps: int) -> dict[str, list[dict[str, Any]]]:
    """Return the results as tables.

    Args:
        bares: One a round.
        trials: Likewise.
        steps: Base steps that the seconds are of.
    """
    rounds = list(zip(bares, trials, strict=True))

    def share(part: Callable[[Bare, Trial], float]) -> harness.Timing:
        return harness.Timing(tuple(part(bare, trial) / bare.seconds for bare, trial in rounds))

    def seconds(of: Sequence[Bare] | Sequence[Trial], part: str = "seconds") -> harness.Timing:
        return harness.Timing(tuple(getattr(one, part) for one in of))

    bare, trial = seconds(bares), seconds(trials)
    return {
        "overhead": [
            {
                "loop": "bare",
                "seconds": bare,
                "a base step, s": bare.median / steps,
                "overhead": "",
                "in steps": "",
                "between steps": "",
                "last energy loss": bares[-1].energy_loss,
            },
            {
                "loop": "trial",
                "seconds": trial,
                "a base step, s": trial.median / steps,
                "overhead": share(lambda bare, trial: trial.seconds - bare.seconds),
                "in steps": share(lambda bare, trial: trial.in_steps - bare.seconds),
                "between steps": share(lambda bare, trial: trial.seconds - trial.in_steps),
                "last energy loss": trials[-1].energy_loss,
            },
        ],
        "the command": [
            {f"{name}, s": seconds(trials, name.replace("-", "_")) for name in ("start-up", "evaluations", "end")}
        ],
        "a trial's fixed cost": [
            {
                "the trial's processes, CPU s": harness.Mean.of([trial.own_cpu for trial in trials]),
                "steps and evaluations, CPU s": harness.Mean.of([bare.cpu for bare in bares]),
                "fixed, CPU s": harness.Mean.of([trial.own_cpu - bare.cpu for bare, trial in rounds]),
                "driver, CPU s": harness.Mean.of([trial.cpu["driver"] for trial in trials]),
                "Ray, CPU s": harness.Mean.of([_of_ray(trial) for trial in trials]),
            }
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, repeat=3, warm_up=False)
    parser.add_argument("--width", type=cli.positive, default=64, help="channels at full resolution, of a DCGAN")
    parser.add_argument("--batch", type=cli.positive, default=64, help="images in a batch, of 8x8 digits")
    parser.add_argument("--energy-steps", type=cli.positive, default=5, help="energy steps per base step")
    parser.add_argument("--steps", type=cli.positive, default=480, help="base steps in all")
    parser.add_argument("--report-every", type=cli.positive, default=40, help="base steps between two reports")
    parser.add_argument(
        "--evaluate-every", type=cli.positive, default=240, help="base steps between evaluations and checkpoints"
    )
    parser.add_argument("--samples", type=cli.positive, default=500, help="samples of an evaluation")
    parser.add_argument("--threads", type=cli.positive, default=1, help="of either; 1 is a worker's default")
    arguments = parser.parse_args()
    if arguments.steps <= min(arguments.report_every, arguments.evaluate_every):
        parser.error("one report, and no time between two: give more --steps, or a smaller --report-every")
    return arguments


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = _arguments()
    device = cli.pick_device(arguments.device)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the processes that are started from here
    torch.set_num_threads(arguments.threads)
    bares: list[Bare] = []
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        overrides = _overrides(arguments, device, folder)
        config = _experiment(overrides)
        tasks.make(config).prepare(ensure_store(config), device)
        for turn in range(arguments.repeat):
            works = [
                lambda turn=turn: bares.append(_bare(config, device, folder / f"bare-{turn}")),
                lambda turn=turn: trials.append(_trial(overrides, folder, f"round-{turn}")),
            ]
            for work in works[turn % 2 :] + works[: turn % 2]:
                work()
    tables = _tables(bares, trials, arguments.steps - _reports(config)[0])
    for rows in tables.values():
        print(harness.table(rows), end="\n\n")
    print(f"written: {harness.write(arguments.out, 'overhead', device, vars(arguments), tables)}")


if __name__ == "__main__":
    main()
