"""Scores that trials can be ranked by, and which way each is better."""

from __future__ import annotations

from pipeline.config import metrics
from pipeline.config.schema import AUTO, Config
from pipeline.config.scores import ENDS, FID_INFINITY, at_end
from pipeline.config.tasks import NAMES, facts_of

__all__ = ["choose", "mode_of", "rankable_scores"]


def rankable_scores(config: Config) -> dict[str, str]:
    """Return the scores that trials can be ranked by, each with whether less (``down``) or more (``up``) is better.

    Args:
        config: The experiment, of which ``task`` and ``evaluation.metrics`` exist.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}, "evaluation": {"metrics": ["is"]}})
        >>> rankable_scores(config)
        {'fid_gebm': 'down', 'fid_base': 'down', 'is_gebm': 'up', 'is_base': 'up'}
    """
    facts, ends = facts_of(config.task), tuple(reversed(ENDS))
    better = {facts.ranked(end): facts.better for end in ends}
    if not facts.metrics:
        return better
    measured = [metrics.metric(name) for name in ("fid", *config.evaluation.metrics)]
    directions = {score: each.better for each in measured for score in each.scores}
    if config.evaluation.fid_infinity:
        directions[FID_INFINITY] = "down"
    return better | {at_end(score, end): direction for score, direction in directions.items() for end in ends}


def mode_of(better: str) -> str:
    """Return the value of ``sweep.mode`` that a direction needs, ``max`` for ``up`` and ``min`` for ``down``."""
    return "max" if better == "up" else "min"


def choose(config: Config) -> None:
    """Set ``sweep.metric`` and ``sweep.mode`` where they are left to the task.

    Args:
        config: The experiment, which is changed; one that cannot be run is left as it is, for validation to refuse.
    """
    if config.task not in NAMES:
        return
    sweep = config.sweep
    if sweep.metric == AUTO:
        sweep.metric = facts_of(config.task).ranked("gebm")
    if sweep.mode == AUTO and all(name in metrics.names() for name in config.evaluation.metrics):
        sweep.mode = mode_of(rankable_scores(config).get(sweep.metric, "down"))
