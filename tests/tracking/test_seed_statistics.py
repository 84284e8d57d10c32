"""Statistics over seeds: against scipy's, and by the seeds that both runs have."""

from __future__ import annotations

import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.seed_statistics import mean_and_error, paired_difference

numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


@given(st.lists(numbers, min_size=2, max_size=8))
def test_the_standard_error_is_scipys(values: list[float]) -> None:
    estimate = mean_and_error(values)
    assert estimate.count == len(values)
    assert estimate.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert estimate.error == pytest.approx(scipy.stats.sem(values), abs=1e-9)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8))
def test_a_paired_interval_is_scipys(pairs: list[tuple[float, float]]) -> None:
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    difference = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
    if difference.error > 1e-6:
        expected = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
        assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    back = paired_difference(dict(enumerate(second)), dict(enumerate(first)))
    assert (back.mean, back.low, back.high) == pytest.approx((-difference.mean, -difference.high, -difference.low))


@given(st.dictionaries(st.integers(0, 9), numbers), st.dictionaries(st.integers(0, 9), numbers))
def test_only_seeds_that_both_have_are_paired(first: dict[int, float], second: dict[int, float]) -> None:
    common = first.keys() & second.keys()
    difference = paired_difference(first, second)
    assert difference.count == len(common)
    assert math.isfinite(difference.mean) == bool(common)
    assert math.isfinite(difference.low) == (len(common) > 1)
    assert len(common) > 1 or difference.verdict == "unclear"


def test_one_value_that_is_not_finite_makes_no_mean() -> None:
    assert math.isnan(mean_and_error([1.0, math.inf]).mean)
    # Nor do those whose sum is none.
    assert math.isnan(mean_and_error([1e308, 1e308]).mean)
    assert paired_difference({0: 1.0, 1: math.nan}, {0: 0.0, 1: 0.0}).verdict == "unclear"
