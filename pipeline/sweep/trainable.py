"""Trainable of Tune: a function that trains a trial, in this process or on several workers, and passes its reports on.

One worker trains in this very process. Of several, this process only waits for them. So this file does not import
torch, nor what imports it.
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.util.queue import Queue

from pipeline import config as schema
from pipeline.config.plugins import install
from pipeline.runtime.errors import LockLost, NonFiniteLoss, Preempted, UserError, one_line
from pipeline.runtime.lock import verify_owner
from pipeline.runtime.redaction import redact, redacted_errors
from pipeline.sweep.cluster import ray_storage
from pipeline.sweep.own_process import train_here, wait_until_taken_away
from pipeline.sweep.own_reports import OwnReports
from pipeline.sweep.train_run import TrainRun, set_environment

__all__ = ["TRIAL_NAME_KEY", "report_end", "report_to_tune", "trainable"]

# The search puts a trial's name among its parameters under this key.
TRIAL_NAME_KEY = "trial"

_POINTER = "checkpoint.json"

# Kinds of a failure that have a meaning here, the one that says most first; any other is an ``Exception``.
_KINDS = (LockLost, UserError, NonFiniteLoss, Preempted)


def trainable(params: dict[str, Any], settings: dict[str, Any]) -> None:
    """Train a trial, and pass its reports on to Tune.

    In population-based training, each report that has a checkpoint comes with a file that names it, which is given to
    the trial that exploits it. The weights themselves never pass through Tune.

    Args:
        params: Keys of the experiment that the search has set, and the trial's name.
        settings: The experiment as a nested dict, the resources of a worker, whether it is the only one, the owner of
            the folder's lock, and the folder of Ray's state.
    """
    try:
        with redacted_errors():
            _train(params, settings)
    except (UserError, LockLost) as error:
        report_end("error", str(error))
    except Exception as error:
        # Tune tries again in another process: this one may have a GPU that answers no more.
        report_end("failure", _cause(error)[1])
        raise


def _train(params: dict[str, Any], settings: dict[str, Any]) -> None:
    """Train a trial in as many attempts as it may have here; another process may have others."""
    # Not the parameter of that name: population-based training copies it, too, from the trial that is exploited.
    name = tune.get_context().get_trial_name()
    params = {key: value for key, value in params.items() if key != TRIAL_NAME_KEY}
    install(settings["plugins"])
    config = schema.apply(schema.from_dict(settings["config"]), params)
    url = f"{config.output}/trials/{name}"
    exploited = _checkpoint_url(tune.get_checkpoint())
    if exploited and not exploited.startswith(f"{url}/"):
        from pipeline.training.checkpoints import Checkpoints

        verify_owner(str(config.output), settings["owner"])
        Checkpoints(url).import_checkpoint(exploited)
    train = _train_alone if settings["is_alone"] else _train_on_workers
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
        error = train(config, work, name, settings)
        if error is None:
            return
        kind, cause = _cause(error)
        if kind is NonFiniteLoss and nonfinite_retries_left:
            nonfinite_retries_left, lr_scale = nonfinite_retries_left - 1, lr_scale / 2
            cause = f"{cause}; with half the learning rates"
        elif kind is Exception and settings["is_alone"]:
            raise error
        elif kind is Exception and restarts_left:
            restarts_left -= 1
        elif kind is not Preempted:
            report_end("error", cause)
            return
        report_end("restart", cause)
        # Its traceback has the model, which the next attempt would find on the device.
        del error
        if kind is Preempted and settings["is_alone"]:
            wait_until_taken_away()


def _train_alone(config: schema.Config, work: dict[str, Any], name: str, settings: dict[str, Any]) -> Exception | None:
    """Train in this process, to the end or to a failure, which is returned."""
    reports, stopped, gpus = OwnReports(), threading.Event(), settings["worker"].get("GPU", 0)
    train = functools.partial(train_here, work, reports.put, reports.is_behind, stopped, gpus)
    return _pass_on(config, reports, reports.end, train, stopped)


def _train_on_workers(
    config: schema.Config, work: dict[str, Any], name: str, settings: dict[str, Any]
) -> Exception | None:
    """Train on workers, to the end or to their failure, which is returned."""
    set_environment(config.scale.timeout)
    worker, reports = settings["worker"], Queue(actor_options={"num_cpus": 0})
    min_workers, num_workers = config.scale.min_workers or config.scale.num_workers, config.scale.num_workers
    trainer = TrainRun(
        work,
        reports,
        scaling=ray.train.ScalingConfig(
            num_workers=num_workers if min_workers == num_workers else (min_workers, num_workers),
            use_gpu="GPU" in worker,
            resources_per_worker=worker,
        ),
        run=ray_storage(settings["storage"], f"trial-{name}"),
    )
    # A trial that is stopped takes its workers along.
    return _pass_on(config, iter(reports.get, None), lambda: reports.put(None), trainer.fit, threading.Event())


def _pass_on(
    config: schema.Config,
    reports: Iterable[dict[str, Any]],
    end: Callable[[], None],
    train: Callable[[], Any],
    stopped: threading.Event,
) -> Exception | None:
    """Train in a thread while reports are passed on to Tune, which may take its time; return what the training raised.

    Args:
        config: The experiment.
        reports: Yields the reports, until they are ended.
        end: Ends them.
        train: Trains.
        stopped: Set where Tune stops the trial, which it does when it has got a report.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            train()
        except BaseException as error:
            raised.append(_as_failure(error))
        finally:
            end()

    # A daemon: a process that has to end does not wait for it.
    thread = threading.Thread(target=run, name="train", daemon=True)
    thread.start()
    try:
        for report in reports:
            report_to_tune(report, with_checkpoint=config.sweep.scheduler == "pbt")
    except BaseException:
        stopped.set()
        raise
    finally:
        # The next trial has this process for itself.
        thread.join()
    return raised[0] if raised else None


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


