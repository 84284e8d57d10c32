"""Time that the finals of a sweep are expected to take, which is a part of what is left of it."""

from __future__ import annotations

import math

from pipeline import config as schema
from pipeline.config.tasks import facts_of
from pipeline.sweep.cluster import Capacity
from pipeline.tracking.finalists import close_to_best
from pipeline.tracking.summary import SweepSummary

__all__ = ["fewest_candidates", "finals_seconds"]


def fewest_candidates(config: schema.Config, trials: int) -> int | None:
    """Return how many trials have to be as good as the best for finals to be worth it; ``None`` if there are none.

    A best trial that no other comes close to is scored again where its second score is of more samples, since the
    registry compares only scores of one number of samples. There are no finals of a single trial, nor of densities,
    whose scores are of the same rows whatever is drawn.

    Args:
        config: The experiment.
        trials: Number of its trials.
    """
    if config.sweep.finalists == 0 or facts_of(config.task).likelihood or trials < 2:
        return None
    return 1 if config.evaluation.final_samples not in (None, config.evaluation.num_samples) else 2


def finals_seconds(config: schema.Config, records: SweepSummary, capacity: Capacity, trials: int) -> float:
    """Return how long the finals are expected to take, by the evaluations and the ranking so far.

    Args:
        config: The experiment.
        records: Its trials.
        capacity: Resources of the cluster.
        trials: Number of its trials in the end.

    Returns:
        Seconds; 0 if there will be no finals, or while no trial has been evaluated.
    """
    fewest = fewest_candidates(config, trials)
    timed = [record.metrics.get("seconds_an_evaluation") for record in records.trials]
    seconds = [value for value in timed if isinstance(value, int | float) and math.isfinite(value) and value > 0]
    close = len(close_to_best(records.ranking(), records.metric)) if seconds else 0
    if fewest is None or close < fewest:
        return 0.0
    samples, workers = config.evaluation.num_samples, capacity.num_workers
    # The workers of a trial share its evaluations; a finalist is one worker's.
    single = workers * (config.evaluation.final_samples or samples) / samples * sum(seconds) / len(seconds)
    slots = max(1, capacity.concurrent_trials * workers)
    return math.ceil(min(close, config.sweep.finalists) / slots) * single
