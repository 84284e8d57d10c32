"""How far a long job over images has come."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Images done, images per second and time left: a bar on a terminal, a line every ten seconds elsewhere.

    Everything goes to standard error.

    Args:
        total: Number of images.
        done: Number of images that an earlier run has done.
        show: False to say nothing.
    """

    def __init__(self, total: int, done: int = 0, show: bool = True) -> None:
        self._total = total
        self._done = self._before = done
        self._start = self._last = time.monotonic()
        self._lines = show and not sys.stderr.isatty()
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show or self._lines,
        )
        self._task = self._bar.add_task("images", total=total, completed=done, rate="")

    def advance(self, images: int) -> None:
        """Says that more images are done.

        Args:
            images: How many.
        """
        self._done += images
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f} images/s")
        if self._lines and images and (self._done == self._total or now - self._last > _SECONDS_BETWEEN_LINES):
            self._last = now
            left = (self._total - self._done) / max(rate, 1e-9)
            print(
                f"{self._done:,} of {self._total:,} images, {rate:,.0f} images/s, {left:,.0f} s left", file=sys.stderr
            )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
