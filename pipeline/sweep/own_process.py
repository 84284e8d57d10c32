"""The one worker of a trial, in the trial's own process, which stays warm for the next trial.

A trial of several workers is a run of Ray Train, with processes of its own for the controller, the queue, the clean-up
and each worker. One worker needs none of them: it trains in the process that Tune has started for the trial, and Tune
gives that process one trial after another, so that it imports torch once.

Nothing here imports torch before a trial trains.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import state

from pipeline.runtime.redaction import redacted_errors

__all__ = ["forget_compiled_graphs", "is_preempted", "train_here", "wait_until_taken_away"]

_POLL_SECONDS = 1.0
# Of this process, at any trial.
_attempts = itertools.count()


def train_here(
    work: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
    is_behind: Callable[[], bool],
    stopped: threading.Event,
    gpus: float,
) -> None:
    """Run a trial's loop in this process.

    Args:
        work: Argument of :func:`pipeline.training.loop.train_loop`.
        report: Takes the trial's reports.
        is_behind: Returns whether the sweep has still to decide on the last report; see
            :class:`pipeline.training.session.Session`.
        stopped: Set when the sweep has stopped the trial.
        gpus: GPUs of this process.

    Raises:
        Stopped: The sweep has stopped the trial.
        Exception: What the loop raises, without credentials.
    """
    import torch

    from pipeline.training.loop import train_loop
    from pipeline.training.session import Session, Stopped
    from pipeline.training.worker import Worker

    def require_running() -> None:
        if stopped.is_set():
            raise Stopped

    forget_compiled_graphs()
    # Remains of an attempt before this one, or of another trial, whose modules are in cycles.
    gc.collect()
    if gpus and torch.cuda.is_initialized():
        # No part of the allocator's cache, and there is no public name for it.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    worker = Worker.alone(gpus, is_fresh=next(_attempts) == 0)
    with redacted_errors():
        train_loop(work, worker, Session(report, is_preempted, require_running, is_behind))


def forget_compiled_graphs() -> None:
    """Have torch forget what earlier trials compiled, which it would keep for the life of the process.

    Its cache on disk stays, so that the same graph is not compiled again.
    """
    # Loaded where something has been compiled.
    code = sys.modules.get("torch._inductor.codecache")
    if code is not None:
        import torch._dynamo

        torch._dynamo.reset()
        code.PyCodeCache.cache_clear()


def is_preempted() -> bool:
    """Return whether the machine of this process is about to be taken away; not where Ray does not answer.

    A trial checks it each second, and a missing answer is no reason to end it.
    """
    return _is_draining() or False


def wait_until_taken_away() -> None:
    """Wait for the end of the machine, and so of this process; return where it stays after all.

    Tune starts the trial on another machine then, and does not count that as a failure. While the machine goes, Ray may
    no longer answer.
    """
    while _is_draining() is not False:
        time.sleep(_POLL_SECONDS)


def _is_draining() -> bool | None:
    """Return whether the machine is about to be taken away; None where that is not known."""
    # Ray would start a cluster of its own to answer.
    if not ray.is_initialized():
        return False
    try:
        # As in the preemption watcher of Ray Train.
        return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
    # Its client raises several kinds, none of them documented.
    except Exception:
        return None
