"""Tables of a sweep that has ended: its trials, its finalists, and means over seeds.

Where a window is too narrow, whole columns are left out, the least wanted first, and the title says so: a cell that is
cut reads as another number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipeline.config.scores import format_score, plus_minus
from pipeline.sweep.display.eta import duration
from pipeline.sweep.display.live_table import STYLES, short_names
from pipeline.tracking.finalists import order_changes
from pipeline.tracking.finalists_table import finalists_table
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.summary_temperature import sweep_betas, sweep_temperature, trial_beta

__all__ = ["draw_finalists", "draw_seeds", "draw_trials"]


def draw_trials(records: SweepSummary, width: int | None = None) -> Table:
    """Return the table of the trials, best first.

    Args:
        records: The sweep's trials.
        width: Characters of a line (default: all columns fit).
    """
    keys = list(dict.fromkeys(key for record in records.trials for key in record.params))
    names = _score_names(records)
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
            *([_format_beta(records, record)] if differs else []),
            *(_format_param(record.params, key) for key in keys),
        ]
        rows.append(cells)
    # The score that ranks is wanted most, then the others, and what was searched.
    scores = sorted(range(2, 2 + len(names)), key=lambda column: heads[column] != records.metric)
    params = range(len(heads) - len(keys), len(heads))
    wanted = [0, 1, *scores, *params, *range(2 + len(names), params.start)]
    notes = [str(records.facts.get("measure", records.metric)), sweep_temperature(records)]
    styles = [STYLES[record.status] if record.status in ("failed", "pruned") else None for record in ranking]
    return _draw(f"Trials, {order}", notes, heads, rows, wanted=wanted, width=width, texts=2, styles=styles)


def draw_finalists(records: SweepSummary, width: int | None = None) -> Table | None:
    """Return the table of the finalists by their second scores, the best first.

    Args:
        records: The sweep's trials.
        width: Characters of a line (default: all columns fit).

    Returns:
        The table; None where no second scores decide.
    """
    if not (lines := finalists_table(records)):
        return None
    finals, (heads, *rows) = records.finals(), lines
    changed, pairs = order_changes(finals, records.mode)
    title = f"Finalists on {finals[0].num_samples:,} fresh samples"
    title += f"; {changed} of {pairs} pairs changed order" if pairs else ""
    return _draw(title, [], heads, rows, wanted=range(len(heads)), width=width, texts=1)


def draw_seeds(records: SweepSummary, width: int | None = None) -> Table | None:
    """Return the table of means and standard errors over the seeds, the best first.

    Args:
        records: The sweep's trials.
        width: Characters of a line (default: all columns fit).

    Returns:
        The table; None if no two trials differ in their seed alone.
    """
    groups = records.mean_over_seeds()
    if not groups:
        return None
    keys = list(dict.fromkeys(key for group in groups for key in group.params))
    names = _score_names(records)
    heads = [*short_names(keys, reserved=[*names, "seeds"]).values(), *names, "seeds"]
    rows: list[list[str]] = []
    for group in groups:
        scores = [plus_minus(group.mean.get(name, math.nan), group.standard_error.get(name)) for name in names]
        rows.append([*(_format_param(group.params, key) for key in keys), *scores, str(group.trials)])
    # A mean says nothing without what it is of, nor that without the mean.
    ranks = heads.index(records.metric, len(keys))
    others = [column for column in range(len(keys), len(heads)) if column != ranks]
    title = "; ".join(filter(None, ["Means over seeds, ± their standard errors", sweep_temperature(records)]))
    return _draw(title, [], heads, rows, wanted=[ranks, *range(len(keys)), *others], width=width, texts=0)


def _draw(
    title: str,
    notes: list[str | None],
    heads: list[str],
    rows: list[list[str]],
    *,
    wanted: Sequence[int],
    width: int | None,
    texts: int,
    styles: Sequence[str | None] | None = None,
) -> Table:
    """Return a table of the columns that fit a width side by side, the two that are wanted most whatever it is.

    Args:
        title: What the table is.
        notes: What else is said of it, in brackets.
        heads: Head of each column.
        rows: Cells of each row.
        wanted: All columns, the one that is wanted most first.
        width: Characters of a line; ``None`` if all fit.
        texts: Number of columns at the left that are texts, not numbers.
        styles: Style of each row.
    """
    # A line between two columns, and a blank on both sides of each.
    left, fitting = math.inf if width is None else width - 1, []
    for column in wanted:
        left -= 3 + max(len(text) for text in (heads[column], *(cells[column] for cells in rows)))
        if left < 0 and len(fitting) >= 2:
            break
        fitting.append(column)
    left_out = None if len(fitting) == len(heads) else "columns that do not fit are left out"
    said = "; ".join(filter(None, [*notes, left_out]))
    table = Table(title=f"{title} ({said})" if said else title, title_justify="left", header_style="bold")
    for column in sorted(fitting):
        table.add_column(heads[column], justify="left" if column < texts else "right", no_wrap=True)
    for cells, style in zip(rows, styles or [None] * len(rows), strict=True):
        table.add_row(*(cells[column] for column in sorted(fitting)), style=style)
    return table


def _score_names(records: SweepSummary) -> list[str]:
    """Return the scores that are shown, the one that ranks among them."""
    return list(dict.fromkeys([*reversed(records.shown), records.metric]))


def _format_beta(records: SweepSummary, record: TrialRecord) -> str:
    beta = trial_beta(records, record)
    return "-" if beta is None else f"{beta:g}"


def _format_param(params: Mapping[str, Any], key: str) -> str:
    """Return a parameter's cell; empty where the trial does not have it."""
    if key not in params:
        return ""
    return f"{params[key]:.2e}" if isinstance(params[key], float) else str(params[key])
