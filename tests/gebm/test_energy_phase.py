"""The energy's final phase: the base does not change, the best by held-out data is kept, and the rest is unchanged."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gebm import GEBM, KALE, R1, EnergyPhase, NoPenalty, StandardNormal, Trainer, adam, energy_quality
from tests.helpers.trainers import changed, digits_model, images, snapshot, trainer_of


def generator_at(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def held_out(count: int = 16) -> torch.Tensor:
    return next(images(start=10**6, batch_size=count))


def trained() -> Trainer:
    trainer = trainer_of(digits_model())
    stream = images()
    for step in range(3):
        trainer.step(stream, generator_at(step))
    return trainer


def phase_of(**settings) -> EnergyPhase:
    return EnergyPhase(**{"num_steps": 6, "check_every": 2, "num_samples": 32, **settings})


def test_the_base_stands_still_and_no_base_step_is_counted():
    trainer = trained()
    base, energy, steps = snapshot(trainer.gebm.base), snapshot(trainer.gebm.energy), trainer.base_step
    result = phase_of(patience=0).run(trainer, images(50), generator_at)
    assert changed(trainer.gebm.base, base) == set()
    assert changed(trainer.gebm.energy, energy)
    assert (trainer.base_step, result.steps, result.steps_taken) == (steps, 6, 6)


def test_what_is_kept_is_the_best_by_held_out_data():
    """At a learning rate that is far too high, it is seldom the last."""
    trainer = trained()
    before = snapshot(trainer.gebm)
    data = held_out()
    result = phase_of(num_steps=40, learning_rate=3.0, patience=2).run(trainer, images(50), generator_at, held_out=data)
    kales = [quality.kale for _, quality, _ in result.history]
    best = max(range(len(kales)), key=kales.__getitem__)
    assert result.steps == result.history[best][0]
    assert result.steps_taken == result.history[-1][0] == min(40, result.steps + 4)
    model = trainer.sampling_model()
    now = energy_quality(model, data, model.sample_base(32, torch.Generator().manual_seed(0)))
    assert now.kale == pytest.approx(kales[best], abs=1e-6)
    if best == 0:
        assert changed(trainer.gebm, before) == set()


def test_learning_rate_and_penalty_are_the_trainers_own_again_afterwards():
    trainer = trained()
    rates, penalty = [group["lr"] for group in trainer.energy_optimizer.param_groups], trainer.penalty
    phase_of(learning_rate=7e-4, penalty=R1(2.0)).run(trainer, images(50), generator_at, held_out=held_out())
    assert trainer.penalty is penalty
    assert [group["lr"] for group in trainer.energy_optimizer.param_groups] == rates


def test_the_phase_has_its_own_rate_and_penalty():
    ways = []
    for settings in ({}, {"learning_rate": 1e-5}, {"penalty": NoPenalty()}):
        trainer = trained()
        before = [parameter.detach().clone() for parameter in trainer.gebm.energy.parameters()]
        phase_of(patience=0, **settings).run(trainer, images(50), generator_at)
        moved = zip(trainer.gebm.energy.parameters(), before, strict=True)
        ways.append(sum(float((now - then).detach().square().sum()) for now, then in moved) ** 0.5)
    plain, slow, free = ways
    assert slow < plain / 10 and free != plain


def test_it_is_a_function_of_where_it_begins():
    ends = []
    for _ in range(2):
        trainer = trained()
        phase_of().run(trainer, images(50), generator_at, held_out=held_out())
        ends.append(snapshot(trainer.gebm))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_energy_state_goes_back_bit_for_bit():
    trainer = trained()
    kept, before = trainer.energy_state(), snapshot(trainer.gebm)
    trainer.train_energy(images(50), generator_at(1), 3)
    first = snapshot(trainer.gebm)
    trainer.load_energy_state(kept)
    assert changed(trainer.gebm, before) == set()
    trainer.train_energy(images(50), generator_at(1), 3)
    assert changed(trainer.gebm, first) == set()


def test_quality_of_gaussians_is_known():
    """Data ``N(m, 1)``, base ``N(0, 1)``, energy ``m^2/2 - m x``: KALE is ``KL(P || B) = m^2 / 2``."""
    m = 0.5
    model = GEBM(nn.Identity(), nn.Linear(1, 1), StandardNormal(1), energy_floor=-math.inf)
    with torch.no_grad():
        model.energy.network.weight.fill_(-m)
        model.energy.network.bias.fill_(m * m / 2)
    count = 200_000
    data = torch.randn(count, 1, generator=torch.Generator().manual_seed(1)) + m
    quality = energy_quality(model, data, model.sample_base(count, torch.Generator().manual_seed(2)))
    # The mean of the energies has the standard error m / sqrt(N); log mean exp(-E) that of exp(m x) at most twice that.
    error = 5 * 3 * m / count**0.5
    assert quality.kale == pytest.approx(m * m / 2, abs=error)
    assert quality.spread == pytest.approx(m, abs=error)
    assert quality.weights_ess == pytest.approx(math.exp(-m * m), abs=0.02)
    assert quality.floor_share == 0.0


def test_the_share_at_the_floor_is_of_data():
    model = GEBM(nn.Identity(), nn.Linear(1, 1), StandardNormal(1), energy_floor=-1.0)
    with torch.no_grad():
        model.energy.network.weight.fill_(1.0)
        model.energy.network.bias.fill_(0.0)
    data = torch.tensor([[-5.0], [-2.0], [-1.0], [0.0]])
    assert energy_quality(model, data, model.sample_base(8)).floor_share == 0.75


@given(st.floats(-100, -0.01), st.sampled_from([torch.float32, torch.float64]))
def test_the_share_at_the_floor_is_the_same_for_any_floor(floor, dtype):
    """Also where float32 rounds the floor up."""
    model = GEBM(nn.Identity(), nn.Flatten(0), StandardNormal(1), energy_floor=floor).to(dtype)
    data = torch.tensor([[floor - 1], [floor - 1e-2], [floor + 1e-2], [0.0]], dtype=dtype)
    assert energy_quality(model, data, model.sample_base(2)).floor_share == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": -1}, "0 or more"),
        ({"check_every": 0}, "1 or more"),
        ({"learning_rate": 0.0}, "choose a positive one"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        phase_of(**settings)


def test_it_needs_held_out_data_to_stop_by():
    with pytest.raises(ValueError, match="hold some out, or set patience to 0"):
        phase_of().run(trained(), images(50), generator_at)
    model = digits_model()
    trainer = Trainer(
        model,
        objective=KALE(),
        base_optimizer=None,
        train_base=False,
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-3),
    )
    assert phase_of(patience=0).run(trainer, images(50), generator_at).steps == 6
