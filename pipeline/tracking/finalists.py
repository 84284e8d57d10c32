"""Finalists of a sweep: the trials that its ranking cannot tell apart, scored again on latents of their own.

The best of many noisy scores is partly the luckiest one. What decides between those within two standard errors of it is
a second score, of more samples, from latents that chose nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import ConfigDict, Field, Strict, TypeAdapter

from pipeline.config.scores import standard_error_of
from pipeline.tracking.locations import absolute_folder, relative_place
from pipeline.tracking.summary_types import Metrics, TrialName

__all__ = ["CLOSE", "FINALISTS", "Finalist", "Scored", "close_to_best", "decided", "order_changes", "read_finalists"]

CLOSE = 2.0
"""Standard errors of a difference within which two scores are not distinguished."""

_Count = Annotated[int, Strict(), Field(ge=1, le=2**53)]
_Number = Annotated[float, Strict()]
_Name = Annotated[str, Strict(), Field(max_length=1_000)]
_Seed = Annotated[int, Strict(), Field(ge=0, le=2**53)]


@dataclass
class Finalist:
    """A trial among the best, and its second score.

    Attributes:
        name: Name of the trial.
        checkpoint: URL of the checkpoint that is scored.
        rank: Rank of the trial before, from 1.
        num_samples: Samples of the second score.
        seed: Seed of its latents and noise.
        metrics: Its scores with their standard errors, by the names of an evaluation; empty before they are known.
        score: The one of them that trials are ranked by; ``None`` before it is known.
        standard_error: Its standard error.
        error: Why it cannot be scored, on one line.
        metric: The score's name; ``None`` where an older summary does not say it.
        extractor: Name of the feature extractor that it is measured by, likewise.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: TrialName
    checkpoint: Annotated[str, Strict(), Field(max_length=100_000)]
    rank: _Count
    num_samples: _Count
    seed: _Seed
    metrics: Metrics = field(default_factory=dict)
    score: _Number | None = None
    standard_error: _Number | None = None
    error: Annotated[str, Strict(), Field(max_length=10_000)] | None = None
    metric: _Name | None = None
    extractor: _Name | None = None

    @property
    def is_scored(self) -> bool:
        """Whether it has its second score."""
        return self.score is not None and math.isfinite(self.score)

    def scores_the_same_as(self, other: Finalist) -> bool:
        """Return whether a second score would be measured in the same way on the same checkpoint."""
        mine, others = ((one.name, one.checkpoint, one.num_samples, one.seed) for one in (self, other))
        measured, wanted = (self.metric, self.extractor), (other.metric, other.extractor)
        return mine == others and all(old in (None, new) for old, new in zip(measured, wanted, strict=True))


FINALISTS = TypeAdapter(list[Finalist])
"""Finalists as a summary has them."""


class Scored(Protocol):
    """A trial with the scores of its best checkpoint, as in :class:`pipeline.tracking.summary.TrialRecord`."""

    @property
    def name(self) -> str:
        """Name of the trial."""
        ...

    @property
    def best_checkpoint(self) -> str | None:
        """URL of the best checkpoint."""
        ...

    @property
    def best_metrics(self) -> dict[str, object]:
        """Metrics of that checkpoint."""
        ...


def close_to_best(ranking: Sequence[Scored], metric: str) -> list[int]:
    """Return the trials whose score is within two standard errors of the best one: of the two scores' difference.

    Args:
        ranking: Trials, the best first.
        metric: Score that they are ranked by.

    Returns:
        Their indices in the ranking; trials without an error, of earlier versions, count as having none.

    Example:
        >>> from types import SimpleNamespace
        >>> scores = {"000": (4.0, 0.3), "001": (4.9, 0.4), "002": (5.1, 0.4)}
        >>> ranking = [
        ...     SimpleNamespace(name=name, best_checkpoint="", best_metrics={"fid": value, "fid_standard_error": error})
        ...     for name, (value, error) in scores.items()
        ... ]
        >>> close_to_best(ranking, "fid")
        [0, 1]
    """
    measured = []
    for index, trial in enumerate(ranking):
        value = trial.best_metrics.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            measured.append((index, float(value), standard_error_of(trial.best_metrics, metric) or 0.0))
    if not measured:
        return []
    _, best, error = measured[0]
    return [index for index, value, own in measured if abs(value - best) <= CLOSE * math.hypot(own, error)]


def decided(finalists: Sequence[Finalist], ranking: Sequence[Scored], mode: str) -> list[Finalist]:
    """Return the finalists that have a second score, the best first, where these scores decide which trial is best.

    They do where all of them have been dealt with, they are of the trials' best checkpoints, and the trial that was
    first before is one of them: a sweep that was resumed since may have a better one.

    Args:
        finalists: Finalists of the summary.
        ranking: Trials, the best first.
        mode: ``min`` or ``max``.
    """
    checkpoints = {trial.name: trial.best_checkpoint for trial in ranking}
    scored = [finalist for finalist in finalists if finalist.is_scored]
    if (
        not (scored and ranking)
        or not all(finalist.is_scored or finalist.error for finalist in finalists)
        or any(checkpoints.get(finalist.name) != finalist.checkpoint for finalist in scored)
        or ranking[0].name not in {finalist.name for finalist in finalists}
    ):
        return []
    sign = 1 if mode == "min" else -1
    return sorted(scored, key=lambda finalist: (sign * (finalist.score or 0.0), finalist.rank))


def order_changes(finalists: Sequence[Finalist], mode: str) -> tuple[int, int]:
    """Return how many pairs of finalists the second scores have in the other order than the first, and all pairs.

    Args:
        finalists: Finalists with a second score.
        mode: ``min`` or ``max``.

    Example:
        >>> first, second, third = (
        ...     Finalist(f"00{rank}", "", rank=rank, num_samples=10, seed=0, score=score)
        ...     for rank, score in ((1, 5.0), (2, 4.0), (3, 4.5))
        ... )
        >>> order_changes([first, second, third], "min")
        (2, 3)
    """
    sign = 1 if mode == "min" else -1
    ordered = sorted(finalists, key=lambda finalist: finalist.rank)
    pairs = list(itertools.combinations(ordered, 2))
    return sum(sign * (a.score or 0.0) > sign * (b.score or 0.0) for a, b in pairs), len(pairs)


def read_finalists(document: Mapping[str, Any], trials: Sequence[Scored], output: str) -> list[Finalist]:
    """Return the finalists of a summary, those of checkpoints that its trials still have.

    Args:
        document: Summary, from :func:`pipeline.tracking.summary.read_summary`.
        trials: Its trials.
        output: Folder of the sweep.
    """
    folder, best = absolute_folder(output), {trial.name: trial.best_checkpoint for trial in trials}
    finalists = FINALISTS.validate_python(document.get("finalists", []))
    for finalist in finalists:
        checkpoint = best.get(finalist.name)
        # A checkpoint is named by the trial's record alone, which says where it may be.
        if checkpoint is not None and relative_place(folder, checkpoint) == finalist.checkpoint:
            finalist.checkpoint = checkpoint
    return [finalist for finalist in finalists if finalist.checkpoint == best.get(finalist.name)]
