"""Axes of scores in a report's charts: labels, error bars, logarithms, and one range for charts that are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pipeline.report.analysis import SweepResults
from pipeline.report.chart_types import Chart, Series

__all__ = ["bars", "label_with_bars", "log_axes", "score_label", "share_axis"]

_Chart = TypeVar("_Chart", bound=Chart)

# Part of a range that is left free on each side.
_MARGIN = 0.05
# Powers of ten that a float has.
_LARGEST_EXPONENT = 300


def bars(errors: list[float | None]) -> list[float]:
    """Return the lengths of the bars of points, two standard errors to each side; empty where none has an error.

    Example:
        >>> bars([0.5, None]), bars([None, None])
        ([1.0, 0.0], [])
    """
    return [2 * (error or 0.0) for error in errors] if any(errors) else []


def score_label(results: SweepResults) -> str:
    """Return the label of a score's axis: its measure, and on a line of its own its temperature."""
    return "\n".join(filter(None, [results.measure, results.temperature]))


def label_with_bars(results: SweepResults, series: list[Series]) -> str:
    """Return the label of a score's axis, which says what the bars are."""
    note = "bars: two standard errors" if any(any(points.errors) for points in series) else None
    return "\n".join(filter(None, [score_label(results), note]))


def log_axes(*, x: Sequence[float] = (), y: Sequence[float] = ()) -> str:
    """Return the axes whose values are positive and so far apart that a logarithm shows them better.

    Example:
        >>> log_axes(x=[1e-5, 1e-3], y=[4.0, 5.0]), log_axes(x=[0.0, 9.0])
        ('x', '')
    """
    return "".join(name for name, values in (("x", x), ("y", y)) if values and _spans_decades(values))


def share_axis(charts: Sequence[_Chart]) -> list[_Chart]:
    """Return charts of scores with one vertical axis: its range, with all bars and a margin, and whether it is a log's.

    Args:
        charts: Charts that are compared.

    Example:
        >>> from pipeline.report.chart_types import LineChart
        >>> lines = [LineChart("", "", "", "", [Series("", [0], [value])]) for value in (2.0, 4.0)]
        >>> [chart.y_range for chart in share_axis(lines)]
        [(1.9, 4.1), (1.9, 4.1)]
    """
    series = [points for chart in charts for points in chart.series]
    log = log_axes(y=[value for points in series for value in points.y])
    y_range = _range(series, is_log=bool(log))
    return [replace(chart, log=chart.log.replace("y", "") + log, y_range=y_range) for chart in charts]


def _range(series: list[Series], *, is_log: bool) -> tuple[float, float] | None:
    """Return the lowest and the highest value; ``None`` where they are no range that can be drawn."""
    ends = [value for points in series for value in points.y]
    for points in series:
        for value, bar in zip(points.y, points.errors, strict=False):
            # A bar that reaches below zero has no end on a logarithmic axis.
            ends += [value + bar, *([] if is_log and value <= bar else [value - bar])]
    if not ends:
        return None
    low, high = (math.log10(end) if is_log else end for end in (min(ends), max(ends)))
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    largest = _LARGEST_EXPONENT if is_log else math.inf
    if not -largest < low < high < largest:
        return None
    return (10**low, 10**high) if is_log else (low, high)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 5
