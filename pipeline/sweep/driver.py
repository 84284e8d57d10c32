"""Sweep driver: resolve the config, prepare, search, finalize. A training run is a sweep of one trial."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import yaml
from ray import tune
from rich.console import Console

from pipeline import config as schema
from pipeline import tasks
from pipeline.config import plugins
from pipeline.config.kernels import as_used
from pipeline.config.own_choices import keep_choices
from pipeline.config.printed_commands import format_command
from pipeline.config.sampler_search import is_sampler_search
from pipeline.config.temperature import BETA, describe_temperature, sampling_beta
from pipeline.report.markdown import markdown
from pipeline.runtime import lock
from pipeline.runtime.errors import LockLost
from pipeline.runtime.filesystem import write_file, writing
from pipeline.sweep import cluster, search
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.display.eta import Eta, time_left
from pipeline.sweep.earlier_sweeps import expected_seconds
from pipeline.sweep.finalists import score_finalists
from pipeline.sweep.finalize import current_results, finalize, print_results
from pipeline.sweep.finals_time import fewest_candidates, finals_seconds
from pipeline.sweep.plan import SweepPlan, require_unchanged, resolve
from pipeline.sweep.preflight import preflight_notes
from pipeline.sweep.preparation import prepare_shared
from pipeline.sweep.sampler_trainable import sampler_trainable
from pipeline.sweep.trainable import TRIAL_NAME_KEY, trainable
from pipeline.sweep.trial_runs import restore_runs, view_columns
from pipeline.tracking import provenance
from pipeline.tracking.finalists import read_finalists
from pipeline.tracking.locations import CONFIG_FILE, absolute_folder, imported_start, relative_place
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary
from pipeline.tracking.tracker import Tracker, journal_path
from pipeline.tracking.trial_steps import trial_steps
from pipeline.training.export import write_package

__all__ = ["Interrupted", "Sweep", "exit_status", "open_sweep", "run"]

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Ctrl-C; what was done is saved, and ``resume`` continues from it."""


def run(
    config: schema.Config, overrides: dict[str, Any], *, command: str, console: Console | None = None
) -> SweepSummary:
    """Run a sweep, or resume one.

    Args:
        config: The experiment; with ``resume`` set, it is read from that folder.
        overrides: Keys of the command line, which apply to a resumed sweep as well.
        command: ``sweep`` or ``train``, for the commands that are printed.
        console: Where to print; by default standard output.

    Returns:
        The trials.

    Raises:
        UserError: Before any worker has started, for something that the user can fix.
        Interrupted: On Ctrl-C.
        LockLost: Another driver has taken over the folder, as it may while this one is suspended.
    """
    plan = resolve(config, overrides)
    with open_sweep(plan, command, console) as sweep:
        sweep.prepare()
        try:
            sweep.search()
            sweep.score_finalists()
            sweep.finalize()
        except LockLost:
            # What the tracker has not got yet is the other driver's to send.
            sweep.tracker.close(flush_timeout=0.0)
            raise
    if sweep.interrupted:
        resume = format_command(command, {"resume": plan.output})
        raise Interrupted(f"interrupted; resume with: {resume}")
    print_results(plan.config, sweep.summary, command, sweep.display.console)
    return sweep.summary


def exit_status(config: schema.Config, overrides: dict[str, Any], *, command: str) -> int:
    """Run a sweep, and return the exit status of its command.

    Args:
        config: The experiment.
        overrides: Keys of the command line.
        command: ``sweep`` or ``train``.

    Returns:
        0; 1 where no trial was evaluated; 130 after Ctrl-C.
    """
    try:
        summary = run(config, overrides, command=command)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped before any trial had started", file=sys.stderr)
        return 130
    return 0 if summary.best() else 1


@contextlib.contextmanager
def open_sweep(plan: SweepPlan, command: str, console: Console | None = None) -> Iterator[Sweep]:
    """Open a sweep: its log and display, the lock of its folder, its tracker and its cluster.

    Args:
        plan: The sweep.
        command: ``sweep`` or ``train``, for the commands that are printed.
        console: Where to print; by default standard output.

    Raises:
        UserError: The log cannot be written, another driver has the folder, or the tracker or the cluster cannot be
            reached.
    """
    config = plan.config
    cluster.check_address(config)
    summary = SweepSummary(
        plan.output,
        metric=config.sweep.metric,
        mode=config.sweep.mode,
        shown=schema.monitored_metrics(config),
        facts={},
        trials=plan.trials,
        finalists=read_finalists(plan.summary, plan.trials, plan.output),
        steps=trial_steps(config),
    )
    display = Display(summary, config.name, console, config.log)
    with display, lock.acquire(plan.output) as held:
        log.info(_first_line(plan))
        log.info("Ray starts ...")
        require_unchanged(plan)
        summary.verify = held.verify
        tracker = Tracker(
            str(config.tracking.uri),
            config.tracking.experiment or config.name,
            artifacts=plan.artifacts,
            journal=journal_path(plan.output),
            folder=plan.output,
            notify=log.info,
            package=write_package,
        )
        with cluster.connected(config) as capacity:
            yield Sweep(plan, command, summary, display, tracker, capacity, held.owner)


