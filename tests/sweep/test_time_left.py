"""The time left of a sweep, and the lines of its log, by a simulated clock."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from pipeline.config import Config, from_dict
from pipeline.sweep.display import console as console_module
from pipeline.sweep.display.console import Display
from pipeline.sweep.display.eta import Eta, Rung, TrialProgress, duration, estimate_eta, left_in_words
from pipeline.sweep.display.heartbeat import SECONDS, Heartbeat
from pipeline.sweep.display.live_table import SweepStatus
from pipeline.sweep.search import make_scheduler, scheduled_rungs
from pipeline.sweep.search_space import parse_space
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.trial_steps import TrialSteps

STEP = 5.0


class Clock:
    """A clock that a simulation sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@functools.cache
def successive_halving_config() -> Config:
    """The config of a search whose trials are judged after 25 and 75 of 100 base steps."""
    return from_dict(
        {
            "name": "x",
            "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan"},
            "train": {"base_steps": 100},
            "evaluation": {"every": 25},
            "sweep": {"scheduler": "asha", "grace_steps": 25, "reduction_factor": 3},
        }
    )


def successive_halving() -> TrialScheduler:
    """Ray's own scheduler."""
    config = successive_halving_config()
    return make_scheduler(config, parse_space(config), [])


def simulate(
    clock: Clock,
    status: SweepStatus,
    count: int,
    slots: int,
    *,
    seed: int,
    rungs: list[float],
    every: float,
    start_up: float = 15.0,
) -> Iterator[TrialRecord | None]:
    """Run a sweep of trials of about ten minutes, pruned by successive halving; yields each tick, and each report.

    In the first ``start_up`` seconds of a trial and its warm-up there are no steps.
    """
    draw = random.Random(seed)
    records = status.records
    status.plan(count, slots)
    status.start()
    running: dict[str, dict[str, float]] = {}
    scheduler, judged = successive_halving(), set()
    begun = 0
    while begun < count or running:
        while len(running) < slots and begun < count:
            record = records.add(f"{begun:03d}", {})
            record.status = "running"
            status.started(record)
            whole = 600 * draw.uniform(0.9, 1.1)
            running[record.name] = {"began": clock.now, "whole": whole, "fid_gebm": draw.random(), "due": every}
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=record.name))
            begun += 1
        clock.now += STEP
        yield None
        for name, trial in list(running.items()):
            record, spent = records.get(name), clock.now - trial["began"]
            fraction = (spent - start_up) / trial["whole"]
            reached = [rung for rung in rungs if fraction >= rung and (name, rung) not in judged]
            if (spent >= trial["due"] and fraction > 0) or reached:
                trial["due"] = spent + every
                left = max(0.0, trial["whole"] + start_up - spent) * draw.uniform(0.9, 1.1)
                record.seconds = spent
                record.metrics = {"base_step": int(100 * fraction), "seconds_left": left}
                status.reported(record)
                yield record
            for rung in rungs:
                if fraction >= rung and (name, rung) not in judged and record.status == "running":
                    judged.add((name, rung))
                    result = {"base_step": round(100 * rung), "fid_gebm": trial["fid_gebm"]}
                    if scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP":
                        record.status, record.seconds = "pruned", spent
            if fraction >= 1:
                record.status, record.seconds = "finished", spent
            if record.status in TERMINAL_STATUSES:
                del running[name]
                yield record


