"""What a driver spends on a result, with hundreds of trials that report and do nothing else.

Everything is the project's own but the trials: Ray and Tune's loop with real processes, one a trial
(``benchmarks.scale.zygote`` makes them fit), the callback that takes results to the records, the display and the
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
from PIL import Image
from ray import tune
from rich.console import Console

from benchmarks.scale.noop_trial import SENT, dummy
from benchmarks.scale.zygote import forked_workers
from pipeline import config as schema
from pipeline.sweep import cluster, search
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.space import initial_points, parse_space
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker

__all__ = ["Driven", "Load", "Phase", "drive", "experiment", "figures", "percentile"]

_PATIENCE = 60.0  # seconds to wait for what MLflow has not got yet
_LEAST_MEMORY = 2.5 * 2**30  # bytes that stay free, or the measurement ends
# What Ray's workers and Tune's trials import sooner or later, so that no process has a copy of its own.
_SHARED = (
    "benchmarks.scale.noop_trial",
    "pyarrow.json",
    "pydantic.v1",
    "ray._private.arrow_serialization",
    "starlette.datastructures",
    "starlette.concurrency",
)
_OPENS_IN = 20.0  # seconds from the last trial's first report to the beginning, in which MLflow hears of them all
_BETWEEN = 5.0  # seconds between two phases


@dataclass(frozen=True)
class Load:
    """What a driver is measured under.

    Attributes:
        trials: at the same time.
        periods: seconds between two reports of a trial, one phase after the other; 0 for as fast as the driver takes
            them.
        seconds: of each phase.
        evaluate_every: reports; every so manyth is an evaluation, with figures and a checkpoint.
        settings: of the environment.
    """

    trials: int
    periods: tuple[float, ...]
    seconds: float
    evaluate_every: int = 20
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Phase:
    """What was found in a phase.

    Attributes:
        start: in seconds since the epoch; reports that were sent from then on count, up to ``end``.
        results: taken; ``evaluations`` of them.
        to_driver: latencies in seconds, and ``kept``.
        to_tracker: seconds from the journal to MLflow's answer, of each entry that was put in the phase and sent.
        watch_seconds: of the processor, in the project's callback.
        first: when the first was taken, and the seconds of the processor until then, of the process and of its main
            thread; and ``last``.
    """

    start: float
    end: float
    results: int = 0
    evaluations: int = 0
    to_driver: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    to_tracker: list[float] = field(default_factory=list)
    watch_seconds: float = 0.0
    first: tuple[float, float, float] = (0.0, 0.0, 0.0)
    last: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def a_second(self) -> float:
        """Results."""
        return self.results / (self.last[0] - self.first[0])

    @property
    def cpu_seconds(self) -> float:
        """Of the driver's process, a result."""
        return (self.last[1] - self.first[1]) / self.results

    @property
    def loop_seconds(self) -> float:
        """Of the driver's main thread, a result."""
        return (self.last[2] - self.first[2]) / self.results


class Driven(NamedTuple):
    """What was found.

    Attributes:
        phases: one after the other.
        start_seconds: until all trials had reported, and ``start_cpu_seconds`` of the driver in them.
        bytes_before: resident memory of the driver before the trials, ``bytes_started`` with them, and at the end.
        trial_bytes: memory of the machine that a trial took, with its process.
        waiting: entries that MLflow had not got when the last trial ended, and ``left`` a minute later.
    """

    phases: list[Phase]
    start_seconds: float
    start_cpu_seconds: float
    bytes_before: int
    bytes_started: int
    bytes_after: int
    trial_bytes: float
    waiting: int
    left: int


def experiment(trials: int) -> schema.Config:
    """Return the experiment whose results the trials imitate: LSUN's, with this number of trials."""
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

    def __init__(self, watch: SweepCallback, load: Load, gate: Path) -> None:
        self._watch, self._load, self._gate = watch, load, gate
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self._reported: set[str] = set()
        self._phase: Phase | None = None
        self.phases: list[Phase] = []
        self.started: tuple[float, float] = (0.0, 0.0)
        self.bytes_started = self.free_started = 0

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
        if self._phase:
            self._phase.watch_seconds += time.thread_time() - began

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        arrived, sent = time.time(), result[SENT]
        result["reported"] = [key for key in result["reported"] if key != SENT]
        began = time.thread_time()
        self._watch.on_trial_result(trial=trial, result=result, **info)
        now = time.time(), time.process_time(), time.thread_time()
        self._phase = next((phase for phase in self.phases if phase.start <= sent < phase.end), None)
        if self._phase:
            phase = self._phase
            phase.first = phase.first if phase.results else now
            phase.last = now
            phase.results += 1
            phase.evaluations += "chain" in result["reported"]
            phase.watch_seconds += now[2] - began
            phase.to_driver.append(arrived - sent)
            phase.kept.append(now[0] - sent)
        self._reported.add(str(trial))
        if len(self._reported) == self._load.trials and not self.phases:
            self._open()

    def _open(self) -> None:
        """All trials are there, and wait for the gate."""
        self.started = time.monotonic() - self._began, time.process_time() - self._cpu_began
        self.bytes_started, self.free_started = _resident_bytes(), _free_bytes()
        start = time.time() + _OPENS_IN
        for _ in self._load.periods:
            self.phases.append(Phase(start, start + self._load.seconds))
            start += self._load.seconds + _BETWEEN
        phases = [
            (phase.start, phase.end, period) for phase, period in zip(self.phases, self._load.periods, strict=True)
        ]
        beside = self._gate.with_suffix(".part")
        beside.write_text(json.dumps(phases))
        beside.replace(self._gate)


