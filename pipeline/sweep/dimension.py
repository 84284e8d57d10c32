"""Dimensions of a search space: a choice, a range of whole numbers, an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray.tune.search.sample import Domain

__all__ = ["Choice", "Dimension", "Interval", "WholeNumbers"]

# A draw on a logarithmic scale may exceed a bound by rounding.
_ROUNDING = 1e-9


class Dimension(Protocol):
    """Values of one key of a search space."""

    @property
    def domain(self) -> Domain:
        """The values as Ray Tune and Optuna draw them."""
        ...

    @property
    def extremes(self) -> list[Any]:
        """Values between which all others lie; of a choice, each of them."""
        ...

    def __contains__(self, value: object) -> bool:
        """Return whether a value is one of these."""
        ...

    def nearest(self, value: Any) -> Any:
        """Return the member that is nearest to a value; of a choice, the value or else the first member."""
        ...

    def grid(self, size: int) -> list[Any]:
        """Return at most ``size`` members, evenly spaced and the ends included; of a choice, all of them."""
        ...

    def grid_size(self, size: float) -> float:
        """Return the number of members in :meth:`grid`, at once; with ``math.inf``, the number of all members."""
        ...


@dataclass(frozen=True)
class Choice:
    """A few values.

    Args:
        values: The values, at least one.

    Example:
        >>> "ula" in Choice(("ula", "kla")), True in Choice((1, 2)), Choice((16, 32)).nearest(38)
        (True, False, 16)
    """

    values: tuple[Any, ...]

    @property
    def domain(self) -> Domain:
        """The values, each as likely as the others."""
        return tune.choice(list(self.values))

    @property
    def extremes(self) -> list[Any]:
        """All values, each of them once."""
        # Python's True equals 1.
        return [value for _, value in dict.fromkeys((isinstance(value, bool), value) for value in self.values)]

    def __contains__(self, value: object) -> bool:
        # Python's True equals 1.
        return any(value == own and isinstance(value, bool) == isinstance(own, bool) for own in self.values)

    def nearest(self, value: Any) -> Any:
        """Return the value if it is a member, else the first member."""
        return value if value in self else self.values[0]

    def grid(self, size: int) -> list[Any]:
        """Return all values, each of them once."""
        return self.extremes

    def grid_size(self, size: float) -> float:
        """Return the number of values."""
        return len(self.extremes)


@dataclass(frozen=True)
class WholeNumbers:
    """The multiples of a number in a range, its ends included.

    Args:
        low: Lower bound.
        high: Upper bound, at least the first multiple.
        multiple: What all members are multiples of.
        log: Whether the logarithm is uniform; then both bounds are positive.

    Example:
        >>> WholeNumbers(32, 128, 24).grid(100), WholeNumbers(32, 128, 24).nearest(154), 33 in WholeNumbers(32, 128, 2)
        ([48, 72, 96, 120], 120, False)
        >>> WholeNumbers(1, 1000, log=True).grid(4), WholeNumbers(1, 9, log=True).grid(5)
        ([1, 10, 100, 1000], [1, 2, 3, 5, 9])
    """

    low: int
    high: int
    multiple: int = 1
    log: bool = False

    @property
    def _indices(self) -> tuple[int, int]:
        """Which multiples are the first and the last."""
        return -(-self.low // self.multiple), self.high // self.multiple

    @property
    def domain(self) -> Domain:
        """The members, each as likely as the others, or on a logarithmic scale."""
        first, last = self.extremes
        if self.log:
            whole = self.multiple == 1
            return tune.lograndint(first, last + 1) if whole else tune.qlograndint(first, last, self.multiple)
        return tune.randint(first, last + 1) if self.multiple == 1 else tune.qrandint(first, last, self.multiple)

    @property
    def extremes(self) -> list[int]:
        """The least and the largest member."""
        return [index * self.multiple for index in self._indices]

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
            and value % self.multiple == 0
        )

    def nearest(self, value: Any) -> int:
        """Return the nearest member; of two that are equally near, the even multiple."""
        first, last = self._indices
        return min(max(round(value / self.multiple), first), last) * self.multiple

    def grid(self, size: int) -> list[int]:
        """Return evenly spaced members, rounded to multiples; the middle where there is room for one."""
        first, last = self._indices
        if size > last - first:
            return [index * self.multiple for index in range(first, last + 1)]
        if self.log:
            return [index * self.multiple for index in _log_indices(first, last, size)]
        return [round(first + fraction * (last - first)) * self.multiple for fraction in _fractions(size)]

    def grid_size(self, size: float) -> float:
        """Return the number of members, or ``size`` where there are more."""
        first, last = self._indices
        return min(size, last - first + 1)


@dataclass(frozen=True)
class Interval:
    """The numbers between two bounds.

    Args:
        low: Lower bound.
        high: Upper bound.
        log: Whether the logarithm is uniform; then both bounds are positive.

    Example:
        >>> [round(value, 3) for value in Interval(0.01, 1.0, log=True).grid(3)], Interval(0.0, 1.0).nearest(1.2)
        ([0.01, 0.1, 1.0], 1.0)
    """

    low: float
    high: float
    log: bool = False

    @property
    def domain(self) -> Domain:
        """The numbers, uniform or log-uniform."""
        return tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)

    @property
    def extremes(self) -> list[float]:
        """Both bounds."""
        return [self.low, self.high]

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        slack = _ROUNDING * max(abs(self.low), abs(self.high))
        lowest = self.low * (1 - _ROUNDING) if self.log else self.low - slack
        return lowest <= value <= self.high + slack

    def nearest(self, value: Any) -> float:
        """Return the value, or the bound that it is beyond."""
        return min(max(float(value), self.low), self.high)

    def grid(self, size: int) -> list[float]:
        """Return evenly spaced numbers; the middle where there is room for one."""
        fractions = _fractions(size)
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return [math.exp(low + fraction * (high - low)) for fraction in fractions]
        return [self.low + fraction * (self.high - self.low) for fraction in fractions]

    def grid_size(self, size: float) -> float:
        """Return ``size``."""
        return size


def _fractions(size: int) -> list[float]:
    return [index / (size - 1) for index in range(size)] if size > 1 else [0.5]


def _log_indices(first: int, last: int, size: int) -> list[int]:
    """Return ``size`` whole numbers, evenly spaced on a logarithmic scale, all of which differ."""
    result: list[int] = []
    for left, fraction in zip(reversed(range(size)), _fractions(size), strict=True):
        index = round(first * (last / first) ** fraction)
        # Room is left on both sides for the others.
        result.append(min(max(index, result[-1] + 1 if result else first), last - left))
    return result
