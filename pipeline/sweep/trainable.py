"""Trainable of Tune: a function that runs a trial's workers by Ray Train, and passes their reports on.

Its process only waits for the workers, so this file does not import torch, nor what imports it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.util.queue import Empty, Queue

from pipeline import config as schema
from pipeline.config.plugins import install
from pipeline.runtime.errors import LockLost, NonFiniteLoss, Preempted, UserError
from pipeline.runtime.lock import verify_owner
from pipeline.sweep.cluster import ray_storage
from pipeline.sweep.train_run import TrainRun, set_environment

__all__ = ["TRIAL_NAME_KEY", "report_to_tune", "trainable"]

# The search puts a trial's name among its parameters under this key.
TRIAL_NAME_KEY = "trial"

_POINTER = "checkpoint.json"


def trainable(params: dict[str, Any], settings: dict[str, Any]) -> None:
    """Run a trial: a run of Ray Train, whose reports are passed on to Tune.

    In population-based training, each report that has a checkpoint comes with a file that names it, which is given to
    the trial that exploits it. The weights themselves never pass through Tune.

    Args:
        params: Keys of the experiment that the search has set, and the trial's name.
        settings: The experiment as a nested dict, the resources and the environment of a worker, the owner of the
            folder's lock, and the folder of Ray's state.
    """
    # Not the parameter of that name: population-based training copies it, too, from the trial that is exploited.
    name = tune.get_context().get_trial_name()
    params = {key: value for key, value in params.items() if key != TRIAL_NAME_KEY}
    install(settings["plugins"])
    config = schema.apply(schema.from_dict(settings["config"]), params)
    set_environment(config.scale.timeout)
    url = f"{config.output}/trials/{name}"
    exploited = _checkpoint_url(tune.get_checkpoint())
    if exploited and not exploited.startswith(f"{url}/"):
        from pipeline.training.checkpoints import Checkpoints

        try:
            verify_owner(str(config.output), settings["owner"])
            Checkpoints(url).import_checkpoint(exploited)
        except (UserError, LockLost) as error:
            tune.report({"error": str(error), "reported": ["error"]})
            return
    reports: Queue = Queue(actor_options={"num_cpus": 0})
    restarts_left, nonfinite_retries_left, lr_scale = (
        config.scale.max_restarts,
        config.train.max_nonfinite_restarts,
        1.0,
    )
    while True:
        work = {
            "config": schema.to_dict(config),
            "url": url,
            "lr_scale": lr_scale,
            "owner": settings["owner"],
            "plugins": settings["plugins"],
        }
        error = _train(config, work, name, settings, reports)
        if error is None:
            return
        kind, cause = _cause(error)
        if kind is NonFiniteLoss and nonfinite_retries_left:
            nonfinite_retries_left, lr_scale = nonfinite_retries_left - 1, lr_scale / 2
            cause = f"{cause}; with half the learning rates"
        elif kind is Exception and restarts_left:
            restarts_left -= 1
        elif kind is not Preempted:
            # Reported and not raised: after an exception, as when this process dies with its machine, Tune tries again.
            tune.report({"error": cause, "reported": ["error"]})
            return
        tune.report({"restart": cause, "reported": ["restart"]})


def _train(
    config: schema.Config, work: dict[str, Any], name: str, settings: dict[str, Any], reports: Queue
) -> ray.train.TrainingFailedError | None:
    """Train to the end, or to the workers' failure, which is returned; they resume from the trial's last checkpoint."""
    worker, exploited = settings["worker"], config.sweep.scheduler == "pbt"
    min_workers, num_workers = config.scale.min_workers or config.scale.num_workers, config.scale.num_workers
    trainer = TrainRun(
        work,
        reports,
        scaling=ray.train.ScalingConfig(
            num_workers=num_workers if min_workers == num_workers else (min_workers, num_workers),
            use_gpu="GPU" in worker,
            resources_per_worker=worker,
        ),
        run={
            **ray_storage(settings["storage"], f"trial-{name}"),
            "worker_runtime_env": {"env_vars": settings["environment"]},
        },
    )
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(trainer.fit)
        while not training.done() or not reports.empty():
            with contextlib.suppress(Empty):
                report_to_tune(reports.get(timeout=2.0), with_checkpoint=exploited)
        try:
            training.result()
        except ray.train.TrainingFailedError as error:
            return error
    return None


def report_to_tune(report: dict[str, Any], *, with_checkpoint: bool) -> None:
    """Pass a report to Tune.

    Args:
        report: Report of a trial's first worker.
        with_checkpoint: Whether it comes with a file that names its checkpoint, if it has one.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if with_checkpoint and report.get("checkpoint"):
            Path(folder, _POINTER).write_text(json.dumps({"url": report["checkpoint"]}))
            checkpoint = tune.Checkpoint.from_directory(folder)
        tune.report({**report, "reported": list(report)}, checkpoint=checkpoint)


def _cause(error: ray.train.TrainingFailedError) -> tuple[type[Exception], str]:
    """Return the kind of a failure, and its reason on one line.

    An exception with a name comes first, since the other workers only lost a peer. Anything else is an ``Exception``: a
    process that was killed, a node that was lost, a network that broke, which need not happen a second time.
    """
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = {rank: getattr(failure, "cause", None) or failure for rank, failure in sorted(failures.items())}
    for kind in (LockLost, UserError, NonFiniteLoss, Preempted):
        for cause in causes.values():
            if isinstance(cause, kind):
                return kind, str(cause).strip()
    rank, cause = next(iter(causes.items()))
    lines = [line for line in str(cause).splitlines() if line.strip()] or [""]
    if "out of memory" in str(cause):
        lines = ["out of memory; a smaller batch, or fewer trials side by side, need less"]
    return Exception, f"worker {rank}: {type(cause).__name__}: {lines[-1].strip()}"


def _checkpoint_url(checkpoint: tune.Checkpoint | None) -> str | None:
    """Return the URL in the file that represents a checkpoint in Tune."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return json.loads(Path(folder, _POINTER).read_text())["url"]
