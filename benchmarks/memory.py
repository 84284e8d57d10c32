"""The most memory that some work ever held, each piece of work in a process of its own: peaks do not come down again.

On a GPU it is what torch's allocator handed out. On a CPU it is the process's largest resident set, interpreter, torch
and networks included. ``getrusage`` would give a new process the peak of the one that started it, so Linux's
``VmHWM`` is read where there is one: it is of this process alone.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_bytes"]


def peak_bytes(device: torch.device, work: Callable[..., object], *arguments: Any) -> int:
    """Run a module's function in a new process, and return the most memory it held, in bytes.

    Args:
        device: Whose memory.
        work: What to run; it and its arguments are sent to the process.
        *arguments: Its arguments.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, device, torch.get_num_threads(), work, arguments).result()


def _run(device: torch.device, threads: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> int:
    torch.set_num_threads(threads)
    work(*arguments)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident_peak()


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
