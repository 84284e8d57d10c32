"""Temperatures at which the trials of a sweep were scored, from its summary."""

from __future__ import annotations

from pipeline.config.temperature import BETA, SEARCHED_BETA, describe_temperature, describe_temperatures, plausible_beta
from pipeline.tracking.summary import SweepSummary, TrialRecord

__all__ = ["sweep_betas", "sweep_temperature", "trial_beta", "trial_temperature"]


def trial_beta(records: SweepSummary, trial: TrialRecord) -> float | None:
    """Return the inverse temperature at which a trial's best score was sampled.

    Args:
        records: The sweep; ``facts`` has the beta of trials without their own.
        trial: One of its trials.

    Returns:
        Its beta; ``None`` where scores have none or it is not known.
    """
    own = plausible_beta(trial.best_metrics.get(BETA))
    searched = plausible_beta(trial.params.get(SEARCHED_BETA))
    return next((beta for beta in (own, searched, plausible_beta(records.facts.get(BETA))) if beta is not None), None)


def trial_temperature(records: SweepSummary, trial: TrialRecord) -> str | None:
    """Describe the temperature of a trial's best score; ``None`` where it has none."""
    beta = trial_beta(records, trial)
    return None if beta is None else describe_temperature(beta)


def sweep_betas(records: SweepSummary) -> list[float]:
    """Return the different inverse temperatures of a sweep's trials, in ascending order."""
    betas = {trial_beta(records, trial) for trial in records.trials} or {plausible_beta(records.facts.get(BETA))}
    return sorted(beta for beta in betas if beta is not None)


def sweep_temperature(records: SweepSummary) -> str | None:
    """Describe the temperature of all of a sweep's scores.

    Args:
        records: The sweep.

    Returns:
        One temperature, or the range of several; ``None`` where scores have none or it is not known.
    """
    betas = sweep_betas(records)
    return describe_temperatures(betas) if betas else None
