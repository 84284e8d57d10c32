"""Pace of a question that all workers of a trial meet for: by seconds, though counted in base steps."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """Base steps at which a question is due, about as many seconds apart as it is worth.

    A step takes milliseconds on one machine and seconds on another. Workers that ask together have to agree on when,
    and their clocks do not: so the first one's clock turns seconds into a number of steps, which all of them count.

    Args:
        seconds: Time from one question to the next.
        steps: Base steps to the first one, and at least one.
        largest: Base steps from one question to the next at most, however fast they are.
        from_first: Returns the first worker's value on all of them.
        clock: Time in seconds.

    Example:
        >>> times = iter([0.0, 0.5, 2.5])
        >>> pace = Pace(1.0, 5, largest=500, from_first=lambda value: value, clock=lambda: next(times))
        >>> pace.is_due(4), pace.is_due(5)
        (False, True)
        >>> pace.asked(5)  # ten steps a second
        >>> pace.is_due(14), pace.is_due(15)
        (False, True)
    """

    def __init__(
        self,
        seconds: float,
        steps: int,
        *,
        largest: int,
        from_first: Callable[[float], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._largest, self._from_first, self._clock = seconds, largest, from_first, clock
        self._first = max(1, steps)
        self._last: int | None = None
        self._asked_at = clock()
        self._stride = self._first

    def is_due(self, base_step: int) -> bool:
        """Return whether to ask after so many base steps: the same on all workers."""
        return base_step % self._first == 0 if self._last is None else base_step >= self._last + self._stride

    def asked(self, base_step: int) -> None:
        """Note that all workers have asked, and agree on when the next question is due."""
        now = self._clock()
        steps = self._first if self._last is None else base_step - self._last
        stride = steps * self._seconds / max(now - self._asked_at, 1e-6)
        self._stride = int(self._from_first(max(1.0, min(stride, 2.0 * steps, float(self._largest)))))
        self._last, self._asked_at = base_step, now