def new_status(clock: Clock) -> SweepStatus:
    steps = TrialSteps.of_training(100)
    records = SweepSummary("out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={}, steps=steps)
    return SweepStatus(records, "digits", clock=clock)


class Shown(NamedTuple):
    """The time left as shown some time after a sweep has begun, and the true one."""

    elapsed: float
    eta: Eta
    text: str
    real: float

    @property
    def is_figure(self) -> bool:
        return self.text.startswith("about")

    @property
    def holds(self) -> bool:
        """Whether the end is in the range that is shown, or the figure gives the time of the sweep to a quarter."""
        if self.is_figure:
            *hours, minutes, seconds = map(int, self.text.split()[1].split(":"))
            left = 3600 * sum(hours) + 60 * minutes + seconds
            return abs(self.elapsed + left - self.real) <= self.real / 4
        first, last, unit = re.fullmatch(r"(?:up|([\d.]+)) to ([\d.]+) (s|min|h) left", self.text).groups()
        seconds = {"s": 1, "min": 60, "h": 3600}[unit]
        return seconds * float(first or 0) <= self.real - self.elapsed <= seconds * float(last)


def shown(
    seed: int,
    rungs: list[float],
    every: float,
    count: int = 24,
    slots: int = 2,
    *,
    rule: bool = True,
    start_up: float = 15.0,
) -> list[Shown]:
    """Times left that a sweep shows, once a minute from its first fifth on."""
    clock = Clock()
    status = new_status(clock)
    status.rungs = [Rung(rung, 3) for rung in rungs] if rule else []
    seen = []
    events = simulate(clock, status, count, slots, seed=seed, rungs=rungs, every=every, start_up=start_up)
    for _ in itertools.islice((event for event in events if event is None), 0, None, 12):
        if (left := status.remaining()) is not None:
            seen.append((status.elapsed, left, left_in_words(left)))
    return [Shown(*each, status.elapsed) for each in seen if each[0] > status.elapsed / 5]


@pytest.mark.parametrize("every", [30.0, 120.0])
@pytest.mark.parametrize(("count", "slots"), [(24, 2), (5, 4), (4, 1)])
def test_where_all_run_to_the_end_the_time_left_is_one_figure_and_known_to_a_quarter(count, slots, every):
    for seed in range(5):
        seen = shown(seed, [], every, count, slots)
        assert len(seen) > 10 and all(each.is_figure and each.holds for each in seen)


@pytest.mark.parametrize(("every", "start_up"), [(30.0, 15.0), (120.0, 150.0)])
@pytest.mark.parametrize(("count", "slots", "seeds"), [(24, 2, 10), (24, 8, 10), (9, 3, 20), (4, 2, 40), (4, 1, 40)])
def test_where_trials_are_pruned_the_end_is_in_the_range_that_is_told(count, slots, seeds, every, start_up):
    """After a fifth of its time, in nine tenths of it; by Ray's own scheduler, trials of 10 min that differ by 10 %."""
    sweeps = [shown(seed, [0.25, 0.75], every, count, slots, start_up=start_up) for seed in range(seeds)]
    shares = [sum(each.holds for each in seen) / len(seen) for seen in sweeps]
    assert sum(shares) / seeds >= 0.9, shares
    # It narrows from fifth to fifth, and is one figure once nothing is left to luck.
    widths = []
    for fifth in range(1, 5):
        parts = [each for seen in sweeps for each in seen if fifth / 5 < each.elapsed / each.real <= (fifth + 1) / 5]
        widths.append(sum((each.eta.latest - each.eta.earliest) / each.real for each in parts) / len(parts))
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0] / 2, widths


@given(st.lists(st.floats(0.75, 1.0), min_size=1, max_size=8), st.integers(1, 8))
def test_once_the_last_trials_are_past_the_last_rung_the_time_left_is_one_figure(fractions, slots):
    courses = [TrialProgress(fraction, 600 * fraction, False, steps=fraction) for fraction in fractions]
    left = estimate_eta(courses, 0, slots, [Rung(0.25, 3), Rung(0.75, 3)])
    assert left_in_words(left) == f"about {duration(600 * (1 - min(fractions)))} left"


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_range_holds_both_ends_and_a_figure_is_within_a_quarter_of_them(one, other):
    left = Eta(min(one, other), max(one, other))
    text = left_in_words(left)
    assert text.startswith("about") == (left.latest - left.seconds <= left.seconds / 4)
    assert text.startswith("about") or all(Shown(0.0, left, text, end).holds for end in (left.earliest, left.latest))
    assert len(text) <= 22


def test_without_the_schedulers_rule_the_first_trials_promise_too_long_a_sweep():
    """The first trials at a rung continue more often than those that follow: the rule counts for that."""
    wrong = {True: 0.0, False: 0.0}
    for rule in wrong:
        for seed in range(10):
            seen = shown(seed, [0.25, 0.75], 30.0, rule=rule)
            errors = [abs(each.elapsed + each.eta.seconds - each.real) / each.real for each in seen]
            wrong[rule] += sum(errors) / len(errors)
    assert wrong[False] > 2 * wrong[True]


def test_as_many_trials_continue_as_the_scheduler_lets():
    """At the first rung of 2,000 sweeps by Ray's own scheduler, from the first trial to the twelfth."""
    draw, rung, sweeps = random.Random(0), Rung(0.25, 3), 2000
    continued = [0] * 12
    for _ in range(sweeps):
        scheduler = successive_halving()
        for index in range(len(continued)):
            trial = SimpleNamespace(trial_id=f"{index}")
            scheduler.on_trial_add(None, trial)
            decision = scheduler.on_trial_result(None, trial, {"base_step": 25, "fid_gebm": draw.random()})
            continued[index] += decision == "CONTINUE"
    for index, count in enumerate(continued):
        assert count / sweeps == pytest.approx(rung.survival(index), abs=5 * (0.25 / sweeps) ** 0.5)


@given(st.floats(1, 500), st.floats(1, 500), st.floats(0, 2000))
def test_between_reports_a_trial_continues_at_its_pace(seconds, left, since):
    clock = Clock()
    status = new_status(clock)
    record = status.records.add("000", {})
    record.status, record.seconds, record.metrics = "running", seconds, {"base_step": 1, "seconds_left": left}
    status.plan(0, 1)
    status.reported(record)
    before = status.remaining().seconds
    clock.now += since
    after = status.remaining().seconds
    assert before == pytest.approx(left)
    assert after == pytest.approx(max(0.0, left - since), abs=1e-6 * (seconds + left))


