"""Curves of a report, one a trial: the score against steps, time and cost, and along the chain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from pipeline.config.scores import plus_minus, standard_error_of
from pipeline.report.analysis import SweepResults
from pipeline.report.chart_types import Chart, LineChart, Series
from pipeline.report.palette import BEST_COLOR, STATUS_COLORS
from pipeline.report.score_axis import bars, label_with_bars, log_axes, share_axis
from pipeline.tracking.summary import TrialRecord

__all__ = ["along_chain", "evaluation_curves"]

# Curves of a chart, those of the best trials, and points of all of them together: a report stays below 10 MB.
_MAX_CURVES = 400
_MAX_POINTS = 4_000

# Position, score and standard error.
_Point: TypeAlias = tuple[float, float, float | None]


def evaluation_curves(results: SweepResults) -> list[LineChart]:
    """Return the charts of all evaluations: by steps, by the sweep's wall-clock time, and by what the trial cost.

    All have the same vertical axis. Those of time and cost need what earlier versions did not write down.

    Args:
        results: Results of the sweep.
    """
    steps = _points(results, lambda evaluation: evaluation.get("base_step"))
    charts = [_line_chart(results, "learning_curves", "Learning curves of all trials", "base steps", steps)]
    divisor, unit = (60.0, "minutes") if results.records.seconds() < 2 * 3600 else (3600.0, "hours")
    times = _points(results, lambda evaluation: _scaled(evaluation.get("sweep_seconds"), 1 / divisor))
    chart = _line_chart(results, "over_time", "Score against wall-clock time of the sweep", unit, times)
    charts.append(None if chart is None else replace(chart, series=[*chart.series, _best_so_far(results, times)]))
    if (cost := results.cost) is not None:
        spent = _points(results, lambda evaluation: _scaled(evaluation.get("trial_seconds"), cost.rate / 3600))
        charts.append(_line_chart(results, "over_cost", f"Score against {cost.unit} of each trial", cost.unit, spent))
    return share_axis([chart for chart in charts if chart is not None])


def along_chain(results: SweepResults) -> Chart | None:
    """Return the chart of the score along the chain, from base to GEBM, of all trials at their best evaluations.

    Args:
        results: Results of the sweep.
    """
    points: dict[str, list[_Point]] = {}
    for trial in results.records.trials:
        for step, (score, error) in sorted(trial.best_chain.items()):
            if math.isfinite(score):
                points.setdefault(trial.name, []).append((step, score, error))
    return _line_chart(results, "along_chain", "Score along the chain, of all trials", "MCMC steps", points)


def _scaled(value: Any, factor: float) -> float | None:
    return float(value) * factor if isinstance(value, int | float) and math.isfinite(value) else None


def _points(results: SweepResults, position: Callable[[dict[str, Any]], float | None]) -> dict[str, list[_Point]]:
    """Return the points of each trial's evaluations that have a position and a score that is a finite number."""
    points: dict[str, list[_Point]] = {}
    for trial in results.records.trials:
        for evaluation in trial.evaluations:
            at, value = position(evaluation), evaluation.get(results.metric)
            if at is not None and isinstance(value, int | float) and math.isfinite(value):
                error = standard_error_of(evaluation, results.metric)
                points.setdefault(trial.name, []).append((at, value, error))
    return points


def _line_chart(
    results: SweepResults, key: str, title: str, unit: str, points: dict[str, list[_Point]]
) -> LineChart | None:
    """Return the chart of a curve a trial, from its points; ``None`` where there is no point."""
    best, drawn = results.records.best(), [trial for trial in results.records.ranking() if points.get(trial.name)]
    if not drawn:
        return None
    shown = drawn[:_MAX_CURVES]
    series: list[Series] = []
    # In the order in which they ran, the best trial's curve last, above the others.
    for trial in sorted(shown, key=lambda trial: (best is not None and trial.name == best.name, trial.name)):
        in_legend = any(other.name == trial.status for other in series)
        curve = _thinned(points[trial.name], max(2, _MAX_POINTS // len(shown)))
        if best is not None and trial.name == best.name:
            name, color = f"best, trial {trial.name}", BEST_COLOR
        else:
            # One entry of the legend for each status.
            name, color = "" if in_legend else trial.status, STATUS_COLORS[trial.status]
        series.append(_curve(trial, unit, curve, name, color))
    if len(shown) < len(drawn):
        title += f": the best {len(shown):,} of {len(drawn):,}"
    log = log_axes(y=[value for curve in series for value in curve.y])
    return LineChart(key, title, unit, label_with_bars(results, series), series, log)


def _curve(trial: TrialRecord, unit: str, points: list[_Point], name: str, color: str) -> Series:
    labels = [f"trial {trial.name}, {at:.6g} {unit}: {plus_minus(value, error)}" for at, value, error in points]
    positions, values, errors = (list(column) for column in zip(*points, strict=True))
    return Series(name, positions, values, labels, color, errors=bars(errors), status=trial.status)


def _best_so_far(results: SweepResults, points: dict[str, list[_Point]]) -> Series:
    """Return the best score of all trials up to each time, where it got better, and at the end."""
    better = min if results.records.mode == "min" else max
    evaluations = sorted((at, value) for curve in points.values() for at, value, _ in curve)
    times, values = zip(*evaluations, strict=True)
    best = list(itertools.accumulate(values, better))
    steps = [i for i in range(len(best)) if i in (0, len(best) - 1) or best[i] != best[i - 1]]
    return Series("best so far", [times[i] for i in steps], [best[i] for i in steps], color=BEST_COLOR, holds=True)


def _thinned(points: list[_Point], most: int) -> list[_Point]:
    """Return at most that number of a curve's points, evenly spaced, with both ends."""
    if len(points) <= most:
        return points
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]
