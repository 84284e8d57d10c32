"""Processor time of a command and of all that it starts, by kind of process, over time.

Each process is looked at four times a second: what one takes in its last quarter of a second is missing. Times of
processors and not of the clock, since another program on the machine makes these longer, but hardly those.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

__all__ = ["RAYS_OWN", "Usage", "kind_of", "measure", "run"]

RAYS_OWN = ("raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent", "idle", "other")
"""Kinds of process that Ray starts for itself; *other* are its dashboard, monitor and the like."""

_REPOSITORY = Path(__file__).resolve().parents[1]
_INTERVAL = 0.25
# A process by its number and the time of its start, since numbers are used again.
_Process = tuple[int, float]


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        times: When its processes were looked at, in seconds since 1970 (T,).
        seconds: Kind of process -> seconds of processor time, user and system, that those of it had taken by then (T,).
        processes: Kind of process -> how many there were.

    Example:
        >>> usage = Usage([10.0, 20.0, 30.0], {"driver": [1.0, 2.0, 6.0]}, {"driver": 1})
        >>> usage.between(15.0, 25.0), usage.wall
        ({'driver': 2.5}, 20.0)
    """

    times: list[float]
    seconds: dict[str, list[float]]
    processes: dict[str, int]

    @property
    def wall(self) -> float:
        """Seconds of the clock, from the start to the end."""
        return self.times[-1] - self.times[0]

    @property
    def total(self) -> dict[str, float]:
        """Kind of process -> seconds of processor time."""
        return {kind: series[-1] for kind, series in self.seconds.items()}

    def between(self, start: float, end: float) -> dict[str, float]:
        """Return the seconds of processor time between two times, by kind of process.

        Args:
            start: In seconds since 1970.
            end: Likewise.
        """
        return {
            kind: float(np.diff(np.interp([start, end], self.times, series))[0])
            for kind, series in self.seconds.items()
        }


def kind_of(words: list[str]) -> str:
    """Return what a process is for: the name that Ray gives it, or the program's.

    A process of Ray that has not said what it is for is *idle*.

    Args:
        words: Its command line.

    Example:
        >>> [kind_of([title]) for title in ("ray::TrainController.run", "ray::IDLE", "/bin/raylet", "/bin/python")]
        ['TrainController', 'idle', 'raylet', 'other']
    """
    title = words[0] if words else ""
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split("(")[0].strip().replace("IDLE", "idle")
    return next((kind for kind in ("raylet", "gcs_server") if kind in title), "other")


@contextlib.contextmanager
def _started(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[psutil.Popen, Path]]:
    """Start a command in a folder, with this repository's packages, and its output in a file there."""
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "XDG_STATE_HOME": str(folder / "state"), **environment}
    output = folder / "log"
    with output.open("w") as log:
        yield (
            psutil.Popen(command, cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT),
            output,
        )


def measure(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command, and look at what it and its processes take; where it fails, exit with its output.

    Args:
        command: Its words.
        folder: Where it runs; its output goes to ``log`` there.
        environment: Variables in addition to those of this process.
    """
    kinds: dict[_Process, str] = {}
    taken: dict[_Process, float] = {}
    times, looks = [time.time()], [dict(taken)]
    with _started(command, folder, environment or {}) as (process, output):
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        key = one.pid, one.create_time()
                        # It may end between any two of these questions, and one that has ended has no words.
                        words, spent = one.cmdline(), one.cpu_times()
                        if words or key not in kinds:
                            kinds[key] = "driver" if one.pid == process.pid else kind_of(words)
                        taken[key] = spent.user + spent.system
            times.append(time.time())
            looks.append(dict(taken))
            time.sleep(_INTERVAL)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{output.read_text()}")
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(times))
    for at, look in enumerate(looks):
        for key, spent in look.items():
            seconds[kinds[key]][at] += spent
    return Usage(times, dict(seconds), dict(Counter(kinds.values())))


def run(verb: str, *words: Any, folder: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a verb of the pipeline as a user does, and look at what its processes take.

    Args:
        verb: ``train`` or ``sweep``.
        *words: Its command line.
        folder: Where it runs.
        environment: Variables in addition to those of this process.
    """
    return measure([sys.executable, "-m", f"pipeline.{verb}", *map(str, words)], folder, environment)
