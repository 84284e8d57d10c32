"""Charts of a sweep's report."""

from __future__ import annotations

import math
from typing import TypeAlias

from pipeline.config.scores import format_score, plus_minus, standard_error_of
from pipeline.report.analysis import SweepResults, importances
from pipeline.report.chart_types import BEST_COLOR, STATUS_COLORS, BarChart, Chart, LineChart, ScatterChart, Series
from pipeline.tracking.summary import TrialRecord

__all__ = ["charts"]

# Warnings of a trial in its label, and keys that have a chart each.
_MAX_WARNINGS = 3
_MAX_KEYS = 6
# Curves along the chain.
_MAX_CHAINS = 10

# Step, score and standard error.
_Point: TypeAlias = tuple[int, float, float | None]


def charts(results: SweepResults) -> list[Chart]:
    """Return the charts of a sweep, those that it has numbers for.

    Args:
        results: Results of the sweep.
    """
    candidates = [
        _learning_curves(results),
        _along_chain(results),
        _response(results),
        *(_score_against(results, key) for key in results.numeric[:_MAX_KEYS]),
        _importances(results),
        _pruning(results),
    ]
    return [chart for chart in candidates if chart is not None]


def _learning_curves(results: SweepResults) -> Chart | None:
    points = {trial.name: _finite_evaluations(results, trial) for trial in results.records.trials}
    return _line_chart(results, "learning_curves", "Learning curves of all trials", "base step", points)


def _along_chain(results: SweepResults) -> Chart | None:
    points = {
        trial.name: [(step, *point) for step, point in sorted(trial.best_chain.items()) if math.isfinite(point.score)]
        for trial in results.scored[:_MAX_CHAINS]
    }
    return _line_chart(results, "along_chain", "Score along the chain, of the best trials", "MCMC step", points)


def _line_chart(
    results: SweepResults, key: str, title: str, unit: str, points: dict[str, list[_Point]]
) -> Chart | None:
    """Return the chart of a curve a trial, from its points; ``None`` where there is no point."""
    best = results.records.best()
    series: list[Series] = []
    for trial in results.records.trials:
        if not (curve := points.get(trial.name)):
            continue
        labels = [f"trial {trial.name}, {unit} {step}: {plus_minus(value, error)}" for step, value, error in curve]
        if best is not None and trial.name == best.name:
            name, color = f"best, trial {trial.name}", BEST_COLOR
        else:
            # One entry of the legend for each status.
            in_legend = any(other.name == trial.status for other in series)
            name, color = "" if in_legend else trial.status, STATUS_COLORS[trial.status]
        steps, values, errors = (list(column) for column in zip(*curve, strict=True))
        series.append(Series(name, steps, values, labels, color, errors=_bars(errors), status=trial.status))
    if not series:
        return None
    # The best trial's curve is drawn last, above the others.
    series.sort(key=lambda curve: curve.color == BEST_COLOR)
    log = "y" if _spans_decades([value for curve in series for value in curve.y]) else ""
    return LineChart(key, title, f"{unit}s", _label_with_bars(results, series), series, log)


def _finite_evaluations(results: SweepResults, trial: TrialRecord) -> list[_Point]:
    """Return base step, score and standard error of evaluations, without scores that are not finite numbers."""
    points = [
        (evaluation["base_step"], evaluation.get(results.metric), standard_error_of(evaluation, results.metric))
        for evaluation in trial.evaluations
    ]
    return [
        (step, value, error) for step, value, error in points if isinstance(value, int | float) and math.isfinite(value)
    ]


def _bars(errors: list[float | None]) -> list[float]:
    """Return the lengths of the bars of points, two standard errors to each side; empty where none has an error."""
    return [2 * (error or 0.0) for error in errors] if any(errors) else []


def _label_with_bars(results: SweepResults, series: list[Series]) -> str:
    """Return the label of a score's axis, which says what the bars are."""
    note = "bars: two standard errors" if any(any(points.errors) for points in series) else None
    return "\n".join(filter(None, [_score_label(results), note]))


def _response(results: SweepResults) -> Chart | None:
    x, y = "train.energy_lr", "train.base_lr"
    if not {x, y} <= set(results.numeric):
        return None
    series = [
        Series(
            status,
            [trial.params[x] for trial in trials],
            [trial.params[y] for trial in trials],
            [_trial_label(results, trial) for trial in trials],
            shade=[results.score(trial) for trial in trials],
            status=status,
        )
        for status, trials in _by_status(results, x, y)
    ]
    if not series:
        return None
    title = "Response surface of the learning rates"
    return ScatterChart("response", title, x, y, series, "xy", shade=_score_label(results), mode=results.records.mode)


def _score_against(results: SweepResults, key: str) -> Chart:
    series = [
        Series(
            status,
            [trial.params[key] for trial in trials],
            [results.score(trial) for trial in trials],
            [_trial_label(results, trial) for trial in trials],
            color=STATUS_COLORS[status],
            errors=_bars([standard_error_of(trial.best_metrics, results.metric) for trial in trials]),
            status=status,
        )
        for status, trials in _by_status(results, key)
    ]
    log = "x" if _spans_decades([value for points in series for value in points.x]) else ""
    log += "y" if _spans_decades([value for points in series for value in points.y]) else ""
    name = "against_" + key.replace(".", "_")
    return ScatterChart(name, f"Score against {key}", key, _label_with_bars(results, series), series, log)


def _importances(results: SweepResults) -> Chart | None:
    shares = importances(results)
    if not shares:
        return None
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    labels = [f"{key}: {share:.0%}" for key, share in ordered]
    bars = Series("", [share for _, share in ordered], [key for key, _ in ordered], labels)
    title = "Importance of each parameter for the rank of a trial"
    return BarChart("importances", title, "share of the permutation importance of a random forest", "", [bars])


def _pruning(results: SweepResults) -> Chart | None:
    names, unit = [trial.name for trial in results.records.trials], results.records.steps.unit
    series = []
    for status in STATUS_COLORS:
        trials = [trial for trial in results.records.trials if trial.status == status]
        steps = {trial.name: results.records.steps.done(trial) for trial in trials}
        if steps:
            labels = [f"trial {name}, {status} at {unit} {steps.get(name, 0)}" for name in names]
            lengths = [steps.get(name, 0) for name in names]
            series.append(Series(status, lengths, names, labels, STATUS_COLORS[status]))
    title = "How far each trial came, and how it ended"
    return BarChart("pruning", title, f"{unit}s", "trial", series) if series else None


def _spans_decades(values: list[float]) -> bool:
    """Return whether positive numbers are so far apart that a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) / min(values) > 5


def _by_status(results: SweepResults, *keys: str) -> list[tuple[str, list[TrialRecord]]]:
    """Return the trials that have a score and these parameters, grouped by status."""
    shown = [trial for trial in results.scored if trial.params.keys() >= set(keys)]
    groups = [(status, [trial for trial in shown if trial.status == status]) for status in STATUS_COLORS]
    return [(status, trials) for status, trials in groups if trials]


def _score_label(results: SweepResults) -> str:
    """Return the label of a score's axis: its measure, and on a line of its own its temperature."""
    return "\n".join(filter(None, [results.measure, results.temperature]))


def _trial_label(results: SweepResults, trial: TrialRecord) -> str:
    """Return a trial in words: name, status, score, params, temperature and warnings."""
    params = ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items()
    )
    notes = "; ".join(filter(None, [params, results.trial_temperature(trial), *trial.warnings[:_MAX_WARNINGS]]))
    score = format_score(trial.best_metrics, results.metric)
    return f"trial {trial.name}, {trial.status}: {score}; {notes}"
