"""What a driver spends on a result, with hundreds of trials that report and do nothing else.

Everything is the project's own but the trials: Ray and Tune's loop with real processes, one a trial
(``benchmarks.scale.forked_workers`` makes them fit), the callback that takes results to the records, the display and
the tracker, its outbox, and a real MLflow server. The trials report at a given rate, or, to find where the driver
saturates, as soon as the driver has taken the report before.

*Latency*: from the trial's report to the moment when the driver begins with it (*to the driver*), and when the records
and the outbox's journal have it (*kept*). To the tracker: from the journal to MLflow's answer. The machine runs the
trials, Ray's own processes and MLflow as well, so latencies are no better than they have to be; seconds of the
processor are the driver's own process's.
"""

from __future__ import annotations

import io
import json
import logging
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

from benchmarks.scale.forked_workers import forked_workers
from benchmarks.scale.noop_trial import SENT, dummy
from pipeline import config as schema
from pipeline.sweep import cluster, search
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.points import initial_points
from pipeline.sweep.search_space import SearchSpace, parse_space
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.trial_steps import trial_steps

__all__ = ["Driven", "Load", "Phase", "drive", "experiment", "figures", "percentile"]

# Seconds to wait for the entries that MLflow has not got yet.
_PATIENCE = 60.0
# Bytes that stay free, or the measurement ends.
_LEAST_MEMORY = 2.5 * 2**30
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
    """Return the experiment whose results the trials pretend to have: LSUN's, with that many trials."""
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
    """Callback that wraps the project's own and measures its times."""

    def __init__(self, watch: SweepCallback, load: Load, gate: Path) -> None:
        self._watch, self._load, self._gate = watch, load, gate
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self._reported: set[str] = set()
        self._phase: Phase | None = None
        self.phases: list[Phase] = []
        self.started: tuple[float, float] = (0.0, 0.0)
        self.bytes_started = self.free_started = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.on_trial_start(iteration=iteration, trials=trials, trial=trial, **info)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.on_trial_complete(iteration=iteration, trials=trials, trial=trial, **info)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.on_trial_error(iteration=iteration, trials=trials, trial=trial, **info)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if _free_bytes() < _LEAST_MEMORY:
            raise MemoryError("too little memory is left for this number of trials")
        began = time.thread_time()
        self._watch.on_step_end(iteration=iteration, trials=trials, **info)
        if self._phase:
            self._phase.watch_seconds += time.thread_time() - began

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        arrived, sent = time.time(), result[SENT]
        result["reported"] = [key for key in result["reported"] if key != SENT]
        began = time.thread_time()
        self._watch.on_trial_result(iteration=iteration, trials=trials, trial=trial, result=result, **info)
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
        """Open the gate that all the trials wait for."""
        self.started = time.monotonic() - self._began, time.process_time() - self._cpu_began
        self.bytes_started, self.free_started = _resident_bytes(), _free_bytes()
        start = time.time() + _OPENS_IN
        for _ in self._load.periods:
            self.phases.append(Phase(start, start + self._load.seconds))
            start += self._load.seconds + _BETWEEN
        phases = [
            (phase.start, phase.end, period) for phase, period in zip(self.phases, self._load.periods, strict=True)
        ]
        partial = self._gate.with_suffix(".part")
        partial.write_text(json.dumps(phases))
        partial.replace(self._gate)


class _Timed(Tracker):
    """A tracker that records when each entry was delivered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # When an entry was put, where it says so, and when it was delivered.
        self.out: list[tuple[float, float]] = []
        super().__init__(*args, **kwargs)

    def _deliver(self, entries: list[dict[str, Any]]) -> None:
        super()._deliver(entries)
        now = time.time()
        self.out += [(entry.get("time", 0) / 1000, now) for entry in entries]


@dataclass
class _Sweep:
    """A sweep of trials that train nothing, with the project's records, tracker and display."""

    load: Load
    config: schema.Config
    space: SearchSpace
    records: SweepSummary
    tracker: _Timed
    folder: Path

    @classmethod
    def start(cls, load: Load, uri: str, folder: Path) -> _Sweep:
        """Plan the trials and start the sweep's run at the tracker."""
        config = experiment(load.trials)
        config.output = str(folder)
        space = parse_space(config)
        trials = [TrialRecord(f"{i:03d}", point) for i, point in enumerate(initial_points(config, space))]
        shown = schema.monitored_metrics(config)
        records = SweepSummary(
            config.output,
            metric=config.sweep.metric,
            mode="min",
            shown=shown,
            facts={},
            trials=trials,
            steps=trial_steps(config),
        )
        tracker = _Timed(uri, folder.name, artifacts=None, journal=folder / "tracking.jsonl", folder=str(folder))
        tracker.start_sweep(folder.name, schema.to_dict(config), "", extractor="inception-v3-compat")
        return cls(load, config, space, records, tracker, folder)

    @property
    def gate(self) -> Path:
        """The file that the trials wait for."""
        return self.folder / "gate.json"

    def run(self) -> _Meter:
        """Run the trials under Tune, and return the measurements."""
        trial_settings = {
            "gate": str(self.gate),
            "trials": self.load.trials,
            "evaluate_every": self.load.evaluate_every,
            "figures": figures(self.folder),
            "output": self.config.output,
        }
        searcher, count = search.make_searcher(self.config, self.space, self.records.trials)
        console = Console(file=io.StringIO(), width=160)
        display = Display(self.records, self.config.name, console)
        resources: dict[str, float] = {**cluster.TRIAL_RESOURCES}
        with display, display.sweep(self.load.trials, self.load.trials):
            meter = _Meter(SweepCallback(self.config, self.records, self.tracker, display), self.load, self.gate)
            tune.run(
                tune.with_resources(tune.with_parameters(dummy, settings=trial_settings), resources),
                search_alg=searcher,
                num_samples=count,
                scheduler=search.make_scheduler(self.config, self.space, []),
                max_concurrent_trials=self.load.trials,
                callbacks=[meter],
                raise_on_failed_trial=False,
                trial_name_creator=lambda trial: trial.config[TRIAL_NAME_KEY],
                trial_dirname_creator=lambda trial: f"{trial.config[TRIAL_NAME_KEY]}-{trial.trial_id}",
                verbose=0,
                **cluster.ray_storage(f"{self.folder}/{cluster.RAY_STORAGE}"),
            )
        return meter


def _start_ray(executable: str) -> None:
    cluster.configure_tune()
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        # A worker that hangs at its start is replaced.
        _system_config={"worker_register_timeout_seconds": 20},
        runtime_env={"py_executable": executable, "env_vars": {"OMP_NUM_THREADS": "1"}},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _drive(load: Load, uri: str, folder: Path) -> Driven:
    os.environ.update(load.settings)
    os.environ["OMP_NUM_THREADS"] = "1"
    sweep = _Sweep.start(load, uri, folder)
    with forked_workers(_SHARED) as executable:
        _start_ray(executable)
        before, free_before = _resident_bytes(), _free_bytes()
        meter = sweep.run()
        after = _resident_bytes()
        ray.shutdown()
    tracker = sweep.tracker
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
    """Write files of about the sizes that an evaluation's figures have, under the same names.

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
    """Return the percentile of the values.

    Example:
        >>> percentile([1.0, 2.0, 3.0, 4.0, 100.0], 50)
        3.0
    """
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
