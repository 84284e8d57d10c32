"""Charts of a sweep's report."""

from __future__ import annotations

from pipeline.config.scores import format_score, standard_error_of
from pipeline.report.analysis import SweepResults
from pipeline.report.chart_types import BarChart, Chart, ScatterChart, Series
from pipeline.report.curves import along_chain, evaluation_curves
from pipeline.report.palette import STATUS_COLORS
from pipeline.report.score_axis import bars, label_with_bars, log_axes, score_label, share_axis
from pipeline.tracking.summary import TrialRecord

__all__ = ["charts"]

# Warnings of a trial in its label, and keys that have a chart each.
_MAX_WARNINGS = 3
_MAX_KEYS = 6
# Trials of a chart, the best of them: a report stays below 10 MB.
_MAX_TRIALS = 1_000


def charts(results: SweepResults) -> list[Chart]:
    """Return the charts of a sweep, those that it has numbers for.

    Args:
        results: Results of the sweep.
    """
    against = [_score_against(results, key) for key in results.numeric[:_MAX_KEYS]]
    candidates = [
        *evaluation_curves(results),
        along_chain(results),
        _response(results),
        *share_axis(against),
        _importances(results),
        _pruning(results),
    ]
    return [chart for chart in candidates if chart is not None]


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
    return ScatterChart("response", title, x, y, series, "xy", shade=score_label(results), mode=results.records.mode)


def _score_against(results: SweepResults, key: str) -> Chart:
    series = [
        Series(
            status,
            [trial.params[key] for trial in trials],
            [results.score(trial) for trial in trials],
            [_trial_label(results, trial) for trial in trials],
            color=STATUS_COLORS[status],
            errors=bars([standard_error_of(trial.best_metrics, results.metric) for trial in trials]),
            status=status,
        )
        for status, trials in _by_status(results, key)
    ]
    x, y = ([value for points in series for value in getattr(points, axis)] for axis in "xy")
    name = "against_" + key.replace(".", "_")
    return ScatterChart(name, f"Score against {key}", key, label_with_bars(results, series), series, log_axes(x=x, y=y))


def _importances(results: SweepResults) -> Chart | None:
    shares = results.shares
    if not shares:
        return None
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    labels = [f"{key}: {share:.0%}" for key, share in ordered]
    lengths = Series("", [share for _, share in ordered], [key for key, _ in ordered], labels)
    title = "Importance of each parameter for the rank of a trial"
    return BarChart("importances", title, "share of the permutation importance of a random forest", "", [lengths])


def _pruning(results: SweepResults) -> Chart | None:
    shown, unit = results.records.trials[-_MAX_TRIALS:], results.records.steps.unit
    names, series = [trial.name for trial in shown], []
    for status in STATUS_COLORS:
        trials = [trial for trial in shown if trial.status == status]
        steps = {trial.name: results.records.steps.done(trial) for trial in trials}
        if steps:
            labels = [f"trial {name}, {status} at {unit} {steps.get(name, 0)}" for name in names]
            lengths = [steps.get(name, 0) for name in names]
            series.append(Series(status, lengths, names, labels, STATUS_COLORS[status]))
    title = "How far each trial came, and how it ended"
    if len(shown) < len(results.records.trials):
        title += f": the last {len(shown):,} of {len(results.records.trials):,}"
    return BarChart("pruning", title, f"{unit}s", "trial", series) if series else None


def _by_status(results: SweepResults, *keys: str) -> list[tuple[str, list[TrialRecord]]]:
    """Return the best trials that have a score and these parameters, grouped by status."""
    shown = [trial for trial in results.scored if trial.params.keys() >= set(keys)][:_MAX_TRIALS]
    groups = [(status, [trial for trial in shown if trial.status == status]) for status in STATUS_COLORS]
    return [(status, trials) for status, trials in groups if trials]


def _trial_label(results: SweepResults, trial: TrialRecord) -> str:
    """Return a trial in words: name, status, score, params, temperature and warnings."""
    params = ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items()
    )
    notes = "; ".join(filter(None, [params, results.trial_temperature(trial), *trial.warnings[:_MAX_WARNINGS]]))
    score = format_score(trial.best_metrics, results.metric)
    return f"trial {trial.name}, {trial.status}: {score}; {notes}"
