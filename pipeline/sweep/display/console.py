"""Display of a sweep: a live table, plain lines where no terminal can be redrawn, and the final tables."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.config.scores import format_score, plus_minus
from pipeline.config.temperature import BETA
from pipeline.runtime.logging import ConsoleHandler, logging_to
from pipeline.runtime.terminal import make_console
from pipeline.sweep.display.eta import duration, time_left
from pipeline.sweep.display.event_log import STANDARD_OUTPUT, EventHandler, EventLog, as_event
from pipeline.sweep.display.heartbeat import Heartbeat
from pipeline.sweep.display.live_table import STYLES, SweepStatus, short_names
from pipeline.tracking.finalists import order_changes
from pipeline.tracking.finalists_table import finalists_table
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.summary_temperature import sweep_betas, sweep_temperature, trial_beta

__all__ = ["Display", "draw_finalists", "duration", "results_table", "seeds_table"]

log = logging.getLogger(__name__)

# Print a running trial at most this often. With few trials, that is one line in view at a time.
_SECONDS_BETWEEN_LINES = 10.0
# Where many trials run, their lines together are no more than this.
_LINES_PER_SECOND = 0.5
_SECONDS_BETWEEN_SUMMARIES = 60.0
# Number of trials that a line names which have not reported yet.
_MAX_SILENT = 2


class Display:
    """Terminal and event log of a sweep, to which the pipeline logs while the display is entered.

    Args:
        records: The sweep's trials.
        name: Name of the experiment.
        console: Where to print; by default standard output, or standard error where the event log has that.
        event_log: A file that gets a line of JSON for each event, or ``-`` for standard output; see
            :class:`pipeline.sweep.display.event_log.EventLog`.

    Raises:
        UserError: The event log cannot be opened.
    """

    def __init__(
        self,
        records: SweepSummary,
        name: str,
        console: Console | None = None,
        event_log: str | None = None,
    ) -> None:
        self.records = records
        self.console = console or make_console(stderr=event_log == STANDARD_OUTPUT)
        self.status = SweepStatus(records, name)
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        # The drawn table and lines of JSON on the same terminal would run into one another.
        self.live = terminal and not (event_log == STANDARD_OUTPUT and sys.stdout.isatty())
        self._event_log = EventLog(event_log, log.warning) if event_log else None
        self._open = contextlib.ExitStack()
        self._printed_at: dict[str, float] = {}
        self._summary_at = time.monotonic()
        self._estimated = self._running = False
        self._statuses = {record.name: record.status for record in records.trials}

    def __enter__(self) -> Display:
        handlers: list[logging.Handler] = [ConsoleHandler(self.console, timestamps=not self.live)]
        if self._event_log is not None:
            self._open.callback(self._event_log.close)
            handlers.append(EventHandler(self._event_log))
        if self.live:
            self._open.enter_context(logging_to(*handlers))
        else:
            heartbeat = Heartbeat(self._heartbeat_line)
            self._open.enter_context(logging_to(*handlers, heartbeat))
            self._open.enter_context(heartbeat)
        return self

    def _heartbeat_line(self, last: str, since: float) -> str:
        """Return the line that is logged where nothing else has been for a while."""
        if not self._running:
            return f"still running after {duration(since)}: {last}"
        silent, parts = self.status.silent(), [self.status.summary()]
        for record, seconds in silent[:_MAX_SILENT]:
            parts.append(f"trial {record.name} has run for {duration(seconds)} and not reported yet")
        if len(silent) > _MAX_SILENT:
            parts.append(f"and {len(silent) - _MAX_SILENT} more")
        return ", ".join(parts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    @contextlib.contextmanager
    def sweep(self, trials: int, at_a_time: int) -> Iterator[None]:
        """Draw while trials run, and leave the terminal as it was.

        Args:
            trials: Number of trials to run.
            at_a_time: Number of trials that run side by side.
        """
        self._start(trials, at_a_time)
        self._running = True
        table = Live(self.status, console=self.console, refresh_per_second=2, transient=True)
        try:
            with table if self.live else contextlib.nullcontext():
                yield
        finally:
            self._running = False
            self._end()

    def expected_end(self, trials: int, at_a_time: int) -> str:
        """Return in words when a sweep is expected to end, by its trials that ran before.

        Args:
            trials: Number of trials to run.
            at_a_time: Number of trials that run side by side.
        """
        self.status.plan(trials, at_a_time)
        left = self.status.remaining()
        self._estimated = left is not None
        return time_left(left)

    def _start(self, trials: int, at_a_time: int) -> None:
        ended = self.status.plan(trials, at_a_time)
        self.status.start()
        values = {
            "experiment": self.status.name,
            "output": self.records.output,
            "metric": self.records.metric,
            "mode": self.records.mode,
            "trials": ended + trials,
            "ended": ended,
            f"{self.records.steps.metric}s": self.records.steps.total,
        }
        self._write_event("sweep_started", values)

    def _end(self) -> None:
        if not self.live:
            self._log_line(self.status.summary())
        counts, best = self.status.counts(), self.records.best()
        values = {
            **{status: counts[status] for status in TERMINAL_STATUSES},
            "unfinished": counts["running"] + counts["waiting"],
            "seconds": self.status.elapsed,
            "best": best.name if best else None,
        }
        self._write_event("sweep_ended", values)

    def update(self, record: TrialRecord, report: dict[str, Any] | None = None, *, evaluated: bool = False) -> None:
        """Show that a trial has started, reported or ended.

        Args:
            record: The trial.
            report: What it has reported, or None.
            evaluated: Whether the report has an evaluation.
        """
        before, self._statuses[record.name] = self._statuses.get(record.name), record.status
        if record.status == "running" and before != "running":
            self.status.started(record)
            self._write_event("trial_started", record.params, record.name)
        if report is not None:
            self.status.reported(record)
            values = {**report, "checkpoint": record.checkpoint} if evaluated else report
            self._write_event("evaluated" if evaluated else "progress", values, record.name)
        if record.status in TERMINAL_STATUSES and before != record.status:
            values = {
                "status": record.status,
                "seconds": record.seconds,
                "error": record.error,
                "warnings": record.warnings,
                "best": record.best_metrics,
                "checkpoint": record.best_checkpoint,
            }
            self._write_event("trial_ended", values, record.name)
        if not self.live:
            self._log_progress(record, due=evaluated or record.status != "running")

    def _write_event(self, event: str, values: dict[str, Any], trial: str | None = None) -> None:
        if self._event_log is not None:
            self._event_log.write(event, values, trial)

    def _log_line(self, line: str) -> None:
        # The event log has events of its own for these.
        log.info(line, extra=as_event(None))

    def _log_progress(self, record: TrialRecord, *, due: bool) -> None:
        now = time.monotonic()
        running = sum(trial.status == "running" for trial in self.records.trials)
        interval = max(_SECONDS_BETWEEN_LINES, running / _LINES_PER_SECOND)
        if due or now - self._printed_at.get(record.name, -math.inf) >= interval:
            self._printed_at[record.name] = now
            self._log_line(f"trial {record.name}  " + "  ".join(cell for cell in self._cells(record) if cell))
        # At once where there is an estimate for the first time.
        first = not self._estimated and self.status.remaining() is not None
        if first or now - self._summary_at >= _SECONDS_BETWEEN_SUMMARIES:
            self._summary_at, self._estimated = now, self._estimated or first
            self._log_line(self.status.summary())

    def _cells(self, record: TrialRecord) -> list[str]:
        """Return the parts of a trial's line; those that are not known are empty."""
        values = record.metrics
        steps = self.records.steps
        rate, left = values.get("base_steps_per_second"), values.get("seconds_left")
        images, fraction = values.get("images_per_second"), values.get("fraction_of_peak")
        running = record.status == "running"
        return [
            record.status,
            f"{steps.done(record)}/{steps.planned(record)} {steps.unit}s",
            f"{rate:.1f}/s" if running and rate else "",
            f"{images:,.0f} samples/s" if running and images else "",
            f"{fraction:.0%} of peak" if running and fraction else "",
            f"{duration(left)} left" if running and left is not None else "",
            *(f"{name} {format_score(values, name)}" for name in self.records.shown if name in values),
            f"beta {values[BETA]:g}" if BETA in values else "",
        ]


