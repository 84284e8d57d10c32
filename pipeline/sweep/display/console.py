"""A sweep as it is told: one live table, plain lines where there is no terminal to redraw, and a log for programs."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.config.temperature import BETA
from pipeline.runtime.redaction import redact
from pipeline.runtime.terminal import make_console
from pipeline.sweep.display.event_log import STANDARD_OUTPUT, EventLog
from pipeline.sweep.display.table import STYLES, SweepStatus, duration
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.trial_temperature import sweep_betas, sweep_temperature, trial_beta

__all__ = [
    "Display",
    "duration",
    "results_table",
    "seeds_table",
]

_SECONDS_BETWEEN_LINES = 10.0  # of one trial, where few run
_LINES_A_SECOND = 0.5  # of all trials together, where many do
_SECONDS_BETWEEN_SUMMARIES = 60.0


class Display:
    """What the trials are doing now.

    Args:
        records: the sweep's trials.
        name: of the experiment.
        base_steps: base steps of a whole trial.
        console: where to print; by default standard output, or standard error where the log has that.
        log: a file that gets a line of JSON for each event, or ``-`` for standard output; see
            :class:`pipeline.sweep.display.event_log.EventLog`.

    Raises:
        UserError: the log cannot be opened.
    """

    def __init__(
        self, records: SweepSummary, name: str, base_steps: int, console: Console | None = None, log: str | None = None
    ) -> None:
        self.records = records
        self.console = console or make_console(stderr=log == STANDARD_OUTPUT)
        self.standing = SweepStatus(records, name, base_steps)
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        # What is drawn and the lines of JSON would run into one another.
        self.live = terminal and not (log == STANDARD_OUTPUT and sys.stdout.isatty())
        self._log = EventLog(log, self.say) if log else None
        self._printed: dict[str, float] = {}
        self._summed = time.monotonic()
        self._status = {record.name: record.status for record in records.trials}

    def close(self) -> None:
        """Write no more to the log."""
        if self._log is not None:
            self._log.close()

    @contextlib.contextmanager
    def sweep(self, trials: int, at_a_time: int) -> Iterator[None]:
        """Draw while trials run, and leave the terminal as it was.

        Args:
            trials: how many are to run.
            at_a_time: how many run side by side.
        """
        counts = self.standing.counts()
        ended = sum(counts[status] for status in TERMINAL_STATUSES)
        self.standing.trials, self.standing.at_a_time = ended + trials, at_a_time
        self.standing.begin()
        told = {"experiment": self.standing.name, "output": self.records.output, "metric": self.records.metric}
        told |= {"mode": self.records.mode, "trials": ended + trials, "ended": ended}
        self._event("sweep_started", {**told, "base_steps": self.standing.base_steps})
        drawn = Live(self.standing, console=self.console, refresh_per_second=2, transient=True)
        try:
            with drawn if self.live else contextlib.nullcontext():
                yield
        finally:
            if not self.live:
                self._line(self.standing.summary())
            counts, best = self.standing.counts(), self.records.best()
            told = {status: counts[status] for status in TERMINAL_STATUSES}
            told |= {"unfinished": counts["running"] + counts["waiting"], "seconds": self.standing.elapsed}
            self._event("sweep_ended", {**told, "best": best.name if best else None})

    def say(self, line: str) -> None:
        """Tell a person, above the table, and note it in the log."""
        self._line(line)
        self._event("note", {"text": line})

    def warn(self, record: TrialRecord, line: str) -> None:
        """Print a warning of a trial, and note it in the log as an event of its own."""
        self._line(f"trial {record.name}: warning: {line}", style="yellow")
        self._event("warning", {"text": line}, record.name)

    def update(self, record: TrialRecord, report: dict[str, Any] | None = None, *, evaluated: bool = False) -> None:
        """A trial has started, reported or ended.

        Args:
            record: the trial.
            report: what it has reported, if it has.
            evaluated: whether it was evaluated.
        """
        before, self._status[record.name] = self._status.get(record.name), record.status
        if record.status == "running" and before != "running":
            self._event("trial_started", record.params, record.name)
        if report is not None:
            self.standing.heard(record)
            known = {**report, "checkpoint": record.checkpoint} if evaluated else report
            self._event("evaluated" if evaluated else "progress", known, record.name)
        if record.status in TERMINAL_STATUSES and before != record.status:
            told = {"status": record.status, "seconds": record.seconds, "error": record.error}
            told["warnings"] = record.warnings
            best = {"best": record.best_metrics, "checkpoint": record.best_checkpoint}
            self._event("trial_ended", {**told, **best}, record.name)
        if not self.live:
            self._lines(record, due=evaluated or record.status != "running")

    def _event(self, event: str, values: dict[str, Any], trial: str | None = None) -> None:
        if self._log is not None:
            self._log.write(event, values, trial)

    def _line(self, line: str, style: str | None = None) -> None:
        # Where nothing is drawn, a line tells when it was written, and is not folded: it is one line of a log.
        stamp = "" if self.live else time.strftime("%H:%M:%S  ")
        self.console.print(stamp + redact(line), highlight=False, markup=False, soft_wrap=not self.live, style=style)

    def _lines(self, record: TrialRecord, *, due: bool) -> None:
        now = time.monotonic()
        running = sum(one.status == "running" for one in self.records.trials)
        between = max(_SECONDS_BETWEEN_LINES, running / _LINES_A_SECOND)
        if due or now - self._printed.get(record.name, -math.inf) >= between:
            self._printed[record.name] = now
            self._line(f"trial {record.name}  " + "  ".join(cell for cell in self._cells(record) if cell))
        if now - self._summed >= _SECONDS_BETWEEN_SUMMARIES:
            self._summed = now
            self._line(self.standing.summary())

    def _cells(self, record: TrialRecord) -> list[str]:
        values = record.metrics
        steps = values.get("base_step", 0)
        rate, left = values.get("base_steps_per_second"), values.get("seconds_left")
        images, fraction = values.get("images_per_second"), values.get("fraction_of_peak")
        running = record.status == "running"
        return [
            record.status,
            f"{steps}/{self.standing.planned(record)} base steps",
            f"{rate:.1f}/s" if running and rate else "",
            f"{images:.0f} images/s" if running and images else "",
            f"{fraction:.0%} of peak" if running and fraction else "",
            f"{duration(left)} left" if running and left is not None else "",
            *(f"{name} {values[name]:.2f}" if name in values else "" for name in self.records.shown),
            f"beta {values[BETA]:g}" if BETA in values else "",
        ]


def results_table(records: SweepSummary, short: Callable[[str], str] = lambda key: key.rsplit(".", 1)[-1]) -> Table:
    """The trials, best first.

    Args:
        records: the sweep's trials.
        short: how a key is written at the head of its column.
    """
    keys = list(dict.fromkeys(key for record in records.trials for key in record.params))
    names = list(dict.fromkeys([*reversed(records.shown), records.metric]))
    measure, temperature = str(records.facts.get("measure", records.metric)), sweep_temperature(records)
    title = f"Trials, best first ({'; '.join(filter(None, [measure, temperature]))})"
    # Trials of a sweep that was resumed with another beta differ in it although it is not searched.
    differs = len(sweep_betas(records)) > 1 and "sampler.beta" not in keys
    warned = any(record.warnings for record in records.trials)
    extra = [*(["warnings"] if warned else []), *(["beta"] if differs else [])]
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ["trial", "status", *names, "base steps", "time", *extra, *map(short, keys)]:
        table.add_column(heading, justify="left" if heading in ("trial", "status") else "right", no_wrap=True)
    for record in records.ranking():
        best = record.best_metrics
        table.add_row(
            record.name,
            record.status,
            *(f"{best[name]:.3f}" if name in best else "-" for name in names),
            str(record.metrics.get("base_step", "-")),
            duration(record.seconds),
            *([str(len(record.warnings) or "-")] if warned else []),
            *([_beta(records, record)] if differs else []),
            *(_written(record.params.get(key)) for key in keys),
            style=STYLES[record.status] if record.status in ("failed", "pruned") else None,
        )
    return table


def seeds_table(
    records: SweepSummary, short: Callable[[str], str] = lambda key: key.rsplit(".", 1)[-1]
) -> Table | None:
    """Means and standard errors over the seeds, the best first.

    Args:
        records: the sweep's trials.
        short: how a key is written at the head of its column.

    Returns:
        The table, or none if no two trials differ in their seed alone.
    """
    groups = records.mean_over_seeds()
    if not groups:
        return None
    keys = list(dict.fromkeys(key for group in groups for key in group.params))
    names = list(dict.fromkeys([*reversed(records.shown), records.metric]))
    title = "; ".join(filter(None, ["Means over seeds, ± their standard errors", sweep_temperature(records)]))
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in [*map(short, keys), *names, "seeds"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        scores = [f"{group.mean.get(n, math.nan):.3f} ± {group.standard_error.get(n, math.nan):.3f}" for n in names]
        table.add_row(*(_written(group.params.get(key)) for key in keys), *scores, str(group.trials))
    return table


def _beta(records: SweepSummary, record: TrialRecord) -> str:
    beta = trial_beta(records, record)
    return "-" if beta is None else f"{beta:g}"


def _written(value: object) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
