"""Pace of what all workers of a trial meet for: by seconds, though counted in base steps."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["REPORT_SECONDS", "Pace"]

REPORT_SECONDS = 1.0
"""Least time between two progress reports, for each makes the host wait for the device, and passes the driver."""


class Pace:
    """Base steps at which a question is due, about as many seconds apart as it is worth.

    A step takes milliseconds on one machine and seconds on another. Workers that ask together have to agree on when,
    and their clocks do not: so the first one's clock turns seconds into a number of steps, which all of them count.
    Before it has seen any, nobody knows how long they take, and the first question is due after the first step.

    Args:
        seconds: Time from one question to the next.
        largest: Base steps from one question to the next at most, however fast they are.
        from_first: Returns the first worker's value on all of them.
        clock: Time in seconds.

    Example:
        >>> times = iter([0.0, 0.5, 1.0])
        >>> pace = Pace(1.0, largest=500, from_first=lambda value: value, clock=lambda: next(times))
        >>> pace.is_due(41)
        True
        >>> pace.schedule_next(41)  # two steps a second
        >>> pace.is_due(42), pace.is_due(43)
        (False, True)
    """

    def __init__(
        self,
        seconds: float,
        *,
        largest: int,
        from_first: Callable[[float], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._largest, self._from_first, self._clock = seconds, largest, from_first, clock
        self._last: int | None = None
        self._last_at, self._stride = clock(), 1

    def is_due(self, base_step: int) -> bool:
        """Return whether to ask after so many base steps: the same on all workers."""
        return self._last is None or base_step >= self._last + self._stride

    def schedule_next(self, base_step: int) -> None:
        """Have all workers, which have asked after so many base steps, agree on when the next question is due."""
        now = self._clock()
        steps = 1 if self._last is None else base_step - self._last
        stride = steps * self._seconds / max(now - self._last_at, 1e-6)
        self._stride = int(self._from_first(max(1.0, min(stride, 2.0 * steps, float(self._largest)))))
        self._last, self._last_at = base_step, now
