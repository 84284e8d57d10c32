"""Time left of a sweep, from its trials so far.

Where a scheduler prunes trials, which of them continue is luck, and with few trials that moves the end by more than
anything that can be measured. So outcomes of that luck are drawn, by the scheduler's own rule, and the range shown is
from the earliest to the latest of all but a few. Where nothing prunes, there is one outcome. Some trials fail there,
and the mean of those that have ended would say too little while the long ones still run. This is the estimate of
survival analysis (Kaplan and Meier, 1958): a trial that has ended early counts as such, and one that still runs counts
up to where it is.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Eta", "Rung", "TrialProgress", "duration", "estimate_eta", "left_in_words", "time_left"]

# Part of the outcomes that may be earlier than the earliest shown, and as many later than the latest.
_UNLIKELY = 0.05
# To this part of it the rest of a trial is known by its speed so far.
_SPEED_ERROR = 0.1
# Until it reports, a trial is taken to have come no further than to this part of its time.
_MAX_SILENT = 0.5
# A time is shown as one figure where it is known to this part of it.
_KNOWN = 0.25
# Outcomes that are drawn, at most, and trials in all of them: of many trials together, few outcomes are enough.
_MAX_OUTCOMES, _MAX_DRAWN = 100, 2000


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as text.

    Example:
        >>> duration(65), duration(3725)
        ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrialProgress(NamedTuple):
    """Progress of one trial.

    Attributes:
        fraction: Part of its time that is over, from 0 to 1; 0 before its first report.
        seconds: Time it has run.
        ended: Whether it has ended, early or not.
        steps: Part of its steps that is done, by which it is judged.
        ahead: Part of its time that was over at its last report, less that of its steps: it starts before its steps.
    """

    fraction: float
    seconds: float
    ended: bool
    steps: float = 0.0
    ahead: float = 0.0


class Rung(NamedTuple):
    """Rung of successive halving: a step at which trials are pruned.

    Attributes:
        fraction: Part of a trial's steps that is done at the rung.
        reduction_factor: One trial of this number continues, in the long run.
    """

    fraction: float
    reduction_factor: float

    def survival(self, judged: int) -> float:
        """Return the probability that the next trial at the rung continues, where trials do not get better or worse.

        A trial continues if it is not below a quantile of those before it, between two of which it is interpolated.

        Args:
            judged: Trials that were there before.

        Example:
            >>> [round(Rung(0.25, 3.0).survival(judged), 2) for judged in (0, 1, 2, 100)]
            [1.0, 0.5, 0.44, 0.34]
        """
        share = 1 / self.reduction_factor
        return share + (1 - 2 * share) / (judged + 1) if judged else 1.0


class Eta(NamedTuple):
    """Estimate of what is left of a sweep.

    Attributes:
        earliest: Seconds until its finals end, if the scheduler prunes many trials.
        latest: Seconds until then, if it prunes few.
        done: Part of all its work that is done, from 0 to 1.
    """

    earliest: float
    latest: float
    done: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds until its finals end, half way between the earliest and the latest."""
        return (self.earliest + self.latest) / 2


def left_in_words(left: Eta) -> str:
    """Return the time that is left as text: one figure if it is known to a quarter, and else a range.

    Example:
        >>> left_in_words(Eta(3600, 3850)), left_in_words(Eta(745, 1100)), left_in_words(Eta(745, 1300))
        ('about 1:02:05 left', 'about 15:22 left', '12 to 22 min left')
        >>> left_in_words(Eta(25, 71)), left_in_words(Eta(50, 290)), left_in_words(Eta(9100, 16500))
        ('20 to 80 s left', 'up to 5 min left', '2.5 to 4.6 h left')
    """
    if left.latest - left.seconds <= _KNOWN * left.seconds:
        return f"about {duration(left.seconds)} left"
    unit, name, step = (1, "s", 10) if left.latest < 120 else (60, "min", 1) if left.latest < 7200 else (3600, "h", 0.1)
    # Outwards, so that the end is in the range shown.
    first, last = step * math.floor(left.earliest / unit / step), step * math.ceil(left.latest / unit / step)
    return f"{first:g} to {last:g} {name} left" if first else f"up to {last:g} {name} left"


def time_left(left: Eta | None) -> str:
    """Return the time that is left, and the hour at which it is over, as text.

    Args:
        left: From now on; None while there is no estimate.

    Example:
        >>> time_left(Eta(3725, 3725))[:20]
        'about 1:02:05 left ('
    """
    if left is None:
        return "the time left is known once trials report"
    words = left_in_words(left)
    if words.startswith("about"):
        return f"{words} (until {_hour(left.seconds)})"
    first, last = _hour(left.earliest), _hour(left.latest)
    return f"{words} (until {last})" if first == last else f"{words} (ends between {first} and {last})"


