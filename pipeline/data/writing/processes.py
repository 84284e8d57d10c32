"""Tasks in several processes that count together, and stop together after an error or an interruption."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.shared_memory import SharedMemory
from typing import TypeVar

from pipeline.runtime.processes import exit_with_parent

__all__ = ["map_in_processes"]

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


class _Stopped(Exception):
    """The run is over, and this task is no longer needed."""


class _SharedProgress:
    """Samples done, and a request to stop, in memory that all processes of a run map.

    It is sent to another process by its name. Each batch of tasks counts in a slot of its own, so there is no lock.

    Args:
        num_slots: Number of batches of tasks.
    """

    def __init__(self, num_slots: int) -> None:
        self._format = f"{1 + num_slots}q"
        self._memory = SharedMemory(create=True, size=struct.calcsize(self._format))

    def count(self, slot: int, samples: int) -> None:
        """Count samples that are done.

        Raises:
            _Stopped: If the run is over.
        """
        stopped, *counts = self._values()
        if stopped:
            raise _Stopped
        struct.pack_into("q", self._buffer, struct.calcsize(f"{1 + slot}q"), counts[slot] + samples)

    def total(self) -> int:
        """Return the number of samples done in all processes."""
        return sum(self._values()[1:])

    def stop(self) -> None:
        """Make the other processes stop at their next image."""
        struct.pack_into("q", self._buffer, 0, 1)

    def close(self) -> None:
        """Delete the memory, in the process that made it."""
        self._memory.close()
        self._memory.unlink()

    @property
    def _buffer(self) -> memoryview:
        if self._memory.buf is None:
            raise ValueError("the shared memory is closed")
        return self._memory.buf

    def _values(self) -> tuple[int, ...]:
        return struct.unpack_from(self._format, self._buffer)


def map_in_processes(
    function: Callable[[Callable[[int], None], TaskT], ResultT],
    tasks: Sequence[TaskT],
    num_processes: int,
    advance: Callable[[int], None],
) -> list[ResultT]:
    """Call a function for each task, in processes of their own.

    Args:
        function: Takes a function that counts samples that are done, and a task. It is sent once to each process, and
            should count often: a process whose run is over stops where it counts next.
        tasks: The tasks.
        num_processes: Number of processes, one at least.
        advance: Takes the number of samples that all processes have done since it was called last.

    Returns:
        The results, in the order in which processes end.

    Raises:
        concurrent.futures.process.BrokenProcessPool: If a process was killed.
        Exception: What the function raised.
    """
    # Not fork: this process may hold threads (object stores run one), and a lock held by one would stay locked.
    context = multiprocessing.get_context("spawn")
    progress = _SharedProgress(num_processes)
    results, num_done = [], 0
    try:
        with ProcessPoolExecutor(num_processes, context, _initialize_process) as pool:
            # One batch of tasks a process: what they need is sent with it, such as a source of millions of names.
            waiting = {
                pool.submit(_run_batch, function, progress, slot, tasks[slot::num_processes])
                for slot in range(num_processes)
            }
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                    total = progress.total()
                    advance(total - num_done)
                    num_done = total
                    results += [result for future in done for result in future.result()]
            finally:
                # After an error or an interruption they stop at the next sample. This waits here rather than at the end
                # of the block, which would find nothing to wait for: a pool that is still ending as Python ends writes
                # a traceback.
                progress.stop()
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        progress.close()
    return results


def _initialize_process() -> None:
    # An interruption from the keyboard reaches every process; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()


def _run_batch(
    function: Callable[[Callable[[int], None], TaskT], ResultT],
    progress: _SharedProgress,
    slot: int,
    tasks: Sequence[TaskT],
) -> list[ResultT]:
    advance = functools.partial(progress.count, slot)
    return [function(advance, task) for task in tasks]
