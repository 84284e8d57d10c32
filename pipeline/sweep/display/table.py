"""A sweep as a table that fits the window: how far it is, the best so far, the trials that run, the best that ended."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.sweep.display.eta import Eta, TrialProgress, estimate_eta
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.trial_temperature import sweep_temperature, trial_temperature

__all__ = ["STYLES", "SweepStatus", "duration", "score", "scores_in_words", "short_names"]

STYLES = {"finished": "green", "running": "", "failed": "red", "pruned": "dim", "pending": "dim"}
_GAP = 2  # columns between two of the table's
_PROGRESS = "progress"  # the column with the bars
_FOREVER = 1e15  # seconds
_BAR = (8, 20)  # columns of a trial's bar, at least and at most


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(65), duration(3725)
        ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def score(value: Any) -> str:
    """A score, or whatever else was measured, in eight columns or so.

    Example:
        >>> score(4.1702), score(-123456.7), score(float("nan")), score(None)
        ('4.170', '-1.23e+05', 'nan', '')
    """
    if not isinstance(value, int | float):
        return ""
    return f"{value:.3f}" if abs(value) < 10_000 or not math.isfinite(value) else f"{value:.2e}"


def short_names(keys: list[str]) -> dict[str, str]:
    """Keys without their groups, where that leaves no two the same.

    Example:
        >>> short_names(["train.base_lr", "sampler.step_size", "train.negatives.step_size"])
        {'train.base_lr': 'base_lr', 'sampler.step_size': 'sampler.step_size', \
'train.negatives.step_size': 'train.negatives.step_size'}
    """
    count = Counter(key.rpartition(".")[2] for key in keys)
    return {key: short if count[short := key.rpartition(".")[2]] == 1 else key for key in keys}


def scores_in_words(records: SweepSummary, record: TrialRecord) -> str:
    """Return a trial's best scores with what they must not be read without: their temperature, and its warnings.

    Args:
        records: The sweep.
        record: One of its trials.

    Example:
        >>> records = SweepSummary("out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={})
        >>> trial = records.add("000", {})
        >>> metrics = {"base_step": 8, "fid_base": 5.0, "fid_gebm": 4.5, "beta": 10.0}
        >>> records.evaluated(trial, metrics, "out/trials/000/checkpoints/step-00000008")
        >>> scores_in_words(records, trial)
        'fid_base 5.000, fid_gebm 4.500 (beta 10: colder than the model)'
        >>> new = records.add_warnings(trial, ["KALE is negative"])
        >>> scores_in_words(records, trial)
        'fid_base 5.000, fid_gebm 4.500 (beta 10: colder than the model; 1 warning)'
    """
    names = dict.fromkeys([*records.shown, records.metric])
    scores = ", ".join(f"{name} {score(record.best_metrics[name])}" for name in names if name in record.best_metrics)
    count = len(record.warnings)
    warned = f"{count} warning{'s' if count > 1 else ''}" if count else None
    notes = "; ".join(filter(None, [trial_temperature(records, record), warned]))
    return f"{scores} ({notes})" if notes else scores


class _Column(NamedTuple):
    """A column of the table.

    Attributes:
        heading: its name.
        rank: when it comes to room, the lower the sooner it has some.
        width: of its cells, at least.
        cell: what stands in a trial's row.
    """

    heading: str
    rank: int
    width: int
    cell: Callable[[TrialRecord], str]


@dataclass
class SweepStatus:
    """Where a sweep stands; rich draws it into as much room as there is.

    Args:
        records: its trials.
        name: of the experiment.
        base_steps: of a whole trial, where the search does not set them.
        trials: how many there will be.
        at_a_time: how many run side by side.
        clock: gives the time in seconds.
    """

    records: SweepSummary
    name: str
    base_steps: int
    trials: int = 0
    at_a_time: int = 1
    clock: Callable[[], float] = time.monotonic
    _begun: float | None = None
    _heard: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """From now on time goes by."""
        self._begun = self.clock()

    def heard(self, record: TrialRecord) -> None:
        """A trial has reported."""
        self._heard[record.name] = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return 0.0 if self._begun is None else self.clock() - self._begun

    def planned(self, record: TrialRecord) -> int:
        """Base steps of a trial."""
        return max(1, int(record.params.get("train.base_steps", self.base_steps)))

    def counts(self) -> dict[str, int]:
        """Trials by what they do; together they are all there will be."""
        found = Counter(record.status for record in self.records.trials)
        started = sum(number for status, number in found.items() if status != "pending")
        waiting = max(self.trials, len(self.records.trials)) - started
        return {
            "running": found["running"],
            "waiting": waiting,
            **{status: found[status] for status in TERMINAL_STATUSES},
        }

    def remaining(self) -> Eta | None:
        """What is left of the sweep, as far as that can be told."""
        courses = [
            TrialProgress(self._fraction(record), record.seconds, record.status in TERMINAL_STATUSES)
            for record in self.records.trials
            if record.status != "pending"
        ]
        return estimate_eta(courses, self.counts()["waiting"], self.at_a_time)

    def _fraction(self, record: TrialRecord) -> float:
        """The part of a trial's time that is over, by its own estimate of what is left: start-up and warm-ups count."""
        left = record.metrics.get("seconds_left")
        if record.status == "finished":
            return 1.0
        if isinstance(left, int | float) and 0 <= left < _FOREVER and record.seconds > 0:
            return record.seconds / (record.seconds + left)
        return min(1.0, record.metrics.get("base_step", 0) / self.planned(record))

    def summary(self) -> str:
        """The sweep in a line, for where nothing is drawn."""
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
            parts.append(f"about {duration(left.seconds)} left")
        best = self.records.best()
        if best is not None:
            parts.append(f"best is trial {best.name} with {scores_in_words(self.records, best)}")
        return ", ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many lines as fit the window, one less than it has, so that nothing scrolls."""
        width, room = options.max_width, console.size.height - 1
        best = self.records.best()
        lines: list[RenderableType] = [self._head(width), self._progress(width)]
        if best is not None and room >= 5:
            lines.append(_line(f"best: trial {best.name}, {scores_in_words(self.records, best)}", "bold"))
            if best.params and room >= 6:
                lines.append(_line(f"      {_written(best.params)}"))
        if room >= len(lines) + 5:
            lines.append(Text())
        if room >= len(lines) + 2:
            lines += self._table(width, room - len(lines))
        yield from lines[: max(room, 1)]

    def _head(self, width: int) -> Text:
        counts = self.counts()
        told = ", ".join(f"{number} {what}" for what, number in counts.items() if number or what == "running")
        trials, temperature = sum(counts.values()), sweep_temperature(self.records)
        heads = [f"{trials} trials of {self.name}", f"{trials} trials"]
        if temperature is not None:
            heads = [*(f"{head} ({temperature})" for head in heads), *heads]
        fitting = (head for head in heads if len(f"{head}: {told}") <= width)
        return _line(f"{next(fitting, heads[-1])}: {told}", "bold")

    def _progress(self, width: int) -> RenderableType:
        counts, left = self.counts(), self.remaining()
        # While no trial has come anywhere, what has ended is all that is done.
        done = left.done if left else sum(counts[status] for status in TERMINAL_STATUSES) / max(1, sum(counts.values()))
        told = f"{math.floor(100 * done)}%, {duration(self.elapsed)} elapsed"
        if counts["running"] or counts["waiting"]:
            told += f", about {duration(left.seconds)} left" if left else ", time left not known yet"
        if width < len(told) + _BAR[0] + _GAP:
            return _line(told)
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_row(ProgressBar(total=1.0, completed=done, width=width - len(told) - _GAP), Text(told))
        return grid

    def _table(self, width: int, room: int) -> Iterator[RenderableType]:
        """The heading and the rows, in so many lines."""
        running = [record for record in self.records.trials if record.status == "running"]
        ended = [record for record in self.records.ranking() if record.status in TERMINAL_STATUSES]
        rows = room - 1
        more = len(running) - rows
        if more > 0:
            running = running[: rows - 1]
        shown = [*running, *ended[: max(0, rows - len(running) - (more > 0))]]
        if not shown:
            return
        columns = self._columns(shown, width)
        # No cell takes a second line: a row is a line.
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_edge=False)
        for column in columns:
            left = column.heading in ("trial", _PROGRESS)
            table.add_column(
                column.heading,
                width=column.width,
                no_wrap=True,
                overflow="ellipsis",
                justify="left" if left else "right",
            )
        for record in shown:
            table.add_row(
                *(
                    self._bar(record, column.width) if column.heading == _PROGRESS else Text(column.cell(record))
                    for column in columns
                ),
                style=STYLES[record.status],
            )
        yield table
        if more > 0:
            yield _line(f"and {more + 1} more that run", "dim")

    def _bar(self, record: TrialRecord, width: int) -> RenderableType:
        """How far a trial is, or how it has ended."""
        if record.status != "running":
            return Text(record.status)
        fraction = min(1.0, record.metrics.get("base_step", 0) / self.planned(record))
        return ProgressBar(total=1.0, completed=fraction, width=width)

    def _columns(self, shown: list[TrialRecord], width: int) -> list[_Column]:
        """The columns that fit, each as wide as its widest cell, and the bar with what is left."""
        params = list(dict.fromkeys(key for record in self.records.trials for key in record.params))
        names = short_names(params)
        every = [
            _Column("trial", 0, 5, lambda record: record.name),
            _Column(_PROGRESS, 2, _BAR[0], lambda record: "" if record.status == "running" else record.status),
            _Column("base step", 4, 9, lambda record: str(record.metrics.get("base_step", 0))),
            _Column("steps/s", 5, 7, lambda record: self._now(record, "base_steps_per_second", ".2f")),
            _Column("images/s", 6, 8, lambda record: self._now(record, "images_per_second", ",.0f")),
            _Column("of peak", 8, 7, lambda record: self._now(record, "fraction_of_peak", ".0%")),
            _Column("left", 3, 7, self._left),
            *(
                _Column(name, 1 if name.endswith("gebm") else 2, 8, lambda record, name=name: _newest(record, name))
                for name in self.records.shown
            ),
            *(
                _Column(names[key], 10 + index, 1, lambda record, key=key: _value(record.params.get(key)))
                for index, key in enumerate(params)
            ),
        ]
        every = [column for column in every if column.rank < 8 or any(map(column.cell, shown))]
        sized = [
            column._replace(width=max(len(column.heading), column.width, *(len(column.cell(one)) for one in shown)))
            for column in every
        ]
        left, taken = width + _GAP, 0
        order = sorted(sized, key=lambda column: column.rank)
        for column in order:
            if column.width + _GAP > left:
                break
            left -= column.width + _GAP
            taken += 1
        fitting = [column for column in sized if column in order[: max(taken, 1)]]
        wider = min(_BAR[1] - _BAR[0], left)
        return [c._replace(width=c.width + wider) if c.heading == _PROGRESS else c for c in fitting]

    def _now(self, record: TrialRecord, name: str, form: str) -> str:
        value = record.metrics.get(name)
        return format(value, form) if record.status == "running" and isinstance(value, int | float) else ""

    def _left(self, record: TrialRecord) -> str:
        left = record.metrics.get("seconds_left")
        if record.status != "running" or not isinstance(left, int | float) or not math.isfinite(left):
            return ""
        now = self.clock()
        return duration(left - (now - self._heard.get(record.name, now)))


def _newest(record: TrialRecord, name: str) -> str:
    """Of a trial that runs the newest score, of one that has ended its best."""
    metrics = record.metrics if record.status == "running" else {**record.metrics, **record.best_metrics}
    return score(metrics.get(name))


def _value(value: object) -> str:
    return "" if value is None else f"{value:.2e}" if isinstance(value, float) else " ".join(str(value).split())


def _written(params: dict[str, Any]) -> str:
    names = short_names(list(params))
    return "  ".join(f"{names[key]}={_value(value)}" for key, value in params.items())


def _line(text: str, style: str = "") -> Text:
    """A text that stays on one line, however narrow that is."""
    return Text(" ".join(text.split()) if not text.startswith(" ") else text, style, no_wrap=True, overflow="ellipsis")