class _Timed(Tracker):
    """A tracker that notes when each entry was out."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.out: list[tuple[float, float]] = []  # when it was put, where it says so, and when it was out
        super().__init__(*args, **named)

    def _deliver(self, entries: list[dict[str, Any]]) -> None:
        super()._deliver(entries)
        now = time.time()
        self.out += [(entry.get("time", 0) / 1000, now) for entry in entries]


def _drive(load: Load, uri: str, folder: Path) -> Driven:
    os.environ.update(load.settings)
    os.environ["OMP_NUM_THREADS"] = "1"
    config = experiment(load.trials)
    config.output = str(folder)
    space = parse_space(config)
    trials = [TrialRecord(f"{i:03d}", point) for i, point in enumerate(initial_points(config, space))]
    shown = schema.monitored_metrics(config)
    records = SweepSummary(config.output, metric=config.sweep.metric, mode="min", shown=shown, facts={}, trials=trials)
    tracker = _Timed(uri, folder.name, artifacts=None, journal=folder / "tracking.jsonl", folder=str(folder))
    tracker.start_sweep(folder.name, schema.to_dict(config), "", extractor="inception-v3-compat")
    shown_figures = figures(folder)
    gate = folder / "gate.json"
    settings = {
        "gate": str(gate),
        "trials": load.trials,
        "evaluate_every": load.evaluate_every,
        "figures": shown_figures,
        "output": config.output,
    }
    with forked_workers(_SHARED) as executable:
        cluster.configure_tune()
        environment = {"py_executable": executable, "env_vars": {"OMP_NUM_THREADS": "1"}}
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            _system_config={"worker_register_timeout_seconds": 20},  # who is stuck is started anew
            runtime_env=environment,
            log_to_driver=False,
            logging_level="ERROR",
        )
        before, free_before = _resident_bytes(), _free_bytes()
        searcher, count = search.make_searcher(config, space, records.trials)
        display = Display(records, config.name, config.train.base_steps, Console(file=io.StringIO(), width=160))
        with display, display.sweep(load.trials, load.trials):
            meter = _Meter(SweepCallback(config, records, tracker, display), load, gate)
            tune.run(
                tune.with_resources(tune.with_parameters(dummy, settings=settings), cluster.TRIAL_RESOURCES),
                search_alg=searcher,
                num_samples=count,
                scheduler=search.make_scheduler(config, space, []),
                max_concurrent_trials=load.trials,
                callbacks=[meter],
                raise_on_failed_trial=False,
                trial_name_creator=lambda trial: trial.config[TRIAL_NAME_KEY],
                trial_dirname_creator=lambda trial: f"{trial.config[TRIAL_NAME_KEY]}-{trial.trial_id}",
                verbose=0,
                **cluster.ray_storage(config.output),
            )
        after = _resident_bytes()
        ray.shutdown()
    put = len((folder / "tracking.jsonl").read_bytes().splitlines())
    waiting = put - len(tracker.out)
    left = tracker.close(_PATIENCE)
    for phase in meter.phases:
        phase.to_tracker = [when - at for at, when in tracker.out if phase.start <= at < phase.end]
    return Driven(
        phases=meter.phases,
        start_seconds=meter.started[0],
        start_cpu_seconds=meter.started[1],
        bytes_before=before,
        bytes_started=meter.bytes_started,
        bytes_after=after,
        trial_bytes=(free_before - meter.free_started) / load.trials,
        waiting=waiting,
        left=left,
    )


def figures(folder: Path) -> list[str]:
    """Files of about the sizes that an evaluation's figures have, of the same names.

    Args:
        folder: where to write them.
    """
    sizes = {"base": 200, "gebm": 200, "base_and_gebm": 400, "by_energy": 500, "neighbors": 200, "energies": 30}
    sizes |= {"log_partition": 70, "fid_along_chain": 50}  # thousands of bytes
    found = [folder / "chain.gif", *(folder / f"{name}.png" for name in sizes)]
    found[0].write_bytes(os.urandom(1_000_000))
    for path, size in zip(found[1:], sizes.values(), strict=True):
        side = math.isqrt(size * 1000 // 3)  # noise cannot be made smaller
        Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(path)
    return [str(path) for path in found]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free_bytes() -> int:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of the values.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0, 100.0], 50)
        3.0
    """
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
