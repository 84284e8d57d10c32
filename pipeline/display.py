"""A sweep in the terminal: one live table, or plain lines where there is no terminal to redraw."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.records import Records, TrialRecord

__all__ = ["Display", "duration", "make_console", "results_table", "seeds_table"]

_SECONDS_BETWEEN_LINES = 10.0
_ROWS_KEPT = 8  # of the terminal, for what stands above the table and for how many trials are not in it
_STYLES = {"finished": "green", "running": "bold", "failed": "red", "pruned": "dim", "pending": "dim"}


def make_console() -> Console:
    """A console that does not fold its tables where nobody can widen the window, as in a log file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(65), duration(3725)
        ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """What the trials are doing now.

    Args:
        records: the sweep's trials.
        base_steps: base steps of a whole trial.
        console: where to print.
    """

    def __init__(self, records: Records, base_steps: int, console: Console | None = None) -> None:
        self.records, self.base_steps = records, base_steps
        self.console = console or make_console()
        self._printed: dict[str, float] = {}
        self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Display:
        """Start to draw."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self.console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line, highlight=False, markup=False)

    def update(self, record: TrialRecord, *, evaluated: bool = False) -> None:
        """A trial has reported."""
        if self.console.is_terminal:
            return
        now = time.monotonic()
        quiet = now - self._printed.get(record.name, 0.0) < _SECONDS_BETWEEN_LINES
        if quiet and not evaluated and record.status == "running":
            return
        self._printed[record.name] = now
        self.say(f"trial {record.name}  " + "  ".join(cell for cell in self._cells(record)[1:] if cell))

    def _cells(self, record: TrialRecord) -> list[str]:
        values = record.metrics
        steps = values.get("base_step", 0)
        rate, left = values.get("base_steps_per_second"), values.get("seconds_left")
        images, fraction = values.get("images_per_second"), values.get("fraction_of_peak")
        running = record.status == "running"
        return [
            record.name,
            record.status,
            f"{steps}/{self.base_steps} base steps",
            f"{rate:.1f}/s" if running and rate else "",
            f"{images:.0f} images/s" if running and images else "",
            f"{fraction:.0%} of peak" if running and fraction else "",
            f"{duration(left)} left" if running and left is not None else "",
            *(f"{name} {values[name]:.2f}" if name in values else "" for name in self.records.shown),
        ]

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        shown = [record for record in self.records.trials if record.status != "pending"]
        room = max(1, self.console.height - _ROWS_KEPT)
        if len(shown) > room:  # to draw a thousand would take the driver's time twice a second, and nobody would see it
            shown = [record for record in shown if record.status == "running"][:room]
        for record in shown:
            table.add_row(*self._cells(record), style=_STYLES[record.status])
        counted = Counter(record.status for record in self.records.trials)
        counted.subtract(record.status for record in shown)
        for status, count in counted.items():
            if count:
                table.add_row("", f"{count} {'waiting' if status == 'pending' else status}", style="dim")
        return table


def results_table(records: Records, short: Callable[[str], str] = lambda key: key.rsplit(".", 1)[-1]) -> Table:
    """The trials, best first.

    Args:
        records: the sweep's trials.
        short: how a key is written at the head of its column.
    """
    keys = list(dict.fromkeys(key for record in records.trials for key in record.params))
    names = list(dict.fromkeys([*reversed(records.shown), records.metric]))
    title = f"Trials, best first ({records.facts.get('measure', records.metric)})"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ["trial", "status", *names, "base steps", "time", *map(short, keys)]:
        table.add_column(heading, justify="left" if heading in ("trial", "status") else "right", no_wrap=True)
    for record in records.ranking():
        best = record.best_metrics
        table.add_row(
            record.name,
            record.status,
            *(f"{best[name]:.3f}" if name in best else "-" for name in names),
            str(record.metrics.get("base_step", "-")),
            duration(record.seconds),
            *(_written(record.params.get(key)) for key in keys),
            style=_STYLES[record.status] if record.status in ("failed", "pruned") else None,
        )
    return table


def seeds_table(records: Records, short: Callable[[str], str] = lambda key: key.rsplit(".", 1)[-1]) -> Table | None:
    """Means and standard errors over the seeds, the best first.

    Args:
        records: the sweep's trials.
        short: how a key is written at the head of its column.

    Returns:
        The table, or none if no two trials differ in their seed alone.
    """
    groups = records.over_seeds()
    if not groups:
        return None
    keys = list(dict.fromkeys(key for group in groups for key in group.params))
    names = list(dict.fromkeys([*reversed(records.shown), records.metric]))
    table = Table(title="Means over seeds, ± their standard errors", title_justify="left", header_style="bold")
    for heading in [*map(short, keys), *names, "seeds"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        scores = [f"{group.mean.get(n, math.nan):.3f} ± {group.standard_error.get(n, math.nan):.3f}" for n in names]
        table.add_row(*(_written(group.params.get(key)) for key in keys), *scores, str(group.trials))
    return table


def _written(value: object) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
