"""Steps by which a sweep's trials are followed: those of a training, or those of the chains of a trained model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config import Config
from pipeline.config.sampler_search import is_sampler_search
from pipeline.tracking.trial_reports import CHAIN_STEP

if TYPE_CHECKING:
    from pipeline.tracking.summary import TrialRecord

__all__ = ["TrialSteps", "trial_steps"]


class TrialSteps(NamedTuple):
    """Steps of a trial, by which its progress is counted.

    Attributes:
        metric: Number of a report that says how many are done.
        key: Key of the experiment that says how many a whole trial has.
        total: That number where the search does not set the key.

    Example:
        >>> from pipeline.tracking.summary import TrialRecord
        >>> half_way = TrialRecord("000", {"sampler.num_steps": 80}, "running", {"base_step": 9, "chain_step": 40})
        >>> steps = TrialSteps.of_chains(20)
        >>> steps.unit, steps.done(half_way), steps.planned(half_way), steps.fraction(half_way)
        ('chain step', 40, 80, 0.5)
    """

    metric: str
    key: str
    total: int

    @classmethod
    def of_training(cls, total: int = 1) -> TrialSteps:
        """Return the steps of trials that train."""
        return cls("base_step", "train.base_steps", total)

    @classmethod
    def of_chains(cls, total: int = 1) -> TrialSteps:
        """Return the steps of trials that sample a trained model."""
        return cls(CHAIN_STEP, "sampler.num_steps", total)

    @property
    def are_of_chains(self) -> bool:
        """Whether trials only sample."""
        return self.metric == CHAIN_STEP

    @property
    def unit(self) -> str:
        """Name of one of them."""
        return self.metric.replace("_", " ")

    def planned(self, record: TrialRecord) -> int:
        """Return the steps of a whole trial."""
        return max(1, _count(record.params.get(self.key)) or self.total)

    def done(self, record: TrialRecord) -> int:
        """Return the steps that a trial has done: all of them where it is finished, whatever it has reported."""
        reported = _count(record.metrics.get(self.metric))
        if reported is None:
            return self.planned(record) if record.status == "finished" else 0
        return reported

    def fraction(self, record: TrialRecord) -> float:
        """Return the part of a trial's steps that is done, from 0 to 1."""
        return min(1.0, self.done(record) / self.planned(record))


def trial_steps(config: Config) -> TrialSteps:
    """Return the steps by which the trials of a sweep are followed.

    Args:
        config: The experiment.
    """
    if is_sampler_search(config):
        return TrialSteps.of_chains(config.sampler.num_steps)
    return TrialSteps.of_training(config.train.base_steps)


def _count(value: object) -> int | None:
    """Return a number of steps; ``None`` where a file has something else in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value)
