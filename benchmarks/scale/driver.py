"""What a driver spends on a result, with hundreds of trials that report and do nothing else.

Everything is the project's own but the trials: Ray and Tune's loop with real processes, one a trial
(``benchmarks.scale.forking`` makes them fit), the callback that takes results to the records, the display and the
tracker, its outbox, and a real MLflow server. The trials report at a given rate, or, to find where the driver
saturates, as soon as the driver has taken the report before.

*Latency*: from the trial's report to the moment when the driver begins with it (*to the driver*), and when the records
and the outbox's journal have it (*kept*). To the tracker: from the journal to MLflow's answer. The machine runs the
trials, Ray's own processes and MLflow as well, so latencies are no better than they have to be; seconds of the
processor are the driver's own process's.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray
import yaml
from ray import tune
from rich.console import Console

from benchmarks.scale.dummy import SENT, dummy
from benchmarks.scale.forking import forked_workers
from pipeline import cluster, search
from pipeline import config as schema
from pipeline.display import Display
from pipeline.experiment import Watch
from pipeline.records import Records, TrialRecord
from pipeline.tracking import Tracker
from pipeline.tuning import TRIAL

__all__ = ["Driven", "Load", "drive", "experiment", "figures", "percentile"]

_PATIENCE = 60.0  # seconds to wait for what MLflow has not got yet
_LEAST_MEMORY = 2.5 * 2**30  # bytes that stay free, or the measurement ends
# What Ray's workers and Tune's trials import sooner or later, so that no process has a copy of its own.
_SHARED = (
    "benchmarks.scale.dummy",
    "pyarrow.json",
    "pydantic.v1",
    "ray._private.arrow_serialization",
    "starlette.datastructures",
    "starlette.concurrency",
)
_OPENS_IN = 2.0  # seconds from the last trial's first report to the beginning


@dataclass(frozen=True)
class Load:
    """What a driver is measured under.

    Attributes:
        trials: at the same time.
        period: seconds between two reports of a trial; 0 for as fast as the driver takes them.
        seconds: how long.
        evaluate_every: reports; every so manyth is an evaluation, with figures and a checkpoint.
        settings: of the environment.
    """

    trials: int
    period: float
    seconds: float
    evaluate_every: int
    settings: dict[str, str] = field(default_factory=dict)


class Driven(NamedTuple):
    """What was found.

    Attributes:
        results: taken in the time.
        evaluations: of them.
        seconds: from the first to the last.
        cpu_seconds: of the driver's process in that time; ``loop_seconds`` are its main thread's, ``watch_seconds``
            those of them in the project's callback.
        to_driver: latencies in seconds, and ``kept``.
        to_tracker: seconds from the journal to MLflow's answer, of each entry that was sent in the time.
        sent: entries that MLflow got in that time, and ``waiting`` those in the journal at the end of it.
        start_seconds: until all trials had reported, and ``start_cpu_seconds`` of the driver in them.
        bytes_before: resident memory of the driver before the trials, with them, and at the end.
        trial_bytes: memory of the machine that a trial took, with its process.
    """

    results: int
    evaluations: int
    seconds: float
    cpu_seconds: float
    loop_seconds: float
    watch_seconds: float
    to_driver: list[float]
    kept: list[float]
    to_tracker: list[float]
    sent: int
    waiting: int
    start_seconds: float
    start_cpu_seconds: float
    bytes_before: int
    bytes_started: int
    bytes_after: int
    trial_bytes: float


def experiment(trials: int) -> schema.Config:
    """The experiment whose results the trials pretend to have: LSUN's, with as many trials."""
    values = yaml.safe_load((schema.config_root() / "conf" / "lsun.yaml").read_text())
    config = schema.apply(schema.from_dict(values), {"sweep.num_trials": trials, "sweep.scheduler": "asha"})
    # No trial ends before its time, and ASHA has to look at each result.
    config.sweep.grace_steps = config.train.base_steps
    config.sweep.space = config.spaces["training"]
    return config


def drive(load: Load, uri: str, folder: Path) -> Driven:
    """Measure in a process of its own.

    Args:
        load: what to measure under.
        uri: of a tracker.
        folder: an empty one, on a disk.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_drive, load, uri, folder).result()


class _Meter(tune.Callback):
    """Stands before and after the project's callback, and takes the times."""

    def __init__(self, watch: Watch, load: Load, gate: Path) -> None:
        self._watch, self._load, self._gate = watch, load, gate
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self._reported: set[str] = set()
        self._arrived = self._clock = 0.0
        self.start = self.end = 0.0
        self.started: tuple[float, float] = (0.0, 0.0)
        self.bytes_started = self.free_started = 0
        self.first: tuple[float, float, float] | None = None
        self.last: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self.results = self.evaluations = 0
        self.watch_seconds = 0.0
        self.to_driver: list[float] = []
        self.kept: list[float] = []

    def on_trial_start(self, **info: Any) -> None:
        self._watch.on_trial_start(**info)

    def on_trial_complete(self, **info: Any) -> None:
        self._watch.on_trial_complete(**info)

    def on_trial_error(self, **info: Any) -> None:
        self._watch.on_trial_error(**info)

    def on_step_end(self, **info: Any) -> None:
        if _free_bytes() < _LEAST_MEMORY:
            raise MemoryError("too little memory is left for so many trials")
        began = time.thread_time()
        self._watch.on_step_end(**info)
        if self.first:
            self.watch_seconds += time.thread_time() - began

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        arrived, sent = time.time(), result[SENT]
        result["reported"] = [key for key in result["reported"] if key != SENT]
        began = time.thread_time()
        self._watch.on_trial_result(trial=trial, result=result, **info)
        now = time.time(), time.process_time(), time.thread_time()
        if self.start and sent >= self.start:
            self.first = self.first or now
            self.last = now
            self.results += 1
            self.evaluations += "chain" in result["reported"]
            self.watch_seconds += now[2] - began
            self.to_driver.append(arrived - sent)
            self.kept.append(now[0] - sent)
        self._reported.add(str(trial))
        if len(self._reported) == self._load.trials and not self.start:
            self.started = time.monotonic() - self._began, time.process_time() - self._cpu_began
            self.bytes_started, self.free_started = _resident_bytes(), _free_bytes()
            self.start = time.time() + _OPENS_IN
            self.end = self.start + self._load.seconds
            beside = self._gate.with_suffix(".part")
            beside.write_text(json.dumps([self.start, self.end]))
            beside.replace(self._gate)


