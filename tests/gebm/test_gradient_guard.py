"""Gradient guards: one batch, however wild, leaves the steps after it nearly as they would have been."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gebm import GEBM, KALE, Alternation, NoPenalty, StandardNormal, Trainer, adam
from gebm.training import gradient_guard
from tests.helpers.trainers import digits_model, images, snapshot, trainer_of

BETA2 = 0.999
FLOATS = st.floats(width=32)


def with_gradients(energy: list[float], log_partition: float | None) -> tuple[nn.Parameter, nn.Parameter]:
    weight, c = nn.Parameter(torch.zeros(len(energy))), nn.Parameter(torch.zeros(()))
    weight.grad = torch.tensor(energy, dtype=torch.float32)
    c.grad = None if log_partition is None else torch.tensor(log_partition, dtype=torch.float32)
    return weight, c


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=6), st.one_of(st.none(), FLOATS), st.floats(0.1, 10))
def test_clipped_gradients_have_a_bounded_norm_and_the_same_direction(energy, log_partition, max_norm):
    weight, c = with_gradients(energy, log_partition)
    before = weight.grad.double().clone()
    gradient_guard.ClipGradients(max_norm)([weight], c)
    assert weight.grad.isfinite().all()
    assert weight.grad.norm() <= max_norm * (1 + 1e-5)
    if c.grad is not None:
        assert abs(c.grad) <= max_norm * (1 + 1e-5)
    norm = before.norm()
    if norm <= max_norm * (1 - 1e-6):
        assert torch.equal(weight.grad.double(), before)
    elif norm < 1e18:  # in float32 its square is finite
        torch.testing.assert_close(weight.grad.double(), before / norm * max_norm, rtol=1e-4, atol=1e-7)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=6), FLOATS)
def test_the_authors_transform_is_theirs(energy, log_partition):
    weight, c = with_gradients(energy, log_partition)
    gradient_guard.ArbelTransform()([weight], c)
    assert weight.grad.isfinite().all() and c.grad.isfinite()
    for got, g in zip(weight.grad.tolist(), energy, strict=True):
        expected = 2 * g / (1 + g * g) if abs(g) < 1e18 else 0.0
        assert got == pytest.approx(expected if math.isfinite(expected) else 0.0, rel=1e-5, abs=1e-12)
        assert abs(got) <= 1 + 1e-6
    if math.isfinite(log_partition) and abs(1 - log_partition) > 1e-3:
        assert c.grad.item() == pytest.approx(log_partition / (1 - log_partition), rel=1e-3, abs=1e-6)


class Scalar(nn.Module):
    """An energy ``w * x`` that a batch can be made wild for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, -0.1]))

    def forward(self, x):
        return x @ self.weight


def energy_trainer(guard: str) -> Trainer:
    base = nn.Linear(2, 2)
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        base.bias.zero_()
    model = GEBM(base, Scalar(), StandardNormal(2), energy_floor=-math.inf)
    return Trainer(
        model,
        objective=KALE(),
        penalty=NoPenalty(),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], lr=1e-3, betas=(0.5, BETA2)),
        train_base=False,
        gradient_guard=gradient_guard.make(guard),
        alternation=Alternation(energy_steps=1, warmup_energy_steps=1),
    )


def batches():
    for number in range(10**6):
        yield torch.randn(64, 2, generator=torch.Generator().manual_seed(number)) * 0.5 + 0.3


def trajectory(guard: str, outlier: bool, at: int = 40, steps: int = 100) -> tuple[torch.Tensor, float]:
    """Weights over the hundred steps after one batch, in which one base sample has an energy of -30 if asked for."""
    trainer = energy_trainer(guard)
    stream, path = batches(), []
    prior = trainer.gebm.prior.sample

    def wild(n, generator=None):
        z = prior(n, generator)
        weight = trainer.gebm.energy.network.weight.detach()
        z[0] = -30 * weight / weight.square().sum()
        return z

    for step in range(at + 1 + steps):
        trainer.gebm.prior.sample = wild if outlier and step == at else prior
        trainer.train_energy(stream, torch.Generator().manual_seed(step), 1)
        if step > at:
            path.append(trainer.gebm.energy.network.weight.detach().clone())
    return torch.stack(path), float(trainer.energy_second_moment())


@pytest.mark.parametrize("guard", ["clip", "arbel"])
def test_one_batch_with_an_energy_of_minus_thirty_leaves_the_next_hundred_steps_within_a_bound(guard):
    """Adam's step is at most lr (1 - beta1) / sqrt(1 - beta2), sixteen learning rates, and decays by half each step."""
    calm, usual = trajectory(guard, outlier=False)
    wild, moment = trajectory(guard, outlier=True)
    lr, beta1 = 1e-3, 0.5
    kick = 2 * lr * (1 - beta1) / math.sqrt(1 - BETA2) / (1 - beta1)
    assert (wild - calm).abs().max() <= kick
    # It keeps learning: over the hundred steps it moves as far as it would have, within a third.
    way = [(path[-1] - path[0]).norm() for path in (calm, wild)]
    assert abs(way[1] - way[0]) <= way[0] / 3
    # Both gradients have a norm of at most one, or at most one an entry.
    assert moment <= math.sqrt(usual**2 + (1 - BETA2)) * 1.01


def test_without_a_guard_the_same_batch_stops_the_energy():
    """What the guards are for: the test above fails for it by far."""
    calm, usual = trajectory("none", outlier=False)
    wild, moment = trajectory("none", outlier=True)
    assert moment > 1e6 * usual
    assert (wild[-1] - wild[30]).norm() < 0.1 * (calm[-1] - calm[30]).norm()


def test_clipping_leaves_a_run_within_bounds_bit_for_bit():
    plain, guarded = (
        trainer_of(digits_model(), gradient_guard=gradient_guard.ClipGradients(1e6) if on else None) for on in (0, 1)
    )
    for trainer in (plain, guarded):
        stream = images()
        for step in range(4):
            trainer.step(stream, torch.Generator().manual_seed(step))
    expected = snapshot(plain.gebm)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in guarded.gebm.state_dict().items())


def test_an_unknown_guard_is_refused_by_name():
    with pytest.raises(ValueError, match="choose one of none, clip, arbel"):
        gradient_guard.make("clap")
    with pytest.raises(ValueError, match="choose a positive one"):
        gradient_guard.ClipGradients(0.0)