def _hour(seconds: float) -> str:
    """Return the time of the day a number of seconds from now, with the day if that is far."""
    day = "%a %d %b " if seconds > 12 * 3600 else ""
    # A century is enough for any sweep, and all that a calendar takes.
    return time.strftime(f"{day}%H:%M", time.localtime(time.time() + min(seconds, 100 * 365 * 86400.0)))


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
        >>> left = estimate_eta([half_way, half_way], waiting=2, at_a_time=2)
        >>> left.seconds, left.done
        (180.0, 0.25)
    """
    work = sum(course.seconds for course in courses if course.fraction or course.ended)
    way = sum(course.fraction for course in courses)
    if not (way > 0 and work > 0):
        return None
    # Seconds of a whole trial. The further one is, the more its own speed counts for its rest.
    cost = work / way
    running = [
        course if course.fraction else course._replace(fraction=min(course.seconds / cost, _MAX_SILENT))
        for course in courses
        if not course.ended
    ]
    running.sort(key=lambda course: (course.steps, course.fraction), reverse=True)
    to_run = [*running, *[TrialProgress(0.0, 0.0, ended=False)] * waiting]
    costs = [course.seconds + (1 - course.fraction) * cost for course in to_run]
    outcomes = _draw_ends(to_run, courses, rungs) if rungs else [_expected_ends(to_run, courses)]
    rests = [
        [cost * (end - course.fraction) for course, end, cost in zip(to_run, ends, costs, strict=True)]
        for ends in outcomes
    ]
    times = sorted(_seconds(seconds[: len(running)], seconds[len(running) :], at_a_time) for seconds in rests)
    unlikely = math.floor(_UNLIKELY * len(times))
    work, left = sum(course.seconds for course in courses), sum(map(sum, rests)) / len(rests)
    return Eta(
        (1 - _SPEED_ERROR) * times[unlikely] + finals_seconds,
        (1 + _SPEED_ERROR) * times[-1 - unlikely] + finals_seconds,
        work / (work + left + finals_seconds * at_a_time),
    )


def _seconds(running: Sequence[float], waiting: Sequence[float], at_a_time: int) -> float:
    """Return the time until all trials have ended, if each that waits starts where one ends.

    Args:
        running: Seconds that are left of each running trial.
        waiting: Seconds of each trial that waits, in their order.
        at_a_time: Number of trials that run side by side.
    """
    ends = list(running)
    heapq.heapify(ends)
    for seconds in waiting:
        if len(ends) < at_a_time:
            heapq.heappush(ends, seconds)
        else:
            heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends, default=0.0)


def _draw_ends(
    to_run: Sequence[TrialProgress], courses: Sequence[TrialProgress], rungs: Sequence[Rung]
) -> list[list[float]]:
    """Return outcomes of successive halving: in each, the fraction at which each trial ends.

    Args:
        to_run: Trials that run or wait, in the order in which they come to a rung.
        courses: Trials that have started.
        rungs: Where trials are pruned.
    """
    # Part of a trial's time before its steps, by all trials that have reported.
    steps_left = sum(1 - course.steps for course in courses if course.fraction)
    start_up = min(1.0, max(0.0, sum(course.ahead for course in courses) / steps_left)) if steps_left else 0.0
    times = [start_up + (1 - start_up) * rung.fraction for rung in rungs]
    judged_so_far = [sum(course.steps >= rung.fraction for course in courses) for rung in rungs]
    # The same luck each time: the range changes with the trials alone.
    draw, outcomes = random.Random(0).random, []
    for _ in range(max(1, min(_MAX_OUTCOMES, _MAX_DRAWN // max(1, len(to_run))))):
        judged, ends = list(judged_so_far), []
        for course in to_run:
            end = 1.0
            for index, rung in enumerate(rungs):
                if course.steps < rung.fraction:
                    judged[index] += 1
                    if draw() >= rung.survival(judged[index] - 1):
                        end = max(times[index], course.fraction)
                        break
            ends.append(end)
        outcomes.append(ends)
    return outcomes


def _expected_ends(to_run: Sequence[TrialProgress], courses: Sequence[TrialProgress]) -> list[float]:
    """Return the fraction at which each trial is expected to end, where some fail.

    A further trial, that runs to its end, counts as well: the first few failures alone would mean that all fail.

    Args:
        to_run: Trials that run or wait.
        courses: Trials that have started.
    """
    ends, surviving = [], 1.0
    for at in sorted({course.fraction for course in courses if course.ended and course.fraction < 1}):
        there = sum(course.fraction >= at for course in courses) + 1
        surviving *= 1 - sum(course.ended and course.fraction == at for course in courses) / there
        ends.append((at, surviving))
    return [course.fraction + _expected_rest(ends, course.fraction) for course in to_run]


def _expected_rest(ends: Sequence[tuple[float, float]], fraction: float) -> float:
    """Return the expected rest of a trial that has come to a fraction of its time, as a fraction of it."""
    now = level = next((surviving for at, surviving in reversed(ends) if at <= fraction), 1.0)
    area, start = 0.0, fraction
    for at, surviving in [*ends, (1.0, 0.0)]:
        if fraction < at <= 1:
            area += level * (at - start)
            start, level = at, surviving
    return area / now
