"""A sweep from beginning to end, as the driver sees it. A single training run is a sweep of one trial."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import ray
import torch
import yaml
from ray import tune
from rich.console import Console

from pipeline import config as schema
from pipeline import tasks
from pipeline.config.compose import format_overrides
from pipeline.config.temperature import BETA, describe_temperature, sampling_beta
from pipeline.config.validation import validate
from pipeline.data import Store, fits_on_device
from pipeline.report.markdown import markdown
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local, write_file
from pipeline.sweep import cluster, lock, search
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.finalize import finish, found_so_far, show
from pipeline.sweep.space import initial_points, is_sampler_search, parse_space
from pipeline.sweep.trainable import TRIAL_NAME_KEY, trainable
from pipeline.tasks.store import ensure_store
from pipeline.tracking import provenance
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord, read_summary
from pipeline.tracking.tracker import Tracker, journal_path
from pipeline.training.checkpoints import load_state, read
from pipeline.training.export import write_package
from pipeline.training.model import build_model, trained_config

__all__ = [
    "Interrupted",
    "exit_status",
    "load_sweep",
    "run",
]


class Interrupted(Exception):
    """Ctrl-C; what was done is kept, and ``resume`` goes on from it."""


def load_sweep(folder: str) -> tuple[schema.Config, list[TrialRecord], dict[str, Any]]:
    """The config, the trials and the facts of an interrupted sweep.

    Args:
        folder: the sweep's folder, behind any fsspec URL.

    Raises:
        UserError: there is no sweep in it.
    """
    folder = _absolute(folder)
    summary, trials = read_summary(folder)
    files, path = fsspec.url_to_fs(folder)
    try:
        text = files.cat_file(f"{path}/config.yaml")
        # We write no aliases, and nested in one another a few of them fill any memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{folder}/config.yaml is damaged: it has aliases")
        config = schema.from_saved(yaml.safe_load(text))
    except (FileNotFoundError, yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{folder}/config.yaml cannot be read ({type(error).__name__})") from None
    config.output = folder
    for trial in trials:
        trial.status = trial.status if trial.status in TERMINAL_STATUSES else "pending"
    return config, trials, summary


def run(config: schema.Config, named: dict[str, Any], *, verb: str, console: Console | None = None) -> SweepSummary:
    """Run a sweep, or go on with one.

    Args:
        config: the experiment; with ``resume`` set, it is taken from the folder that names.
        named: keys that the command line names, which hold in a resumed sweep as well.
        verb: ``sweep`` or ``train``, for the commands that are printed.
        console: where to print.

    Returns:
        The trials.

    Raises:
        UserError: something the user can mend, before any worker has started.
        Interrupted: Ctrl-C.
    """
    earlier: list[TrialRecord] = []
    facts: dict[str, Any] = {}
    resuming = config.resume is not None
    if config.resume:
        log = config.log  # not that of the command that began it
        config, earlier, facts = load_sweep(config.resume)
        config = schema.apply(config, {key: value for key, value in named.items() if key not in ("resume", "output")})
        config.log = log
    elif config.checkpoint:
        config = _of_checkpoint(config, named)
    validate(config)
    space = parse_space(config)
    if is_sampler_search(config) and config.checkpoint is None:
        raise UserError("a search over the sampler alone needs a trained model: give checkpoint=<a trial's folder>")
    if config.evaluation.weights:
        config.evaluation.weights = _absolute(config.evaluation.weights)  # workers run in folders of their own
    store = ensure_store(config)
    config.data.store = store.url
    output, uri, artifacts = _resolve_output(config, resuming=resuming)
    config.output, config.tracking.uri = output, uri
    points = initial_points(config, space)  # a resumed sweep may have been given more of them
    earlier += [TrialRecord(f"{index:03d}", points[index]) for index in range(len(earlier), len(points))]
    records = SweepSummary(
        output,
        metric=config.sweep.metric,
        mode=config.sweep.mode,
        shown=schema.monitored_metrics(config),
        facts={},
        trials=earlier,
    )
    display = Display(records, config.name, config.train.base_steps, console, config.log)
    console = display.console
    with contextlib.closing(display), lock.acquire(output):
        tracker = Tracker(
            uri,
            config.tracking.experiment or config.name,
            artifacts=artifacts,
            journal=journal_path(output),
            folder=output,
            notify=display.say,
            package=write_package,
        )
        with cluster.connected(config) as capacity:
            fitting = min(capacity.concurrent_trials, config.sweep.max_concurrent or capacity.concurrent_trials)
            label = _prepare_shared(config, capacity, console)
            name = output.rstrip("/").rsplit("/", 1)[-1]
            beta = sampling_beta(config)
            records.facts = {
                "experiment": config.name,
                "measure": tasks.make(config).measure(label),
                **({"extractor": label} if label else {}),
                **({} if beta is None else {BETA: beta, "temperature": describe_temperature(beta)}),
                "store": store.url,
                "store_checksum": store.manifest.digest,
                "tracking_uri": uri,
                "named": " ".join([str(facts.get("named", "")), *format_overrides(named)]).strip(),
            }
            tracker.start_sweep(
                name,
                schema.to_dict(config),
                markdown(found_so_far(config, records)),
                extractor=label,
                run_id=facts.get("mlflow_run_id"),
            )
            tracker.tag(None, provenance.tags(config) | ({} if beta is None else {BETA: f"{beta:g}"}))
            tracker.log_data(provenance.describe_dataset(store))
            records.facts |= {"mlflow_experiment_id": tracker.experiment_id, "mlflow_run_id": tracker.run_id}
            write_file(f"{output}/config.yaml", yaml.safe_dump(schema.to_dict(config), sort_keys=False).encode())
            tracker.log_files(None, [f"{output}/config.yaml"])
            _print_preflight(config, capacity, store, console)
            records.write()
            searcher, count = search.make_searcher(config, space, earlier)
            workers = ", ".join(f"{amount:g} {resource}" for resource, amount in capacity.worker.items())
            display.say(
                f"{config.name}: {count} trial(s) to run, {fitting} at a time, "
                f"each on {capacity.num_workers} worker(s) of {workers}; MLflow is at {uri}"
            )
            with display.sweep(count, fitting):
                cluster.remove_ray_storage(output)
                if config.sweep.scheduler == "pbt":
                    trials = {"config": search.pbt_config(space, earlier)}
                else:
                    trials = {"search_alg": searcher, "num_samples": count}
                with _silence_ray():
                    tune.run(
                        tune.with_resources(
                            tune.with_parameters(trainable, settings=_settings(config, capacity)),
                            cluster.TRIAL_RESOURCES,
                        ),
                        scheduler=search.make_scheduler(config, space, earlier),
                        **trials,
                        max_concurrent_trials=fitting,
                        callbacks=[SweepCallback(config, records, tracker, display)],
                        raise_on_failed_trial=False,
                        max_failures=config.scale.max_restarts,  # of the trials' own processes, with their machines
                        trial_name_creator=lambda trial: trial.config[TRIAL_NAME_KEY],
                        trial_dirname_creator=lambda trial: f"{trial.config[TRIAL_NAME_KEY]}-{trial.trial_id}",
                        verbose=0,
                        **cluster.ray_storage(output),
                    )
            interrupted = any(record.status not in TERMINAL_STATUSES for record in records.trials)
            finish(config, records, tracker, verb, console, interrupted=interrupted)
    if interrupted:
        raise Interrupted(f"stopped; go on with: python -m pipeline.{verb} resume={output}")
    show(config, records, verb, console)
    return records


def exit_status(config: schema.Config, named: dict[str, Any], *, verb: str) -> int:
    """Run a sweep as a command does.

    Args:
        config: the experiment.
        named: keys that the command line names.
        verb: ``sweep`` or ``train``.

    Returns:
        0; 1 where no trial was evaluated; 130 after Ctrl-C.
    """
    try:
        records = run(config, named, verb=verb)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped before any trial had started", file=sys.stderr)
        return 130
    return 0 if records.best() else 1


def _resolve_output(config: schema.Config, *, resuming: bool) -> tuple[str, str, str | None]:
    """The results' folder, the tracker, and where a new MLflow experiment keeps artifacts (None: it decides)."""
    default = Path("results").absolute()
    output = _absolute(config.output or str(default / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    files, path = filesystem(output)
    try:
        if not resuming and files.exists(f"{path}/summary.json"):
            raise UserError(f"there is a sweep in {output} already: go on with resume={output}, or name another output")
        write_file(f"{output}/.writable", b"")
        files.rm(f"{path}/.writable")
    except UserError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot write to output={output} ({reason})") from None
    if config.tracking.uri:
        return output, config.tracking.uri, None
    default.mkdir(parents=True, exist_ok=True)
    return output, f"sqlite:///{default / 'mlflow.db'}", (default / "artifacts").as_uri()


def _absolute(url: str) -> str:
    # Without a slash at its end: to an object store "x/" + "/y" is another place than "x" + "/y".
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())


def _settings(config: schema.Config, capacity: cluster.Capacity) -> dict[str, Any]:
    return {"config": schema.to_dict(config), "worker": capacity.worker}


def _of_checkpoint(config: schema.Config, named: dict[str, Any]) -> schema.Config:
    """The config of a trained model to start from, with the search, and with what the command line names."""
    config.checkpoint = _absolute(str(config.checkpoint))
    checkpoint = read(config.checkpoint)
    trained = trained_config(checkpoint)
    space = config.sweep.space
    if space == config.spaces.get("sampler") and "sweep.space" not in named:
        space = trained.spaces.get("sampler", space)  # of the experiment it was trained in
    command = {key: getattr(config, key) for key in ("scale", "ray", "tracking", "output", "resume", "log")}
    # How to search is the command's, and by what to rank is the experiment's that the model was trained in.
    sweep = dataclasses.replace(config.sweep, space=space, metric=trained.sweep.metric, mode=trained.sweep.mode)
    config = dataclasses.replace(trained, **command, sweep=sweep, checkpoint=checkpoint.url)
    apart = ("checkpoint", "output", "resume")
    config = schema.apply(config, {key: value for key, value in named.items() if key not in apart})
    load_state(build_model(config), checkpoint)
    if is_sampler_search(config):
        config.train.base_steps = checkpoint.state["base_step"]  # trained already: nothing to add but the sampling
    return config


def _print_preflight(config: schema.Config, capacity: cluster.Capacity, store: Store, console: Console) -> None:
    """Say where shards are kept, and what need not be wrong, and often is."""
    data, far = config.data, not is_local(filesystem(store.url)[0])
    # A GPU holds what it has room for, and how much that is only its worker knows.
    held = (
        config.task != "images"
        or data.device_resident
        or "GPU" in capacity.worker
        or fits_on_device(store, torch.device("cpu"))
    )
    if far and data.cache is not None:
        console.print(
            f"shards are kept in {data.cache} of each machine, up to {data.cache_limit_gib:g} GiB", highlight=False
        )
    elif far and not held:
        console.print(
            f"note: {store.url} is read anew in each epoch and by each trial; data.cache=/a/folder/of/each/machine "
            f"keeps its shards there",
            highlight=False,
        )
    if len(capacity.nodes) > 1:
        for key, url in (("output", str(config.output)), ("data.store", config.data.store)):
            if is_local(filesystem(url)[0]):
                console.print(
                    f"note: {key}={url} is a local path and the cluster has {len(capacity.nodes)} nodes: all of them "
                    f"have to see it there, as on a network file system; else name a place such as s3://bucket/...",
                    highlight=False,
                )


def _prepare_shared(config: schema.Config, capacity: cluster.Capacity, console: Console) -> str | None:
    """Make once what all trials need, such as the feature extractor and the data's statistics."""
    console.print(f"preparing what {config.name} is measured with, from {config.data.store} ...", highlight=False)
    gpus = capacity.preparation.get("GPU", 0)
    remote = ray.remote(num_cpus=capacity.preparation["CPU"], num_gpus=gpus)(_prepare_task)
    try:
        return ray.get(remote.remote(schema.to_dict(config), "cuda" if gpus else "cpu"))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _prepare_task(values: dict[str, Any], device: str) -> str | None:
    config = schema.from_dict(values)
    return tasks.make(config).prepare(tasks.open_data(config.data), torch.device(device))


@contextlib.contextmanager
def _silence_ray() -> Iterator[None]:
    """Ray's own notes on a run's progress are ours to give; its warnings and errors stay in its log files."""
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
