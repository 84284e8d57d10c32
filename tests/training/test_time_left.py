"""The time left of a trial, by a simulated clock: speeds that change from report to report, evaluations, phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import Alternation
from pipeline.training.progress import evaluation_due
from pipeline.training.time_left import RecentMean, TimeLeft
from tests.training.test_sampler_trials import Trial, toy_config

SECONDS = st.floats(1e-3, 1e3)


class Report(NamedTuple):
    """What a trial says after a number of base steps, and what is true there."""

    base_step: int
    elapsed: float
    left: float
    evaluations: int


def config_of(base_steps: int, every: int, *, phase: int = 0, before_evaluations: bool = False) -> SimpleNamespace:
    """The part of a config that says how long a trial is."""
    final_phase = SimpleNamespace(before_evaluations=before_evaluations)
    train = SimpleNamespace(base_steps=base_steps, final_energy_steps=phase, final_phase=final_phase)
    return SimpleNamespace(train=train, evaluation=SimpleNamespace(every=every))


def simulate(
    config: SimpleNamespace,
    alternation: Alternation,
    step_seconds: Callable[[int], float],
    *,
    every: int,
    evaluation: float,
) -> Iterator[Report]:
    """Train by the clock, each step for the seconds of its report's number; yields after each report."""
    trainer = SimpleNamespace(
        base_step=0, alternation=alternation, train_base=True, objective=SimpleNamespace(trains_energy=True)
    )
    left, train = TimeLeft(trainer, config), config.train
    elapsed = since = 0.0
    evaluations = reported = number = 0
    for done in range(train.base_steps):
        since += step_seconds(number) * (alternation.energy_steps_at(done) + 1)
        trainer.base_step = done + 1
        due = evaluation_due(config, done + 1)
        if not (due or (done + 1) % every == 0):
            continue
        left.add_steps(since, done + 1 - reported)
        elapsed += since
        if due:
            is_last = done + 1 == train.base_steps
            elapsed += evaluation
            elapsed += (
                step_seconds(number) * train.final_energy_steps * (is_last or train.final_phase.before_evaluations)
            )
            left.add_evaluation(evaluation)
            evaluations += 1
        since, reported, number = 0.0, done + 1, number + 1
        yield Report(done + 1, elapsed, left.numbers()["seconds_left"], evaluations)


@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 30),
    st.integers(1, 20),
    st.integers(0, 40),
    st.booleans(),
    st.builds(Alternation, st.integers(1, 5), st.integers(1, 50), st.integers(0, 3), st.integers(1, 40)),
    SECONDS,
    SECONDS,
)
def test_at_a_constant_speed_it_is_exact_once_an_evaluation_was_timed(
    base_steps, evaluate_every, every, phase, before, alternation, seconds, evaluation
):
    config = config_of(base_steps, evaluate_every, phase=phase, before_evaluations=before)
    reports = list(simulate(config, alternation, lambda number: seconds, every=every, evaluation=evaluation))
    whole, evaluations = reports[-1].elapsed, reports[-1].evaluations
    assert reports[-1].left == 0
    for report in reports:
        unknown = 0 if report.evaluations else evaluations * evaluation
        assert report.left == pytest.approx(whole - report.elapsed - unknown, rel=1e-9, abs=1e-9 * whole)


@given(st.lists(st.tuples(SECONDS, st.integers(0, 500)), min_size=1, max_size=200))
def test_the_mean_is_between_the_slowest_and_the_fastest_report(reports):
    mean, speeds = RecentMean(), []
    for seconds, count in reports:
        mean.add(seconds, count)
        speeds += [seconds / count] if count else []
        if speeds:
            assert min(speeds) * (1 - 1e-9) <= mean.seconds <= max(speeds) * (1 + 1e-9)
        else:
            assert mean.seconds == 0
    if sum(count > 0 for _, count in reports) == 1:
        assert mean.seconds == pytest.approx(speeds[0])


@settings(deadline=None)
@given(st.integers(10, 100), st.integers(1, 4), st.booleans(), st.sampled_from([10, 1]))
def test_at_speeds_that_alternate_by_a_factor_of_three_the_end_is_known_to_a_quarter(reports, every, odd, evaluations):
    """From the first fifth on, elapsed and left together are the whole, within a quarter."""
    base_steps = reports * every
    config = config_of(base_steps, max(1, base_steps // evaluations))
    # All evaluations are a tenth of the trial; a single one, at its end, can be in no estimate.
    seconds = 0.1 * 6 * 2 * base_steps / evaluations
    steps = Alternation(5, warmup_energy_steps=5)
    reported = list(
        simulate(config, steps, lambda number: 3.0 if number % 2 == odd else 1.0, every=every, evaluation=seconds)
    )
    whole = reported[-1].elapsed
    late = [report for report in reported if report.elapsed > whole / 5]
    assert all(0.75 * whole <= report.elapsed + report.left <= 1.25 * whole for report in late)


@given(st.integers(1, 200), SECONDS, st.sampled_from([1 / 3, 3.0]))
def test_a_lasting_change_of_speed_is_followed(before, seconds, factor):
    """To a quarter of it: within ten reports, or in a long run within a quarter of those before."""
    mean = RecentMean()
    for _ in range(before):
        mean.add(seconds)
    for _ in range(max(10, -(-before // 4))):
        mean.add(factor * seconds)
    assert mean.seconds == pytest.approx(factor * seconds, rel=0.25)


def test_a_trial_that_resumes_knows_its_speed_from_the_checkpoint_until_it_has_one_of_its_own():
    trainer = SimpleNamespace(
        base_step=10, alternation=Alternation(), train_base=True, objective=SimpleNamespace(trains_energy=True)
    )
    left = TimeLeft(trainer, config_of(20, 10))
    left.resume({"seconds_a_step": 2.0, "seconds_an_evaluation": 7.0})
    assert left.numbers() == {"seconds_left": 60 * 2.0 + 7.0, "seconds_a_step": 2.0, "seconds_an_evaluation": 7.0}
    # Of another machine's 2 s nearly nothing is left.
    trainer.base_step = 15
    left.add_steps(30 * 0.5, 5)
    assert left.numbers()["seconds_a_step"] == pytest.approx(0.5, rel=0.1)


def test_a_trial_reports_it_and_nothing_is_left_at_its_end(tmp_path):
    keys = {"train.base_steps": 6, "train.report_every": 1, "evaluation.every": 2}
    reports = Trial(toy_config(tmp_path, keys), tmp_path / "trial").reports
    left = {report["base_step"]: report for report in reports}
    assert left[1]["seconds_left"] > 0 and left[1]["seconds_an_evaluation"] == 0
    for step in (2, 3, 4, 5):
        report = left[step]
        assert report["seconds_left"] > report["seconds_an_evaluation"] > 0
    assert left[6]["seconds_left"] == 0