def report_end(kind: str, reason: str) -> None:
    """Report to Tune why an attempt of a trial has ended before its last step.

    Args:
        kind: ``restart``; ``error``, which is final: it is reported and not raised, since after an exception, as when
            this process dies with its machine, Tune tries again; or ``failure``, of an exception that is raised then.
        reason: A one-line message.
    """
    tune.report({kind: reason, "reported": [kind]})


def _as_failure(error: BaseException) -> Exception:
    """Return what training raised as an exception that fails the trial.

    ``sys.exit()`` in a plugin and a panic of a library in Rust are none. They end a thread without a word, and the
    trial would count as pruned.
    """
    if isinstance(error, Exception):
        return error
    message = f"{type(error).__name__} ended the training: {redact(one_line(error))}"
    return RuntimeError(message).with_traceback(error.__traceback__)


def _cause(error: Exception) -> tuple[type[Exception], str]:
    """Return the kind of a failure, and its reason on one line.

    Of several workers an exception of a known kind comes first, since the others only lost a peer. Anything else is an
    ``Exception``: a process that was killed, a node that was lost, a network that broke, which need not happen again.
    """
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "cause", None) or failure for _, failure in sorted(failures.items())] or [error]
    for kind in _KINDS:
        for cause in causes:
            if isinstance(cause, kind):
                return kind, str(cause).strip()
    cause = causes[0]
    if "out of memory" in str(cause):
        return Exception, "out of memory; a smaller batch, or fewer trials side by side, need less"
    lines = [line for line in str(cause).splitlines() if line.strip()] or [""]
    worker = f"worker {min(failures)}: " if failures else ""
    return Exception, f"{worker}{type(cause).__name__}: {lines[-1].strip()}"


def _checkpoint_url(checkpoint: tune.Checkpoint | None) -> str | None:
    """Return the URL in the file that represents a checkpoint in Tune."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return json.loads(Path(folder, _POINTER).read_text())["url"]
