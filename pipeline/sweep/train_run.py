"""Run of Ray Train for a trial of several workers: its workers, their function, and the way of their reports.

Ray Train's controller imports this file, as do the trial's own process and the workers. Only the workers need torch, so
nothing here imports it, nor what imports it.
"""

from __future__ import annotations

import os
from typing import Any

import ray.train
from ray.train import UserCallback
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.queue import Queue

from pipeline.runtime.redaction import redacted_errors

__all__ = ["TrainRun", "run_worker", "set_environment"]


class TrainRun(DataParallelTrainer):
    """Trainer that starts no actor for Ray's own datasets, of which there are none here.

    Args:
        work: Argument of :func:`run_worker`.
        reports: Gets the first worker's reports.
        scaling: The workers and their resources.
        run: Arguments of ``ray.train.RunConfig``.
    """

    def __init__(
        self, work: dict[str, Any], reports: Queue, *, scaling: ray.train.ScalingConfig, run: dict[str, Any]
    ) -> None:
        super().__init__(
            run_worker,
            train_loop_config=work,
            scaling_config=scaling,
            run_config=ray.train.RunConfig(**run, callbacks=[_Forward(reports)]),
        )

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


class _Forward(UserCallback):
    """Callback that puts the first worker's reports on the queue of the trial's own process."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._reports.put(metrics[0])


def set_environment(timeout: float) -> None:
    """Set what Ray Train reads from the environment, in the process of a trial that has several workers.

    Args:
        timeout: Seconds after which a worker that does not answer is given up.
    """
    # A worker waits with its next report until this one is fetched, by default every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    # A machine that is taken away leaves half a minute, of which by default five seconds would go by unnoticed.
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    # A worker that does not even answer is hung as a whole, and cannot end itself by its watchdog.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(timeout)
    # NCCL copies directly between GPUs that both processes can see.
    os.environ.setdefault("TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES", "1")


def run_worker(work: dict[str, Any]) -> None:
    """Run a trial's loop on one of its workers.

    Args:
        work: The experiment as a nested dict, the trial's folder, the factor of its learning rates, the owner of the
            folder's lock, and the plugins.
    """
    from pipeline.config.plugins import install
    from pipeline.training.loop import train_loop
    from pipeline.training.session import Session
    from pipeline.training.worker import Worker, process_group

    with redacted_errors():
        install(work["plugins"])
        with process_group(work["config"]["scale"]["timeout"]):
            session = Session(
                # Not the function itself, which Ray Train looks up in its context.
                report=lambda report: ray.train.report(report),
                is_preempted=lambda: ray.train.get_preemption_info() is not None,
            )
            train_loop(work, Worker.current(), session)
