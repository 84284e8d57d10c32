"""What connects a trial's worker with the sweep: reports go out, a notice to leave comes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Session", "Stopped"]


class Stopped(Exception):
    """The sweep has stopped the trial, as when it is pruned."""


def _continue() -> None:
    """Leave a trial running."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Session:
    """Connection of a trial's worker with the sweep.

    Attributes:
        report: Sends a report to the sweep. All workers of a trial call it, and the first one's counts.
        is_preempted: Returns whether a machine of the trial is about to be taken away; all workers call it.
        require_running: Raises :class:`Stopped` where the sweep has stopped the trial. Of a trial whose processes end
            when it is stopped it does nothing.
        is_behind: Returns whether the sweep has still to decide on the last report, after a second at most. Until then
            a trial makes no other, and no checkpoint: those that the sweep knows are kept.

    Example:
        >>> reports = []
        >>> session = Session(reports.append, lambda: False)
        >>> session.report({"base_step": 1})
        >>> session.require_running()
        >>> reports
        [{'base_step': 1}]
    """

    report: Callable[[dict[str, Any]], None]
    is_preempted: Callable[[], bool]
    require_running: Callable[[], None] = _continue
    is_behind: Callable[[], bool] = _never
