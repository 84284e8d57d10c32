"""Terminal output: consoles, and the progress of a long job over images or rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.segment import Segment

from pipeline.runtime.printable import printable

__all__ = [
    "PrintableConsole",
    "Progress",
    "make_console",
]

_SECONDS_BETWEEN_LINES = 10.0


def _print_error(line: str) -> None:
    print(line, file=sys.stderr)


class Progress:
    """Progress in samples, samples per second and time left: a bar on a terminal, a line every ten seconds elsewhere.

    The rate is since the first samples were counted: before that, processes start. That of the last line is the job's.

    Args:
        total: Number of samples.
        done: Number of samples that an earlier run has done.
        show: False to print nothing.
        unit: Name of the samples: "images" or "rows".
        write: Takes a line where there is no terminal (default: it goes to standard error, as the bar does).
        console: Where the bar is drawn, below what else it prints (default: standard error).
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        show: bool = True,
        unit: str = "images",
        write: Callable[[str], None] = _print_error,
        console: Console | None = None,
    ) -> None:
        self._total = total
        self._write = write
        self._unit = unit
        self._done = self._before = done
        self._start = self._last = time.monotonic()
        # Samples and time of the first count.
        self._first: tuple[int, float] | None = None
        self._lines = show and not (console.is_terminal if console else sys.stderr.isatty())
        self._bar = Bar(
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn(f"{unit}  {{task.fields[rate]}}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            expand=True,
            disable=not show or self._lines,
        )
        self._task = self._bar.add_task(unit, total=total, completed=done, rate="")

    def advance(self, samples: int) -> None:
        """Count samples that are done.

        Args:
            samples: Number of samples since the last call.
        """
        if not samples:
            return
        self._done += samples
        now, is_over = time.monotonic(), self._done == self._total
        if self._first is None:
            self._first, self._last = (self._done, now), now
        before, start = (self._before, self._start) if is_over else self._first
        rate = (self._done - before) / max(now - start, 1e-9)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f} {self._unit}/s" if rate else "")
        if self._lines and (is_over or now - self._last > _SECONDS_BETWEEN_LINES):
            self._last = now
            left = (self._total - self._done) / max(rate, 1e-9)
            self._write(
                f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s, {left:,.0f} s left"
            )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()


class PrintableConsole(Console):
    """Console on which no text that it prints can steer the terminal, whoever wrote it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object; the console's own controls are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that does not fold its tables where no window can be widened, as in a log file.

    Nothing that it prints steers the terminal.

    Args:
        stderr: Whether to print to standard error in place of standard output.
    """
    console = PrintableConsole(stderr=stderr)
    return console if console.is_terminal else PrintableConsole(stderr=stderr, width=160)
