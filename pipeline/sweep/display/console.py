"""Display of a running sweep: a live table, or plain lines where no terminal can be redrawn."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from pipeline.config.scores import format_score
from pipeline.config.temperature import BETA
from pipeline.runtime.logging import ConsoleHandler, logging_to
from pipeline.runtime.terminal import make_console
from pipeline.sweep.display.eta import duration, time_left
from pipeline.sweep.display.event_log import STANDARD_OUTPUT, EventHandler, EventLog, as_event
from pipeline.sweep.display.heartbeat import Heartbeat
from pipeline.sweep.display.live_table import SweepStatus
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord

__all__ = ["Display", "duration"]

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
