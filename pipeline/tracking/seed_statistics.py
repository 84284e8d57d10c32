"""Statistics over the seeds of a run: means, standard errors, and differences that are paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["CONFIDENCE", "Difference", "Estimate", "mean_and_error", "paired_difference"]

CONFIDENCE = 0.95
"""Probability with which an interval holds the true difference."""


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: The mean; NaN if there are no values, or one of them or their sum is not finite.
        error: Standard error of the mean; NaN of fewer than two values.
        count: Number of values.
    """

    mean: float
    error: float
    # A name that result pages use; no caller wants tuple.count.
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]


class Difference(NamedTuple):
    """A mean of differences between two runs of the same seed.

    Attributes:
        mean: The mean.
        error: Its standard error; NaN of fewer than two pairs.
        low: Lower end of its interval by Student's t, of 95 % by default.
        high: Upper end.
        count: Number of pairs.
    """

    mean: float
    error: float
    low: float
    high: float
    # A name that result pages use; no caller wants tuple.count.
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]

    def __neg__(self) -> Difference:
        """Return the difference the other way round."""
        return self._replace(mean=-self.mean, low=-self.high, high=-self.low)

    @property
    def verdict(self) -> str:
        """``larger`` or ``smaller`` where the interval has no zero in it, ``unclear`` otherwise.

        Example:
            >>> Difference(2.0, 0.1, 1.7, 2.3, 5).verdict, Difference(2.0, math.nan, math.nan, math.nan, 1).verdict
            ('larger', 'unclear')
        """
        return "larger" if self.low > 0 else "smaller" if self.high < 0 else "unclear"


def mean_and_error(values: Iterable[float]) -> Estimate:
    """Return the mean and its standard error.

    Args:
        values: One number for each run.

    Returns:
        The estimate.

    Example:
        >>> mean_and_error([1.0, 2.0, 3.0])
        Estimate(mean=2.0, error=0.5773502691896258, count=3)
        >>> mean_and_error([5.0]).error
        nan
    """
    values = list(values)
    if not values or not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, len(values))
    try:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Estimate(statistics.fmean(values), error, len(values))
    # Their sum, or that of their squares, is beyond the largest float.
    except OverflowError:
        return Estimate(math.nan, math.nan, len(values))


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference:
    """Return the mean of ``first - second`` over the seeds that both have.

    Args:
        first: Seed to value.
        second: Seed to value.
        confidence: Probability with which the interval holds the true difference.

    Returns:
        The difference with its interval; the interval is NaN of fewer than two pairs.

    Example:
        >>> difference = paired_difference({0: 3.0, 1: 5.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0, 7: 9.0})
        >>> difference.mean, difference.count, round(difference.low, 2), round(difference.high, 2)
        (2.0, 3, -0.48, 4.48)
    """
    # Takes a second to import, and means do not need it.
    from scipy.stats import t as student

    mean, error, count = mean_and_error(first[seed] - second[seed] for seed in sorted(first.keys() & second.keys()))
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * error if count > 1 else math.nan
    return Difference(mean, error, mean - half, mean + half, count)