def _first_line(plan: SweepPlan) -> str:
    """Return the first message of a sweep: number of trials, expected time, and where the results go."""
    config, count = plan.config, search.count_trials_left(plan.config, plan.trials)
    # A sweep that is resumed has trials of its own to estimate by, once the cluster is known.
    seconds = None if any(record.seconds for record in plan.trials) else expected_seconds(config)
    size = f"{config.name}: {_count(count, 'trial')}"
    if seconds is not None:
        size += f", {time_left(Eta(seconds, seconds))} if it takes as long as the last sweep of this config"
    return f"{size}; results go to {plan.output}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


@dataclasses.dataclass
class Sweep:
    """A sweep whose folder, tracker and cluster are open.

    Attributes:
        plan: Its config, data and first trials.
        command: ``sweep`` or ``train``, for the commands that are printed.
        summary: Its trials.
        display: The terminal.
        tracker: MLflow.
        capacity: Resources of the cluster and of a worker.
        owner: Owner of the folder's lock, which the trials' workers look for before they write.
        finals_left: Whether finalists are left to be scored, after Ctrl-C.
    """

    plan: SweepPlan
    command: str
    summary: SweepSummary
    display: Display
    tracker: Tracker
    capacity: cluster.Capacity
    owner: str
    finals_left: bool = False

    @property
    def interrupted(self) -> bool:
        """Whether trials are left to run, or finalists to be scored."""
        return self.finals_left or any(record.status not in TERMINAL_STATUSES for record in self.summary.trials)

    def prepare(self) -> None:
        """Make what all trials share, and write the config, the summary and the tracker's run."""
        config = self.plan.config
        keep_choices(self.plan.output, config)
        label = prepare_shared(config, self.capacity)
        self.summary.verify()
        if self.plan.imported:
            with writing(self.plan.output):
                self.plan.imported.write(imported_start(self.plan.output), config, self.plan.store)
        self.summary.facts = self._metadata(label)
        self._start_run(label)
        self.summary.verify()
        self._write_config()
        imported = self.plan.imported.notes if self.plan.imported else ()
        for note in (*imported, *self.plan.notes, *preflight_notes(config, self.capacity, self.plan.store)):
            log.info(note)
        self.summary.write()

    def _write_config(self) -> None:
        """Write the config; a checkpoint below the folder is relative to it, as in the summary."""
        config, url = self.plan.config, f"{self.plan.output}/{CONFIG_FILE}"
        start = config.checkpoint and relative_place(absolute_folder(self.plan.output), config.checkpoint)
        values = schema.to_dict(dataclasses.replace(config, checkpoint=start))
        write_file(url, yaml.safe_dump(values, sort_keys=False).encode())
        self.tracker.log_files(None, [url])

    def search(self) -> None:
        """Run the trials that are left."""
        config, capacity = self.plan.config, self.capacity
        searcher, count = search.make_searcher(config, self.plan.space, self.plan.trials)
        concurrent = min(capacity.concurrent_trials, config.sweep.max_concurrent or capacity.concurrent_trials)
        status = self.display.status
        status.rungs = search.scheduled_rungs(config, self.plan.space)
        status.finals_seconds = lambda: finals_seconds(config, self.summary, capacity, status.trials)
        log.info(self._size(count, concurrent))
        with self.display.sweep(count, concurrent):
            # Population-based training passes checkpoints from one trial to another, by files that name them.
            nodes = len(capacity.nodes)
            shared = config.sweep.scheduler == "pbt" and nodes > 1
            with cluster.storage_folder(self.plan.output, shared=shared, num_nodes=nodes) as storage, _silence_ray():
                self._run_tune(searcher, count, concurrent, storage)

    def score_finalists(self) -> None:
        """Score the best trials again where they are too close to tell; nothing after an interruption."""
        if self.interrupted:
            return
        try:
            score_finalists(self.plan.config, self.summary, self.capacity, self.display.console)
        except KeyboardInterrupt:
            self.finals_left = True

    def _size(self, count: int, concurrent: int) -> str:
        """Return the size of the search in a line: its trials, its space, and when it is expected to end."""
        config, capacity, points = self.plan.config, self.capacity, self.plan.space.grid_size(math.inf)
        workers = ", ".join(f"{amount:g} {resource}" for resource, amount in capacity.worker.items())
        # A grid's trials are its points, and without a space there is one.
        known = self.plan.space and config.sweep.search != "grid" and math.isfinite(points)
        of_space = f"the space has {int(points):,} points; " if known else ""
        rounds = math.ceil(count / concurrent)
        # Trials that are pruned make room before they have run as long as the others.
        most = "at most " if config.sweep.scheduler == "asha" else ""
        return (
            f"{config.name}: {_count(count, 'trial')} to run, {concurrent} at a time: {most}{_count(rounds, 'round')}, "
            f"{self.display.expected_end(count, concurrent)}; {of_space}each on "
            f"{_count(capacity.num_workers, 'worker')} of {workers}; MLflow is at {config.tracking.uri}"
        )

    def finalize(self) -> None:
        """Write the report, register the best model, and close the tracker."""
        finalize(
            self.plan.config,
            self.summary,
            self.tracker,
            self.command,
            interrupted=self.interrupted,
        )

    def _metadata(self, label: str | None) -> dict[str, Any]:
        """Return the summary's metadata of the sweep."""
        config, store, beta = self.plan.config, self.plan.store, sampling_beta(self.plan.config)
        return {
            "experiment": config.name,
            **self.plan.experiment,
            "measure": tasks.make(config).measure(label),
            **({"extractor": label} if label else {}),
            **({} if beta is None else {BETA: beta, "temperature": describe_temperature(beta)}),
            "workers_per_trial": self.capacity.num_workers,
            "gpus_per_trial": float(self.capacity.num_workers * self.capacity.worker.get("GPU", 0)),
            "store": store.url,
            "store_checksum": store.manifest.digest,
            "tracking_uri": config.tracking.uri,
            "named": self.plan.overrides,
        }

    def _start_run(self, label: str | None) -> None:
        """Open the sweep's run in the tracker, and note its ids in the summary."""
        config, beta = self.plan.config, sampling_beta(self.plan.config)
        self.tracker.start_sweep(
            self.plan.output.rstrip("/").rsplit("/", 1)[-1],
            provenance.shown_params(as_used(config), {}) | {"output": config.output},
            markdown(current_results(config, self.summary)),
            extractor=label,
            run_id=self.plan.run_id,
        )
        self.tracker.tag(None, provenance.tags(config) | ({} if beta is None else {BETA: f"{beta:g}"}))
        records = self.summary
        has_finals = fewest_candidates(config, config.sweep.num_trials) is not None
        columns, searched = view_columns(records), list(self.plan.space)
        self.tracker.share_view(columns, records.metric, records.mode, searched, has_finals=has_finals)
        self.tracker.log_data(provenance.describe_dataset(self.plan.store))
        if self.plan.run_id and self.tracker.run_id != self.plan.run_id:
            restore_runs(config, self.summary, self.tracker)
        self.summary.facts["mlflow_experiment_id"] = self.tracker.experiment_id
        self.summary.facts["mlflow_run_id"] = self.tracker.run_id

    def _run_tune(self, searcher: search.ResumableSearcher, count: int, concurrent: int, storage: str) -> None:
        config, space, trials = self.plan.config, self.plan.space, self.plan.trials
        # Population-based training takes no searcher.
        if config.sweep.scheduler == "pbt":
            proposals: dict[str, Any] = {"config": search.pbt_config(trials)}
        else:
            proposals = {"search_alg": searcher, "num_samples": count}
        settings = {
            "config": schema.to_dict(config),
            "worker": self.capacity.worker,
            "is_alone": self.capacity.is_alone,
            "owner": self.owner,
            "storage": storage,
            "plugins": plugins.sources(),
        }
        # One worker is the trial's own process, and keeps what it has imported, or loaded, for the next trial.
        is_alone = self.capacity.is_alone
        resources = tune.PlacementGroupFactory([self.capacity.worker]) if is_alone else cluster.TRIAL_RESOURCES
        function = sampler_trainable if is_sampler_search(config) else trainable
        tune.run(
            tune.with_resources(tune.with_parameters(function, settings=settings), resources),
            reuse_actors=is_alone,
            scheduler=search.make_scheduler(config, space, trials),
            **proposals,
            max_concurrent_trials=concurrent,
            callbacks=[SweepCallback(config, self.summary, self.tracker, self.display)],
            raise_on_failed_trial=False,
            # Failures of the trials' own processes, as when their machine is lost.
            max_failures=config.scale.max_restarts,
            trial_name_creator=lambda trial: trial.config[TRIAL_NAME_KEY],
            trial_dirname_creator=lambda trial: f"{trial.config[TRIAL_NAME_KEY]}-{trial.trial_id}",
            verbose=0,
            **cluster.ray_storage(storage),
        )


@contextlib.contextmanager
def _silence_ray() -> Iterator[None]:
    """Keep Ray's own notes on a run's progress off the terminal; its warnings and errors stay in its log files."""
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance", category=UserWarning)
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