def results_table(records: SweepSummary, width: int | None = None) -> Table:
    """Return the table of the trials, best first.

    Args:
        records: The sweep's trials.
        width: Characters of a line: columns that do not fit are left out, and the title says so (default: none are).
    """
    keys = list(dict.fromkeys(key for record in records.trials for key in record.params))
    names = list(dict.fromkeys([*reversed(records.shown), records.metric]))
    measure, temperature = str(records.facts.get("measure", records.metric)), sweep_temperature(records)
    order = "best first by their first scores" if records.finals() else "best first"
    # Trials of a sweep that was resumed with another beta differ in it although it is not searched.
    differs = len(sweep_betas(records)) > 1 and "sampler.beta" not in keys
    warned = any(record.warnings for record in records.trials)
    heads = ["trial", "status", *names, f"{records.steps.unit}s", "time"]
    heads += [*(["warnings"] if warned else []), *(["beta"] if differs else [])]
    heads += short_names(keys, reserved=heads).values()
    ranking, rows = records.ranking(), []
    for record in ranking:
        best = record.best_metrics
        cells = [
            record.name,
            record.status,
            *(format_score(best, name, missing="-") for name in names),
            str(records.steps.done(record) or "-"),
            duration(record.seconds),
            *([str(len(record.warnings) or "-")] if warned else []),
            *([_beta(records, record)] if differs else []),
            *(_format_param(record.params, key) for key in keys),
        ]
        rows.append(cells)
    # The score that ranks is wanted most, then the others, and what was searched.
    scores = sorted(range(2, 2 + len(names)), key=lambda column: heads[column] != records.metric)
    params = range(len(heads) - len(keys), len(heads))
    fitting = _fitting(heads, rows, [0, 1, *scores, *params, *range(2 + len(names), params.start)], width)
    notes = [measure, temperature, None if len(fitting) == len(heads) else "columns that do not fit are left out"]
    title = f"Trials, {order} ({'; '.join(filter(None, notes))})"
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in fitting:
        table.add_column(heads[column], justify="left" if column < 2 else "right", no_wrap=True)
    for record, cells in zip(ranking, rows, strict=True):
        style = STYLES[record.status] if record.status in ("failed", "pruned") else None
        table.add_row(*(cells[column] for column in fitting), style=style)
    return table


