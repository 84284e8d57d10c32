"""Live table of a sweep: its trials, how far they are, and how long it still takes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.config.scores import format_score
from pipeline.sweep.display.eta import (
    Eta,
    Rung,
    TrialProgress,
    duration,
    estimate_eta,
    left_in_words,
    time_left,
)
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.summary_temperature import sweep_temperature, trial_temperature

__all__ = ["STYLES", "Column", "Priority", "SweepStatus", "fit", "scores_in_words", "short_names"]

STYLES = {"finished": "green", "running": "", "failed": "red", "pruned": "dim", "pending": "dim"}
# Blanks between two columns of the table.
_GAP = 2
# Width of a progress bar, at least and at most.
_MIN_BAR, _MAX_BAR = 8, 20
# A trial that claims to need longer has no estimate yet.
_MAX_SECONDS_LEFT = 1e15


def short_names(keys: Sequence[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """Return the shortest end of each key, cut at a dot, that is the end of no other key.

    Args:
        keys: Keys of the experiment, each once.
        reserved: Names that other columns have.

    Returns:
        Key to name, in the order of the keys; the names are distinct.

    Example:
        >>> short_names(["train.base_lr", "sampler.step_size", "train.negatives.step_size"])
        {'train.base_lr': 'base_lr', 'sampler.step_size': 'sampler.step_size', \
'train.negatives.step_size': 'negatives.step_size'}
        >>> short_names(["train.warnings"], reserved=["trial", "warnings"])
        {'train.warnings': 'train.warnings'}
    """
    count = Counter(ending for key in keys for ending in _endings(key))
    return {
        key: next((name for name in _endings(key) if count[name] == 1 and name not in reserved), key) for key in keys
    }


def _endings(key: str) -> list[str]:
    """Return the ends of a key, the shortest first and the key itself last."""
    parts = key.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def scores_in_words(records: SweepSummary, record: TrialRecord) -> str:
    """Return a trial's best scores with what they must not be read without: their temperature, and its warnings.

    Args:
        records: The sweep.
        record: One of its trials.

    Example:
        >>> records = SweepSummary("out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={})
        >>> trial = records.add("000", {})
        >>> metrics = {"base_step": 8, "fid_base": 5.0, "fid_gebm": 4.5, "beta": 10.0}
        >>> _ = records.evaluated(trial, metrics, "out/trials/000/checkpoints/step-00000008")
        >>> scores_in_words(records, trial)
        'fid_base 5.000, fid_gebm 4.500 (beta 10: colder than the model)'
        >>> new = records.add_warnings(trial, ["KALE is negative"])
        >>> scores_in_words(records, trial)
        'fid_base 5.000, fid_gebm 4.500 (beta 10: colder than the model; 1 warning)'
    """
    names = dict.fromkeys([*records.shown, records.metric])
    metrics, samples = records.final_metrics(record), records.final_samples(record)
    scores = ", ".join(f"{name} {format_score(metrics, name)}" for name in names if name in metrics)
    count = len(record.warnings)
    warned = f"{count} warning{'s' if count > 1 else ''}" if count else None
    fresh = f"{samples:,} fresh samples" if samples else None
    notes = "; ".join(filter(None, [trial_temperature(records, record), fresh, warned]))
    return f"{scores} ({notes})" if notes else scores


class Priority(IntEnum):
    """Order in which columns get room; of two that are alike, the first in the table."""

    TRIAL = 0
    GEBM_SCORE = 1
    PROGRESS = 2
    SCORE = 3
    TIME_LEFT = 4
    STEP = 5
    STEP_RATE = 6
    IMAGE_RATE = 7
    FRACTION_OF_PEAK = 8
    PARAMETER = 9


# Columns that are left out where no trial has a value.
_OPTIONAL = (Priority.FRACTION_OF_PEAK, Priority.PARAMETER)


class Column(NamedTuple):
    """A column of the live table.

    Attributes:
        heading: Its name.
        priority: When it gets room.
        width: Width of its cells.
        cells: Text of each row.
    """

    heading: str
    priority: Priority
    width: int
    cells: tuple[str, ...]


def _column(heading: str, priority: Priority, min_width: int, cells: Sequence[str]) -> Column:
    """Return a column as wide as its widest cell."""
    return Column(heading, priority, max(len(heading), min_width, *map(len, cells)), tuple(cells))


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit a width, in their order; the progress column is widened by what is left.

    Args:
        columns: All columns.
        width: Characters of a line. The most important column is returned even where it does not fit.

    Example:
        >>> trial = Column("trial", Priority.TRIAL, 5, ("000",))
        >>> steps = Column("base step", Priority.STEP, 9, ("8",))
        >>> progress = Column("progress", Priority.PROGRESS, 8, ("",))
        >>> [(column.heading, column.width) for column in fit([trial, steps, progress], 20)]
        [('trial', 5), ('progress', 13)]
    """
    left, fitting = width + _GAP, set()
    order = sorted(range(len(columns)), key=lambda index: columns[index].priority)
    for index in order:
        if columns[index].width + _GAP > left:
            break
        left -= columns[index].width + _GAP
        fitting.add(index)
    fitting = fitting or set(order[:1])
    widening = min(_MAX_BAR - _MIN_BAR, left)
    return [
        column._replace(width=column.width + widening) if column.priority is Priority.PROGRESS else column
        for index, column in enumerate(columns)
        if index in fitting
    ]


@dataclass
class SweepStatus:
    """Status of a sweep, which rich draws into the room that there is.

    Attributes:
        records: Its trials.
        name: Name of the experiment.
        trials: Number of trials in the end.
        at_a_time: Number of trials that run side by side.
        clock: Returns the time in seconds.
        rungs: Where the scheduler prunes trials.
        finals_seconds: Returns how long the finals will take, after the last trial.
    """

    records: SweepSummary
    name: str
    trials: int = 0
    at_a_time: int = 1
    clock: Callable[[], float] = time.monotonic
    rungs: Sequence[Rung] = ()
    finals_seconds: Callable[[], float] = float
    _started_at: float | None = None
    _trial_started_at: dict[str, float] = field(default_factory=dict)
    _reported_at: dict[str, float] = field(default_factory=dict)

    def plan(self, trials: int, at_a_time: int) -> int:
        """Note how many trials are left to run, and side by side; return how many have ended before."""
        counts = Counter(record.status for record in self.records.trials)
        ended = sum(counts[status] for status in TERMINAL_STATUSES)
        self.trials, self.at_a_time = ended + trials, at_a_time
        return ended

    def start(self) -> None:
        """Start the clock."""
        self._started_at = self.clock()

    def started(self, record: TrialRecord) -> None:
        """Note that a trial has started now."""
        self._trial_started_at[record.name] = self.clock()
        self._reported_at.pop(record.name, None)

    def silent(self) -> list[tuple[TrialRecord, float]]:
        """Return the running trials that have not reported since they started, and the seconds since then."""
        now = self.clock()
        return [
            (record, now - self._trial_started_at[record.name])
            for record in list(self.records.trials)
            if record.status == "running"
            and record.name in self._trial_started_at
            and record.name not in self._reported_at
        ]

    def reported(self, record: TrialRecord) -> None:
        """Note that a trial has reported now."""
        self._reported_at[record.name] = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return 0.0 if self._started_at is None else self.clock() - self._started_at

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each status, waiting ones included."""
        counts = Counter(record.status for record in self.records.trials)
        started = sum(number for status, number in counts.items() if status != "pending")
        waiting = max(self.trials, len(self.records.trials)) - started
        return {
            "running": counts["running"],
            "waiting": waiting,
            **{status: counts[status] for status in TERMINAL_STATUSES},
        }

    def remaining(self) -> Eta | None:
        """Return the estimate of what is left of the sweep; None while there is none."""
        progress = [self._trial_progress(record) for record in self.records.trials if record.status != "pending"]
        waiting = self.counts()["waiting"]
        return estimate_eta(progress, waiting, self.at_a_time, self.rungs, finals_seconds=self.finals_seconds())

    def _trial_progress(self, record: TrialRecord) -> TrialProgress:
        """Return the progress of a trial by now: since its last report it has continued at its pace."""
        fraction, seconds, steps = self._fraction(record), record.seconds, self.records.steps.fraction(record)
        steps = fraction if record.status == "finished" else steps
        ahead = fraction - steps if fraction else 0.0
        if record.status == "running":
            now = self.clock()
            if fraction > 0 and seconds > 0:
                since = now - self._reported_at.get(record.name, now)
                fraction = min(1.0, fraction * (1 + since / seconds))
            else:
                since = now - self._trial_started_at.get(record.name, now)
            seconds += since
        return TrialProgress(fraction, seconds, record.status in TERMINAL_STATUSES, steps, ahead)

    def _fraction(self, record: TrialRecord) -> float:
        """Return the part of a trial's time that is over, by its own estimate: start-up and warm-ups count."""
        left = record.metrics.get("seconds_left")
        if record.status == "finished":
            return 1.0
        if isinstance(left, int | float) and 0 <= left < _MAX_SECONDS_LEFT and record.seconds > 0:
            return record.seconds / (record.seconds + left)
        return self.records.steps.fraction(record)

    def summary(self) -> str:
        """Return the status on one line, for where nothing is drawn."""
        counts = self.counts()
        ended = sum(counts[status] for status in TERMINAL_STATUSES)
        total = sum(counts.values())
        parts = [
            f"{ended} of {total} trials have ended",
            f"{counts['running']} run",
            f"{duration(self.elapsed)} elapsed",
        ]
        left = self.remaining()
        if left is not None and ended < total:
            parts.append(time_left(left))
        best = self.records.best()
        if best is not None:
            parts.append(f"best is trial {best.name} with {scores_in_words(self.records, best)}")
        return ", ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield at most one line less than the window has, so that nothing scrolls."""
        width, room = options.max_width, console.size.height - 1
        best = self.records.best()
        lines: list[RenderableType] = [self._title(width), self._progress(width)]
        if best is not None and room >= 5:
            lines.append(_text_line(f"best: trial {best.name}, {scores_in_words(self.records, best)}", "bold"))
            if best.params and room >= 6:
                lines.append(_text_line(f"      {_format_params(best.params)}"))
        if room >= len(lines) + 5:
            lines.append(Text())
        if room >= len(lines) + 2:
            lines += self._table(width, room - len(lines))
        yield from lines[: max(room, 1)]

    def _title(self, width: int) -> Text:
        counts = self.counts()
        numbers = ", ".join(f"{number} {status}" for status, number in counts.items() if number or status == "running")
        trials, temperature = sum(counts.values()), sweep_temperature(self.records)
        titles = [f"{trials} trials of {self.name}", f"{trials} trials"]
        if temperature is not None:
            titles = [*(f"{title} ({temperature})" for title in titles), *titles]
        fitting = (title for title in titles if len(f"{title}: {numbers}") <= width)
        return _text_line(f"{next(fitting, titles[-1])}: {numbers}", "bold")

    def _progress(self, width: int) -> RenderableType:
        counts, left = self.counts(), self.remaining()
        # Without an estimate, the trials that have ended are all that is done.
        done = left.done if left else sum(counts[status] for status in TERMINAL_STATUSES) / max(1, sum(counts.values()))
        text = f"{math.floor(100 * done)}%, {duration(self.elapsed)} elapsed"
        if counts["running"] or counts["waiting"]:
            text += f", {left_in_words(left)}" if left else ", time left not known yet"
        if width < len(text) + _MIN_BAR + _GAP:
            return _text_line(text)
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_row(ProgressBar(total=1.0, completed=done, width=width - len(text) - _GAP), Text(text))
        return grid

    def _table(self, width: int, room: int) -> Iterator[RenderableType]:
        """Yield the heading and the rows, in at most ``room`` lines."""
        shown, more = self._shown(room - 1)
        if not shown:
            return
        columns = fit(self._columns(shown), width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_edge=False)
        for column in columns:
            left = column.priority in (Priority.TRIAL, Priority.PROGRESS)
            # No cell takes a second line: a row is a line.
            table.add_column(
                column.heading,
                width=column.width,
                no_wrap=True,
                overflow="ellipsis",
                justify="left" if left else "right",
            )
        for row, record in enumerate(shown):
            cells = (
                self._bar(record, column.width) if column.priority is Priority.PROGRESS else Text(column.cells[row])
                for column in columns
            )
            table.add_row(*cells, style=STYLES[record.status])
        yield table
        if more:
            yield _text_line(f"and {more} more that run", "dim")

    def _shown(self, rows: int) -> tuple[list[TrialRecord], int]:
        """Return the trials for a number of rows, and how many more run; running trials come first."""
        running = [record for record in self.records.trials if record.status == "running"]
        if len(running) > rows:
            # The last row says how many more there are.
            return running[: rows - 1], len(running) - rows + 1
        ended = [record for record in self.records.ranking() if record.status in TERMINAL_STATUSES]
        return [*running, *ended[: rows - len(running)]], 0

    def _bar(self, record: TrialRecord, width: int) -> RenderableType:
        """Return how far a trial is, or how it has ended."""
        if record.status != "running":
            return Text(record.status)
        return ProgressBar(total=1.0, completed=self.records.steps.fraction(record), width=width)

    def _columns(self, shown: list[TrialRecord]) -> list[Column]:
        """Return all columns that the table may have."""

        def rates(name: str, form: str) -> list[str]:
            return [_current(record, name, form) for record in shown]

        steps = self.records.steps
        columns = [
            _column("trial", Priority.TRIAL, 5, [record.name for record in shown]),
            _column("progress", Priority.PROGRESS, _MIN_BAR, [_ended_status(record) for record in shown]),
            _column(steps.unit, Priority.STEP, 9, [str(steps.done(record)) for record in shown]),
            _column("steps/s", Priority.STEP_RATE, 7, rates("base_steps_per_second", ".2f")),
            _column("samples/s", Priority.IMAGE_RATE, 8, rates("images_per_second", ",.0f")),
            _column("of peak", Priority.FRACTION_OF_PEAK, 7, rates("fraction_of_peak", ".0%")),
            _column("left", Priority.TIME_LEFT, 7, [self._time_left(record) for record in shown]),
        ]
        for name in self.records.shown:
            priority = Priority.GEBM_SCORE if name.endswith("gebm") else Priority.SCORE
            columns.append(_column(name, priority, 8, [_newest_score(record, name) for record in shown]))
        params = list(dict.fromkeys(key for record in self.records.trials for key in record.params))
        names = short_names(params, reserved=[column.heading for column in columns])
        for key in params:
            cells = [_format_value(record.params.get(key)) for record in shown]
            columns.append(_column(names[key], Priority.PARAMETER, 1, cells))
        return [column for column in columns if column.priority not in _OPTIONAL or any(column.cells)]

    def _time_left(self, record: TrialRecord) -> str:
        left = record.metrics.get("seconds_left")
        if record.status != "running" or not isinstance(left, int | float) or not math.isfinite(left):
            return ""
        now = self.clock()
        return duration(left - (now - self._reported_at.get(record.name, now)))


def _ended_status(record: TrialRecord) -> str:
    return "" if record.status == "running" else record.status


def _current(record: TrialRecord, name: str, form: str) -> str:
    """Return a number that only a running trial has."""
    value = record.metrics.get(name)
    return format(value, form) if record.status == "running" and isinstance(value, int | float) else ""


def _newest_score(record: TrialRecord, name: str) -> str:
    """Return the newest score of a running trial, or the best of one that has ended."""
    metrics = record.metrics if record.status == "running" else {**record.metrics, **record.best_metrics}
    return format_score(metrics, name)


def _format_value(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2e}" if isinstance(value, float) else " ".join(str(value).split())


def _format_params(params: dict[str, Any]) -> str:
    names = short_names(list(params))
    return "  ".join(f"{names[key]}={_format_value(value)}" for key, value in params.items())


def _text_line(text: str, style: str = "") -> Text:
    """Return a text that stays on one line, however narrow that is."""
    return Text(" ".join(text.split()) if not text.startswith(" ") else text, style, no_wrap=True, overflow="ellipsis")
