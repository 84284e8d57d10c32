"""The tables of a trial's overhead: what is a trial's own, and what the command has for many trials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.overhead import Bare, Trial, _tables
from benchmarks.process_cpu import RAYS_OWN

seconds = st.floats(0.1, 100)
kinds = st.dictionaries(st.sampled_from([*RAYS_OWN, "TrainController", "RayTrainWorker", "ImplicitFunc"]), seconds)


@given(st.lists(st.tuples(seconds, seconds, kinds), min_size=2, max_size=4), st.integers(1, 500))
def test_every_process_is_counted_once_and_what_is_fixed_is_beyond_the_bare_loop(
    rounds: list[tuple[float, float, dict[str, float]]], steps: int
) -> None:
    bares = [Bare(1.0, 0.5, bare) for bare, _, _ in rounds]
    trials = [Trial(2.0, 1.5, 0.1, 3.0, 4.0, 0.5, cpu | {"driver": driver}) for _, driver, cpu in rounds]
    [row] = _tables(bares, trials, steps)["a trial's fixed cost"]
    own = row["the trial's processes, CPU s"].mean
    parts = own + row["driver, CPU s"].mean + row["Ray, CPU s"].mean
    assert parts == pytest.approx(sum(sum(trial.cpu.values()) for trial in trials) / len(trials))
    assert row["fixed, CPU s"].mean == pytest.approx(own - row["steps and evaluations, CPU s"].mean)
