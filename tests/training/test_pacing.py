"""A question that all workers meet for: soon after the start, and then by seconds, whatever a step takes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.pacing import Pace
from tests.training.test_sampler_trials import Trial, toy_config


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-4, 30.0), st.integers(1, 10_000), st.integers(1, 200), st.floats(0.0, 100.0))
def test_a_question_is_asked_by_seconds_and_at_the_same_steps_by_all(seconds_a_step, first_step, largest, set_up):
    """Of two workers with clocks of their own, both ask when the first one's says so."""
    now, decided, asked = [0.0], [], []
    first = Pace(1.0, largest=largest, from_first=lambda value: decided.append(value) or value, clock=lambda: now[0])
    second = Pace(1.0, largest=largest, from_first=lambda _: decided[-1], clock=lambda: 3 * now[0])
    now[0] += set_up
    for step in range(first_step, first_step + 1000):
        now[0] += seconds_a_step
        assert first.is_due(step) == second.is_due(step)
        if first.is_due(step):
            asked.append(step)
            first.schedule_next(step)
            second.schedule_next(step)
    # As soon as there is a step, however long one takes.
    assert asked[0] == first_step
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps[0] <= 2 and max(gaps) <= largest
    # At most a second apart, or a step: never later than a question is worth waiting for.
    assert all(gap == 1 or gap * seconds_a_step <= 1.0 + 1e-6 for gap in gaps)
    expected = min(largest, max(1, int(1.0 / seconds_a_step)))
    assert abs(gaps[-1] - expected) <= 1
    # And after a few, not sooner either.
    assert sum(gap < expected - 1 for gap in gaps) <= expected.bit_length() + 1


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [1, 2, 3, 4, 5, 6]), (1e9, [1, 2, 4, 6])])
def test_steps_that_are_faster_have_fewer_reports_but_each_evaluation_has_one(tmp_path, seconds, steps):
    keys = {"train.base_steps": 6, "train.report_every": 1, "evaluation.every": 2}
    reports = Trial(toy_config(tmp_path, keys), tmp_path / "trial", seconds).reports
    assert [report["base_step"] for report in reports] == steps
