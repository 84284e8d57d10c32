"""Evaluations of one model by several samplers share what does not depend on a sampler, and change no score by it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.base import EvaluationRun
from pipeline.evaluation.chains import ChainBatch, run_chains
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.shared_results import SharedResults
from tests.evaluation.test_out_of_memory import Device, Moments, assert_the_same, config_of, model_on

KERNELS = ["ula", "kla", "mala", "hmc", "rwm", "descent"]


class Counting(Moments):
    """A judge that counts the samples whose features it takes."""

    def __init__(self) -> None:
        self.embedded = 0

    def features(self, shown: torch.Tensor) -> dict[str, torch.Tensor]:
        self.embedded += len(shown)
        return super().features(shown)


@settings(max_examples=15)
@given(
    trials=st.lists(st.tuples(st.sampled_from(KERNELS), st.integers(1, 9)), min_size=2, max_size=4),
    num_samples=st.integers(2, 30),
    batch_size=st.integers(1, 40),
    rows=st.integers(5, 50),
)
def test_a_score_is_the_same_whatever_was_evaluated_before(trials, num_samples, batch_size, rows):
    """Chains that do not fit at once included: batches of another size have samples of their own."""
    shared, counting = SharedResults(), Counting()
    limited = model_on(Device(), Device())
    for name, num_steps in trials:
        # Memory shrinks after the first setting, which another process may take.
        config = config_of(num_samples, batch_size, num_steps, name)
        found = evaluate(limited, config, counting, EvaluationRun(shared=shared))
        alone = evaluate(model_on(Device(rows=limited.base.device.rows), Device()), config, Moments())
        assert_the_same(found, alone)
        assert found.notes == alone.notes
        limited.base.device.rows = rows
    points = sum(min(num_steps, 3) for _, num_steps in trials)
    if rows >= min(num_samples, batch_size):
        assert counting.embedded == (points + 1) * num_samples  # the base's once


def test_points_of_a_chain_are_reported_before_any_chain_runs_further():
    config, events = config_of(6, 2, num_steps=9), []
    config.sweep.metric = "spread_gebm"
    found = evaluate(
        model_on(Device(), Device()),
        config,
        Moments(),
        EvaluationRun(events.append, reached=lambda step, score: events.append((step, score))),
    )
    points = [event for event in events if isinstance(event, tuple)]
    assert points == [(3, found.chain[3].score), (6, found.chain[6].score)]
    assert list(found.chain) == [0, 3, 6, 9]
    for step, score in points:
        before = events[: events.index((step, score))]
        assert sum(event for event in before if isinstance(event, int)) == 6 * step


def test_an_evaluation_that_is_given_up_leaves_the_next_one_alone():
    class Stop(Exception):
        pass

    def give_up(step: int, score: float) -> None:
        raise Stop

    model, shared = model_on(Device(), Device()), SharedResults()
    with pytest.raises(Stop):
        config = config_of(10, 4)
        config.sweep.metric = "spread_gebm"
        evaluate(model, config, Moments(), EvaluationRun(shared=shared, reached=give_up))
    found = evaluate(model, config_of(10, 4, name="mala"), Moments(), EvaluationRun(shared=shared))
    assert_the_same(found, evaluate(model_on(Device(), Device()), config_of(10, 4, name="mala"), Moments()))


@settings(max_examples=10)
@given(name=st.sampled_from(KERNELS), cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_chains_are_the_same_wherever_they_are_cut(name, cuts):
    config, model = config_of(8, 8, sum(cuts), name), model_on(Device(), Device())
    z0 = model.prior.sample(8, torch.Generator().manual_seed(0))
    whole: dict[int, torch.Tensor] = {}
    parts: dict[int, torch.Tensor] = {}
    run_chains(model, config.sampler, z0, seed=3, observe=whole.__setitem__)
    batch = ChainBatch(model, config.sampler, z0, seed=3)
    for steps in cuts:
        batch.run(steps, parts.__setitem__)
    assert list(parts) == list(whole) == list(range(sum(cuts) + 1))
    assert all(torch.equal(parts[step], whole[step]) for step in whole)