@pytest.mark.parametrize(
    ("sweep", "every", "steps"),
    [
        ({"grace_steps": 10, "reduction_factor": 3}, 10, [10, 30]),
        ({"grace_steps": 10, "reduction_factor": 3}, 25, [25, 50]),
        ({"reduction_factor": 2}, 1, [22, 44, 88]),
        ({"grace_steps": 500}, 1, []),
    ],
)
def test_the_rungs_are_those_of_the_scheduler(sweep, every, steps):
    """Trials that are each worse than all before are pruned where the rule says, and nowhere else."""
    config = from_dict(
        {
            "name": "x",
            "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan"},
            "train": {"base_steps": 90},
            "evaluation": {"every": every},
            "sweep": {"scheduler": "asha", **sweep},
        }
    )
    space = parse_space(config)
    rungs = scheduled_rungs(config, space)
    assert [round(rung.fraction * 90) for rung in rungs] == steps
    assert all(rung.reduction_factor == config.sweep.reduction_factor for rung in rungs)
    # Ray's own scheduler, to which trials report one after the other.
    scheduler, pruned = make_scheduler(config, space, []), set()
    for first in [0, *range(len(steps))]:
        for index in range(12):
            trial = type("Trial", (), {"trial_id": f"{first}-{index}"})()
            scheduler.on_trial_add(None, trial)
            for step in range(every, 90, every):
                # Good until this rung, and then worse than all before.
                score = -index if first and step < steps[first] else index
                if scheduler.on_trial_result(None, trial, {"base_step": step, config.sweep.metric: score}) == "STOP":
                    pruned.add(step)
                    break
    assert pruned == set(steps[: len(pruned)]) and bool(pruned) == bool(steps)
    config.sweep.scheduler = "none"
    assert scheduled_rungs(config, space) == []


# Lines of a log.


def logged(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> tuple[Display, io.StringIO, list[Heartbeat]]:
    """A display without a terminal, whose heartbeat a test calls instead of its thread."""
    made: list[Heartbeat] = []

    def make(line: Callable[[str, float], str]) -> Heartbeat:
        made.append(Heartbeat(line, clock=clock))
        return made[-1]

    monkeypatch.setattr(console_module, "Heartbeat", make)
    monkeypatch.setattr("pipeline.sweep.display.heartbeat._SECONDS_BETWEEN_BEATS", 1e6)
    monkeypatch.setattr(console_module.time, "monotonic", clock)
    output = io.StringIO()
    records = SweepSummary("out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={})
    display = Display(records, "digits", Console(file=output, width=200))
    display.status.clock = clock
    return display, output, made


@pytest.mark.parametrize("every", [20.0, 100.0, 400.0])
def test_a_log_has_a_line_every_half_minute_whatever_trials_report(every, monkeypatch):
    clock = Clock()
    display, output, made = logged(clock, monkeypatch)
    lines: list[float] = []
    with display:
        [heartbeat] = made
        logging.getLogger("pipeline.test").info("preparing what digits is measured with")
        for _ in range(20):
            clock.now += STEP
            heartbeat.beat()
        assert "still running after 1:30: preparing what digits is measured with" in output.getvalue()
        with display.sweep(4, 2):
            began = clock.now
            for report in simulate(clock, display.status, 4, 2, seed=0, rungs=[], every=every):
                if report is not None:
                    display.update(report, dict(report.metrics))
                for record in display.records.trials:
                    if record.name not in display._statuses:
                        display.update(record)
                heartbeat.beat()
                if len(output.getvalue().splitlines()) > len(lines):
                    lines += [clock.now] * (len(output.getvalue().splitlines()) - len(lines))
    times = [began, *(time for time in lines if time >= began), clock.now]
    assert max(after - before for before, after in itertools.pairwise(times)) <= SECONDS + STEP
    if every > 30:
        assert "time left" in output.getvalue() or "have ended, 2 run" in output.getvalue()
        assert "trial 000 has run for 0:30 and not reported yet" in output.getvalue()


def test_the_thread_logs_the_line_and_ends_with_the_display(monkeypatch):
    monkeypatch.setattr("pipeline.sweep.display.heartbeat._SECONDS_BETWEEN_BEATS", 0.01)
    seen = threading.Event()
    heartbeat = Heartbeat(lambda last, since: (seen.set(), f"since {last}")[1], seconds=0.05)
    logger = logging.getLogger("pipeline")
    logger.addHandler(heartbeat)
    try:
        with heartbeat:
            assert seen.wait(timeout=60)
    finally:
        logger.removeHandler(heartbeat)
    assert not heartbeat._thread.is_alive()