def _fitting(heads: list[str], rows: list[list[str]], order: list[int], width: int | None) -> list[int]:
    """Return the columns that fit a width side by side, the first two whatever it is.

    Args:
        heads: Head of each column.
        rows: Cells of each row.
        order: The columns, the most important first.
        width: Characters of a line; None if all fit.
    """
    # A line between two columns, and a blank on both sides of each.
    left, fitting = math.inf if width is None else width - 1, []
    for column in order:
        left -= 3 + max(len(text) for text in (heads[column], *(cells[column] for cells in rows)))
        if left < 0 and len(fitting) >= 2:
            break
        fitting.append(column)
    return sorted(fitting)


def draw_finalists(records: SweepSummary) -> Table | None:
    """Return the table of the finalists by their second scores, the best first.

    Args:
        records: The sweep's trials.

    Returns:
        The table; None where no second scores decide.
    """
    rows = finalists_table(records)
    if not rows:
        return None
    finals, (heads, *lines) = records.finals(), rows
    changed, pairs = order_changes(finals, records.mode)
    title = f"Finalists on {finals[0].num_samples:,} fresh samples"
    title += f"; {changed} of {pairs} pairs changed order" if pairs else ""
    table = Table(title=title, title_justify="left", header_style="bold")
    for head in heads:
        table.add_column(head, justify="left" if head == "trial" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def seeds_table(records: SweepSummary) -> Table | None:
    """Return the table of means and standard errors over the seeds, the best first.

    Args:
        records: The sweep's trials.

    Returns:
        The table; None if no two trials differ in their seed alone.
    """
    groups = records.mean_over_seeds()
    if not groups:
        return None
    keys = list(dict.fromkeys(key for group in groups for key in group.params))
    names = list(dict.fromkeys([*reversed(records.shown), records.metric]))
    title = "; ".join(filter(None, ["Means over seeds, ± their standard errors", sweep_temperature(records)]))
    table = Table(title=title, title_justify="left", header_style="bold")
    for head in [*short_names(keys, reserved=[*names, "seeds"]).values(), *names, "seeds"]:
        table.add_column(head, justify="right", no_wrap=True)
    for group in groups:
        scores = [plus_minus(group.mean.get(name, math.nan), group.standard_error.get(name)) for name in names]
        table.add_row(*(_format_param(group.params, key) for key in keys), *scores, str(group.trials))
    return table


def _beta(records: SweepSummary, record: TrialRecord) -> str:
    beta = trial_beta(records, record)
    return "-" if beta is None else f"{beta:g}"


def _format_param(params: Mapping[str, Any], key: str) -> str:
    """Return a parameter's cell; empty where the trial does not have it."""
    return _format_value(params[key]) if key in params else ""


def _format_value(value: object) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
