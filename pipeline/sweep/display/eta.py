"""ETA of a sweep, estimated from its trials so far.

Trials do not all run to the end: a scheduler prunes most of them. The mean of those that have ended would say too
little while the long ones still run, and the time of a whole trial too much. This is the estimate of survival analysis
(Kaplan and Meier, 1958): a trial that has ended early counts as such, and one that still runs counts up to where it is.
The scheduler's rule counts as a fixed number of further trials: the first trials at a rung are promoted more often than
those that follow, so that for a long time they alone would make the estimate too long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Eta", "Rung", "TrialProgress", "duration", "estimate_eta", "time_left"]

# Number of trials that the scheduler's rule counts as.
_RULE_WEIGHT = 48.0


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as text.

    Example:
        >>> duration(65), duration(3725)
        ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def time_left(seconds: float | None) -> str:
    """Return a time that is left, and the hour at which it is over, as text.

    Args:
        seconds: From now on; None while there is no estimate.

    Example:
        >>> time_left(3725)[:20]
        'about 1:02:05 left ('
    """
    if seconds is None:
        return "the time left is known once trials report"
    day = "%a %d %b " if seconds > 12 * 3600 else ""
    # A century is enough for any sweep, and all that a calendar takes.
    end = time.localtime(time.time() + min(seconds, 100 * 365 * 86400.0))
    return f"about {duration(seconds)} left (until {time.strftime(f'{day}%H:%M', end)})"


class TrialProgress(NamedTuple):
    """Progress of one trial.

    Attributes:
        fraction: Part of its time that is over, from 0 to 1.
        seconds: Time it has run.
        ended: Whether it has ended, early or not.
    """

    fraction: float
    seconds: float
    ended: bool


class Rung(NamedTuple):
    """Rung of a scheduler: a point of a trial's time at which trials are pruned.

    Attributes:
        fraction: Part of a trial's time that is over at the rung.
        survival: Part of the trials that continue, of those that reach the rung.
    """

    fraction: float
    survival: float


class Eta(NamedTuple):
    """Estimate of what is left of a sweep.

    Attributes:
        seconds: Time until its last trial ends.
        done: Part of all its work that is done, from 0 to 1.
    """

    seconds: float
    done: float


def estimate_eta(
    courses: Sequence[TrialProgress], waiting: int, at_a_time: int, rungs: Sequence[Rung] = ()
) -> Eta | None:
    """Estimate what is left of a sweep.

    Args:
        courses: Progress of the trials that have started.
        waiting: Number of trials that have not.
        at_a_time: Number of trials that run side by side.
        rungs: Where the scheduler prunes, in ascending order (default: it does not).

    Returns:
        The estimate; None while no trial has made any progress.

    Example:
        >>> half_way = TrialProgress(0.5, seconds=60.0, ended=False)
        >>> estimate_eta([half_way, half_way], waiting=2, at_a_time=2)
        Eta(seconds=180.0, done=0.25)
    """
    work = sum(course.seconds for course in courses)
    way = sum(course.fraction for course in courses)
    if not (way > 0 and work > 0):
        return None
    # Seconds of a whole trial.
    cost = work / way
    rest = _rest(courses, rungs)
    running = [cost * rest(course.fraction) for course in courses if not course.ended]
    left = sum(running) + waiting * cost * rest(0.0)
    seconds = max([left / max(at_a_time, 1), *running, cost * rest(0.0) if waiting else 0.0])
    return Eta(seconds, work / (work + left))


def _rest(courses: Sequence[TrialProgress], rungs: Sequence[Rung]) -> Callable[[float], float]:
    """Return the expected rest of a trial from a fraction of its time on, as a function of that fraction."""
    # Where trials have ended early, and which part of those that reached it continued. Further trials count as well,
    # by the scheduler's rule, or without one a single trial that runs to its end: the first few pruned trials alone
    # would mean that all will be pruned.
    ends = {course.fraction for course in courses if course.ended and course.fraction < 1}
    by_rule = {rung.fraction: rung.survival for rung in rungs}
    knots, survival = [], []
    surviving, ruled = 1.0, _RULE_WEIGHT if rungs else 1.0
    for at in sorted(ends | by_rule.keys()):
        there = sum(course.fraction >= at for course in courses) + ruled
        still = ruled * by_rule.get(at, 1.0)
        ended = sum(course.ended and course.fraction == at for course in courses) + ruled - still
        ruled = still
        surviving *= 1 - ended / there
        knots.append(at)
        survival.append(surviving)

    def rest(fraction: float) -> float:
        now = 1.0
        for knot, value in zip(knots, survival, strict=True):
            if knot <= fraction:
                now = value
        area, start, level = 0.0, fraction, now
        for knot, value in zip([*knots, math.inf], [*survival, 0.0], strict=True):
            if knot <= fraction:
                continue
            end = min(knot, 1.0)
            area += level * max(0.0, end - start)
            start, level = end, value
        return area / now

    return rest