class _Timed(Tracker):
    """A tracker that notes when each entry was out."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.out: list[tuple[float, float | None]] = []  # when, and how long after it was put
        super().__init__(*args, **named)

    def _deliver(self, entries: list[dict[str, Any]]) -> None:
        super()._deliver(entries)
        now = time.time()
        self.out += [(now, now - entry["time"] / 1000 if "time" in entry else None) for entry in entries]


def _drive(load: Load, uri: str, folder: Path) -> Driven:
    os.environ.update(load.settings)
    os.environ["OMP_NUM_THREADS"] = "1"
    config = experiment(load.trials)
    config.output = str(folder)
    space = search.parse_space(config)
    trials = [TrialRecord(f"{i:03d}", point) for i, point in enumerate(search.first_points(config, space))]
    shown = schema.headline(config)
    records = Records(config.output, metric=config.sweep.metric, mode="min", shown=shown, facts={}, trials=trials)
    tracker = _Timed(uri, folder.name, artifacts=None, journal=folder / "tracking.jsonl")
    tracker.start_sweep(folder.name, schema.to_dict(config), "", extractor="inception-v3-compat")
    shown_figures = figures(folder)
    gate = folder / "gate.json"
    settings = {
        "gate": str(gate),
        "period": load.period,
        "trials": load.trials,
        "evaluate_every": load.evaluate_every,
        "figures": shown_figures,
        "output": config.output,
    }
    with forked_workers(_SHARED) as executable:
        cluster.set_tune_up()
        cpus = math.ceil(load.trials * cluster.DRIVER_CPUS) + 1
        environment = {"py_executable": executable, "env_vars": {"OMP_NUM_THREADS": "1"}}
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            runtime_env=environment,
            log_to_driver=False,
            logging_level="ERROR",
        )
        before, free_before = _resident_bytes(), _free_bytes()
        searcher, count = search.make_searcher(config, space, records.trials)
        with Display(records, config.train.base_steps, Console(file=io.StringIO(), width=160)) as display:
            meter = _Meter(Watch(config, records, tracker, display), load, gate)
            tune.run(
                tune.with_resources(tune.with_parameters(dummy, settings=settings), {"CPU": cluster.DRIVER_CPUS}),
                search_alg=searcher,
                num_samples=count,
                scheduler=search.make_scheduler(config, space, []),
                max_concurrent_trials=load.trials,
                callbacks=[meter],
                raise_on_failed_trial=False,
                trial_name_creator=lambda trial: trial.config[TRIAL],
                trial_dirname_creator=lambda trial: f"{trial.config[TRIAL]}-{trial.trial_id}",
                verbose=0,
                **cluster.books(config.output),
            )
        after = _resident_bytes()
        ray.shutdown()
    in_time = [delay for when, delay in tracker.out if meter.start <= when <= meter.last[0]]
    put = sum(b'"time"' in line for line in (folder / "tracking.jsonl").read_bytes().splitlines())
    waiting = put - sum(delay is not None for _, delay in tracker.out)
    tracker.close(_PATIENCE)
    first, last = meter.first or (0.0, 0.0, 0.0), meter.last
    return Driven(
        results=meter.results,
        evaluations=meter.evaluations,
        seconds=last[0] - first[0],
        cpu_seconds=last[1] - first[1],
        loop_seconds=last[2] - first[2],
        watch_seconds=meter.watch_seconds,
        to_driver=meter.to_driver,
        kept=meter.kept,
        to_tracker=[delay for delay in in_time if delay is not None],
        sent=len(in_time),
        waiting=waiting,
        start_seconds=meter.started[0],
        start_cpu_seconds=meter.started[1],
        bytes_before=before,
        bytes_started=meter.bytes_started,
        bytes_after=after,
        trial_bytes=(free_before - meter.free_started) / load.trials,
    )


def figures(folder: Path) -> list[str]:
    """Files of about the sizes that an evaluation's figures have, of the same names.

    Args:
        folder: where to write them.
    """
    found = []
    for name, size in (("base_and_gebm.png", 400_000), ("chain.gif", 1_000_000), ("fid_along_chain.png", 30_000)):
        (folder / name).write_bytes(os.urandom(size))
        found.append(str(folder / name))
    return found


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free_bytes() -> int:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent of the values do not exceed.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0, 100.0], 50)
        3.0
    """
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
