"""Trials of a sweep by rank: the best compared with the next, and the best, the median and the worst."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pipeline.config.scores import standard_error_of
from pipeline.report.analysis import SweepResults
from pipeline.tracking.summary import TrialRecord

__all__ = ["Comparison", "compare_best", "latent_keys", "best_median_worst"]

_ABSENT = object()
# Latents of an evaluation are a function of these.
_LATENT_KEYS = ("seed", "evaluation.seed", "evaluation.num_samples", "model.latent_dim", "model.networks")


class Comparison(NamedTuple):
    """The best trial and the next.

    Attributes:
        best: The best.
        next: The one after it.
        difference: Score of the next minus that of the best.
        error: Standard error of the difference, as of two independent sets of samples; ``None`` where it is not known.
        keys: Keys that the search set to something else in the two.
    """

    best: TrialRecord
    next: TrialRecord
    difference: float
    error: float | None
    keys: list[str]

    @property
    def is_clear(self) -> bool | None:
        """Whether the two scores differ by more than two standard errors; ``None`` where there is no error."""
        return None if self.error is None else abs(self.difference) > 2 * self.error


def compare_best(results: SweepResults) -> Comparison | None:
    """Compare the best trial with the next: by the second scores of the finalists where these decide.

    Args:
        results: Results of the sweep.

    Returns:
        The comparison; ``None`` with fewer than two trials that have a score.
    """
    records = results.records
    finals = [trial for finalist in records.finals() if (trial := records.get(finalist.name)) is not None]
    # Of one finalist alone with a second score, the next is the next by first scores.
    ranked = list({trial.name: trial for trial in [*finals, *results.scored]}.values())
    if len(ranked) < 2:
        return None
    (first, second), both = ranked[:2], len(finals) > 1
    scores = [records.final_metrics(trial) if both else trial.best_metrics for trial in (first, second)]
    values = [float(metrics[results.metric]) for metrics in scores]
    errors = [standard_error_of(metrics, results.metric) for metrics in scores]
    error = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    keys = [key for key in dict.fromkeys([*first.params, *second.params]) if _value(first, key) != _value(second, key)]
    return Comparison(first, second, values[1] - values[0], error, keys)


def best_median_worst(results: SweepResults) -> dict[str, TrialRecord]:
    """Return the best, the median and the worst trial of those with a score; fewer where there are fewer.

    Args:
        results: Results of the sweep.

    Returns:
        ``best``, ``median`` and ``worst`` -> the trial.
    """
    best, ranked = results.records.best(), results.scored
    if best is None:
        return {}
    trials = {"best": best, "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    names: set[str] = set()
    # A trial that is two of them, as of two trials the median is the worst, is shown once: as best, then as worst.
    for rank in ("best", "worst", "median"):
        if trials[rank].name in names:
            del trials[rank]
        else:
            names.add(trials[rank].name)
    return trials


def _value(trial: TrialRecord, key: str) -> Any:
    return trial.params.get(key, _ABSENT)


def latent_keys(trials: list[TrialRecord]) -> list[str]:
    """Return the keys that give trials other latents and that differ between them: none where pictures share latents.

    Args:
        trials: Trials of one sweep.
    """
    return [key for key in _LATENT_KEYS if len({repr(_value(trial, key)) for trial in trials}) > 1]
