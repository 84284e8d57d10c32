"""What every benchmark needs: the machine it runs on, how a time is taken, what the machine can reach, and a report.

*Times* are wall-clock seconds of repetitions after a warm-up, with the device waited for at both ends. What is compared
is run in turn within one process, and the turn begins with another one in each round: a machine that slows down or is
shared slows all of them down. A ratio is the median of the rounds' own ratios. The spread is the interquartile range.

*Ceilings* are measured, not taken from a data sheet: the fastest square matrix product, and the fastest copy of an
array that no cache holds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.tracking.seed_statistics import mean_and_error

__all__ = [
    "Mean",
    "Timing",
    "copy_ceiling",
    "describe",
    "interleaved",
    "matmul_ceiling",
    "ratio",
    "synchronise",
    "table",
    "write",
]

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")
_COPIED_BYTES = 256 * 2**20


def describe(device: torch.device) -> dict[str, Any]:
    """Return what a result means nothing without: processor, accelerator, versions, and how busy the machine is.

    Args:
        device: Where the benchmark runs.

    Returns:
        What JSON can hold. ``load`` is the mean number of running processes over the last minute.
    """
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpu, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpu, re.MULTILINE)
    known = flags[1].split() if flags else []
    found: dict[str, Any] = {
        "device": device.type,
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in _INSTRUCTIONS if name in known],
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            # torch makes this attribute at run time, where no type checker sees it.
            "float32_convolutions": torch.backends.cudnn.conv.fp32_precision,  # pyright: ignore[reportAttributeAccessIssue]
        }
    return found


@dataclass(frozen=True)
class Timing:
    """Repetitions of one measurement.

    Args:
        values: One number a repetition: seconds, or a ratio of two.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The interquartile range; zero of a single repetition."""
        if len(self.values) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return third - first

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "median": self.median,
            "spread": self.spread,
            "repetitions": len(self.values),
            "values": list(self.values),
        }

    def __str__(self) -> str:
        return f"{self.median:.4g} ± {self.spread:.2g}"


@dataclass(frozen=True)
class Mean:
    """Mean of values that are alike, and its standard error.

    Args:
        mean: The mean.
        error: Its standard error; NaN of a single value.

    Example:
        >>> print(Mean.of([3.0, 4.0, 5.0]), Mean(5.0, 0.3).minus(Mean(1.0, 0.4)))
        4 ± 0.58 4 ± 0.5
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of values."""
        estimate = mean_and_error(values)
        return cls(estimate.mean, estimate.error)

    def minus(self, other: Mean) -> Mean:
        """Return the difference to an independent mean."""
        return Mean(self.mean - other.mean, math.hypot(self.error, other.error))

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"mean": self.mean, "error": None if math.isnan(self.error) else self.error}

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if math.isnan(self.error) else f" ± {self.error:.2g}")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeat: int, warm_up: int = 1
) -> dict[str, Timing]:
    """Time several pieces of work in turn.

    Args:
        works: What to time, by name.
        device: Where the work is done.
        repeat: Rounds that count.
        warm_up: Rounds before them that do not.

    Returns:
        Seconds of each; the i-th value of all of them is from the same round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(warm_up + repeat):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken = _seconds(works[name], device)
            if turn >= warm_up:
                seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def ratio(reference: Timing, other: Timing) -> Timing:
    """Return how many times faster the other one is, round by round."""
    return Timing(tuple(slow / fast for slow, fast in zip(reference.values, other.values, strict=True)))


def matmul_ceiling(device: torch.device, precision: str, budget: float = 2.0) -> float:
    """Measure the fastest product of two square matrices, over sizes from 512 to 8192.

    Args:
        device: Where.
        precision: ``"float32"``, ``"bfloat16"``, or ``"tf32"``, the float32 with eleven significant bits that
            convolutions on a GPU are computed in unless torch is set otherwise.
        budget: Seconds that the measurement may take.

    Returns:
        Floating-point operations per second, a multiplication and an addition counting as two.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    end, best, size = time.perf_counter() + budget, 0.0, 512
    with _matmul_precision("high" if precision == "tf32" else "highest"):
        while size <= 8192:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            seconds = _fastest(lambda a=a, b=b: a @ b, device, min(end, time.perf_counter() + budget / 5))
            best = max(best, 2 * size**3 / seconds)
            # Twice the size takes eight times as long, and the first product of a size is not to be counted on.
            if time.perf_counter() + 16 * seconds > end:
                break
            size *= 2
    return best


def copy_ceiling(device: torch.device, budget: float = 1.0) -> float:
    """Measure the fastest copy of 256 MiB from memory to memory.

    Args:
        device: Where.
        budget: Seconds that the measurement may take.

    Returns:
        Bytes per second, those read and those written.
    """
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _fastest(lambda: target.copy_(source), device, time.perf_counter() + budget)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as aligned plain text: the first column to the left, the others to the right.

    Args:
        rows: What each holds, by the column's name; all have the same columns.
    """
    head = list(rows[0])
    lines = [head, *[[_cell(row[name]) for name in head] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write(folder: Path, benchmark: str, device: torch.device, settings: Mapping[str, Any], results: Any) -> Path:
    """Write a result as JSON, named after the benchmark and the device: results of two GPUs lie side by side.

    Args:
        folder: Where; made if it is not there.
        benchmark: The benchmark's name.
        device: Where it ran.
        settings: What it was called with.
        results: What it found; a :class:`Timing` becomes its median, spread and values, a :class:`Mean`
            the mean and its error.

    Returns:
        The file.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    path = folder / f"{benchmark}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    content = {
        "benchmark": benchmark,
        "machine": describe(device),
        "settings": {key: value for key, value in settings.items() if not isinstance(value, Path)},
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=_to_json) + "\n")
    return path


def _to_json(value: Timing | Mean) -> dict[str, Any]:
    return value.to_json()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def _fastest(work: Callable[[], object], device: torch.device, end: float) -> float:
    """Return the seconds of the fastest repetition: at least three, and more while time is left."""
    work()
    best = min(_seconds(work, device) for _ in range(3))
    while time.perf_counter() < end:
        best = min(best, _seconds(work, device))
    return best


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
