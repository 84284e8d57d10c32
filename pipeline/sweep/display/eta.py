"""ETA of a sweep, estimated from its trials so far.

Trials do not all run to the end. Where a scheduler prunes them, its rule says which part of those still to be judged
will continue: of the first trials at a rung more than of later ones. Elsewhere some fail, and the mean of those that
have ended would say too little while the long ones still run. This is the estimate of survival analysis (Kaplan and
Meier, 1958): a trial that has ended early counts as such, and one that still runs counts up to where it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Eta", "Rung", "TrialProgress", "duration", "estimate_eta", "time_left"]


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
    """Rung of successive halving: a point of a trial's time at which trials are pruned.

    Attributes:
        fraction: Part of a trial's time that is over at the rung.
        reduction_factor: One trial of this number continues, in the long run.
    """

    fraction: float
    reduction_factor: float

    def survival(self, judged: int, arriving: int) -> float:
        """Return the part of the next trials at the rung that continue, where trials do not get better or worse.

        A trial continues if it is not below a quantile of those before it, between two of which it is interpolated.

        Args:
            judged: Trials that were there before.
            arriving: Number of the next trials, one at least.

        Example:
            >>> Rung(0.25, 3.0).survival(0, 1), Rung(0.25, 3.0).survival(1, 1), Rung(0.25, 3.0).survival(0, 2)
            (1.0, 0.5, 0.75)
        """
        share = 1 / self.reduction_factor
        chances = (
            1.0 if nth == 1 else share + (1 - 2 * share) / nth for nth in range(judged + 1, judged + arriving + 1)
        )
        return sum(chances) / arriving


class Eta(NamedTuple):
    """Estimate of what is left of a sweep.

    Attributes:
        seconds: Time until its finals end.
        done: Part of all its work that is done, from 0 to 1.
    """

    seconds: float
    done: float


def estimate_eta(
    courses: Sequence[TrialProgress],
    waiting: int,
    at_a_time: int,
    rungs: Sequence[Rung] = (),
    *,
    finals_seconds: float = 0.0,
) -> Eta | None:
    """Estimate what is left of a sweep.

    Args:
        courses: Progress of the trials that have started.
        waiting: Number of trials that have not.
        at_a_time: Number of trials that run side by side.
        rungs: Where successive halving prunes, in ascending order (default: nothing does).
        finals_seconds: Time of the finals, after the last trial.

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
    ends = _ends_by_rule(courses, waiting, rungs) if rungs else _ends_so_far(courses)

    def rest(fraction: float) -> float:
        return _expected_rest(ends, fraction)

    running = [cost * rest(course.fraction) for course in courses if not course.ended]
    left = sum(running) + waiting * cost * rest(0.0)
    seconds = max([left / max(at_a_time, 1), *running, cost * rest(0.0) if waiting else 0.0])
    return Eta(seconds + finals_seconds, work / (work + left + finals_seconds * at_a_time))


def _ends_so_far(courses: Sequence[TrialProgress]) -> list[tuple[float, float]]:
    """Return where trials have ended early, and which part of all is expected to run on from there.

    A further trial, that runs to its end, counts as well: the first few failures alone would mean that all fail.
    """
    ends, surviving = [], 1.0
    for at in sorted({course.fraction for course in courses if course.ended and course.fraction < 1}):
        there = sum(course.fraction >= at for course in courses) + 1
        surviving *= 1 - sum(course.ended and course.fraction == at for course in courses) / there
        ends.append((at, surviving))
    return ends


def _ends_by_rule(courses: Sequence[TrialProgress], waiting: int, rungs: Sequence[Rung]) -> list[tuple[float, float]]:
    """Return where trials are pruned, and which part of those to come is expected to run on from there."""
    ends, surviving = [], 1.0
    running = [course.fraction for course in courses if not course.ended]
    for rung in rungs:
        # By its own clock, a trial was pruned near a rung.
        nearest = (rung.fraction + (ends[-1][0] if ends else 0.0)) / 2
        judged = sum(course.fraction >= (nearest if course.ended else rung.fraction) for course in courses)
        before = sum(1 / _surviving(ends, fraction) for fraction in running if fraction < rung.fraction)
        arriving = max(1, round(surviving * (waiting + before)))
        surviving *= rung.survival(judged, arriving)
        ends.append((rung.fraction, surviving))
    return ends


def _surviving(ends: Sequence[tuple[float, float]], fraction: float) -> float:
    """Return the part of all trials that is expected to come past a fraction of its time."""
    return next((surviving for at, surviving in reversed(ends) if at <= fraction), 1.0)


def _expected_rest(ends: Sequence[tuple[float, float]], fraction: float) -> float:
    """Return the expected rest of a trial that has come to a fraction of its time, as a fraction of it."""
    now = level = _surviving(ends, fraction)
    area, start = 0.0, fraction
    for at, surviving in [*ends, (1.0, 0.0)]:
        if fraction < at <= 1:
            area += level * (at - start)
            start, level = at, surviving
    return area / now
