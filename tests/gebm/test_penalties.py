"""Penalties: each against its closed form on an energy whose gradient is known, and lazy ones against plain ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gebm import GEBM, KALE, Alternation, StandardNormal, Trainer, Wasserstein, adam, networks, penalties
from gebm.objectives.losses import EnergyLoss
from gebm.objectives.penalties import L2, R1, R2, GradientPenalty, Lazy, NoPenalty
from tests.helpers.trainers import linear_model, trainer_of

POINTWISE = [GradientPenalty, R1, R2]


class Quadratic(nn.Module):
    """E(x) = x^T A x / 2 + b^T x with A symmetric, whose gradient is A x + b."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        self.curvature = nn.Parameter((root + root.T) / 2)
        self.slope = nn.Parameter(torch.randn(dim, generator=generator, dtype=torch.float64))

    def gradient(self, x: Tensor) -> Tensor:
        return x @ (self.curvature + self.curvature.T) / 2 + self.slope

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.curvature) * x).sum(1) / 2 + x @ self.slope


def case(dim: int, n: int, seed: int) -> tuple[Quadratic, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_data, x_base = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return Quadratic(dim, seed), x_data, x_base


@settings(deadline=None, max_examples=30, derandomize=True)
@given(slope=st.floats(-5, 5), weight=st.floats(0, 10), n=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_penalty_is_the_mean_squared_gradient_on_the_segments(slope, weight, n, seed):
    # E(x) = slope |x|^2 / 2 has gradient slope x; x is the point on the segment itself. On images, as on vectors.
    generator = torch.Generator().manual_seed(seed)
    penalty = GradientPenalty(weight)
    x_data, x_base = torch.randn(2, n, 3, 2, 2, generator=generator)
    t = penalty.draw(n, generator)
    assert t.shape == (n,) and t.min() >= 0 and t.max() < 1
    x = t.view(n, 1, 1, 1) * x_data + (1 - t.view(n, 1, 1, 1)) * x_base
    expected = weight * slope**2 * x.square().flatten(1).sum(1).mean()
    actual = penalty(lambda x: slope * x.square().flatten(1).sum(1) / 2, x_data, x_base, t)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-5)


class Recorded:
    """A penalty that records where it is taken."""

    def __init__(self, penalty) -> None:
        self.draw, self.penalty, self.positions = penalty.draw, penalty, []

    def __call__(self, energy, x_data, x_base, position, parameters=()) -> Tensor:
        self.positions.append(position)
        return self.penalty(energy, x_data, x_base, position, parameters)


@pytest.mark.parametrize("penalty", [GradientPenalty(0.1), Lazy(GradientPenalty(0.1), 1)], ids=["plain", "lazy"])
def test_the_penalty_is_taken_uniformly_along_the_segments(penalty):
    recorded, x = Recorded(penalty), torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    trainer = trainer_of(linear_model(), penalty=recorded)
    trainer.train_energy(itertools.repeat(x), torch.Generator().manual_seed(1), 4)
    n = 4000
    positions = torch.cat(recorded.positions).sort().values
    # The distance of Kolmogorov and Smirnov; beyond this it is with probability 1e-5.
    expected = (torch.arange(n) + 0.5) / n
    assert len(positions) == n and (positions - expected).abs().max() < 2.47 / math.sqrt(n) + 0.5 / n


@settings(deadline=None, max_examples=30, derandomize=True)
@given(weight=st.floats(0.01, 10), target=st.floats(0, 3), dim=st.integers(1, 5), seed=st.integers(0, 1000))
def test_each_penalty_is_its_closed_form(weight, target, dim, seed):
    energy, x_data, x_base = case(dim, 7, seed)
    t = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = t[:, None] * x_data + (1 - t[:, None]) * x_base
    norms = {name: energy.gradient(at).norm(dim=1) for name, at in (("x", x), ("data", x_data), ("base", x_base))}
    squares = sum(parameter.square().sum() for parameter in energy.parameters())
    for penalty, expected in (
        (GradientPenalty(weight), weight * norms["x"].square().mean()),
        (GradientPenalty(weight, target), weight * (norms["x"] - target).square().mean()),
        (R1(weight), weight / 2 * norms["data"].square().mean()),
        (R2(weight), weight / 2 * norms["base"].square().mean()),
        (L2(weight), weight * squares),
    ):
        actual = penalty(energy, x_data, x_base, t, energy.parameters())
        torch.testing.assert_close(actual, expected)
        # What trains the energy is the gradient in its parameters.
        got = torch.autograd.grad(actual, list(energy.parameters()))
        wanted = torch.autograd.grad(expected, list(energy.parameters()), retain_graph=True)
        torch.testing.assert_close(got, wanted)
        assert x_data.requires_grad is False and x_data.grad is None


@pytest.mark.parametrize("kind", [*POINTWISE, L2])
def test_penalty_of_zero_is_zero_and_below_is_refused(kind):
    def explode(x):
        raise AssertionError

    x = torch.zeros(3, 2)
    assert kind(0.0)(explode, x, x, torch.zeros(3)) == 0
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="zero or more") as error:
            kind(weight)
        assert "\n" not in str(error.value)


def test_norm_of_a_gradient_of_zero_has_finite_gradients():
    # A constant energy: drawn to one, the norm is where it has no derivative.
    slope = torch.zeros(2, requires_grad=True)
    x = torch.ones(4, 2)
    penalty = GradientPenalty(10.0, target=1.0)(lambda x: x @ slope, x, 2 * x, torch.full((4,), 0.5))
    penalty.backward()
    assert penalty.item() == 10.0 and slope.grad.isfinite().all()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(every=st.integers(1, 20), rounds=st.integers(1, 4), seed=st.integers(0, 1000))
def test_lazy_penalty_is_the_plain_one_on_average(every, rounds, seed):
    energy, x_data, x_base = case(3, 5, seed)
    # At fixed points the average over whole periods is the plain penalty, exactly.
    plain, lazy = R1(0.7), Lazy(R1(0.7), every)
    total = 0.0
    for step in range(rounds * every):
        position = lazy.draw(5, step=step)
        total += 0.0 if position is None else lazy(energy, x_data, x_base, position).item()
    expected = plain(energy, x_data, x_base, torch.zeros(5)).item()
    assert total / (rounds * every) == pytest.approx(expected)
    # A random one draws the same numbers, due or not: nothing else in a run moves.
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    random = GradientPenalty(0.7)
    for step in range(2 * every):
        due, drawn = Lazy(random, every).draw(5, generators[0], step), random.draw(5, generators[1])
        assert due is None if step % every else torch.equal(due, drawn)


def test_trainer_applies_a_lazy_penalty_when_it_is_due():
    base, energy = networks.make("mlp", resolution=0, channels=2, latent_dim=2, width=8)
    model = GEBM(base, energy, StandardNormal(2))
    trainer = Trainer(
        model,
        objective=KALE(),
        penalty=Lazy(GradientPenalty(0.5), every=3),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-3),
        base_optimizer=adam(model.base.parameters(), 1e-3),
        alternation=Alternation(energy_steps=1, warmup_energy_steps=1),
    )
    infos = [trainer.step(itertools.repeat(torch.randn(8, 2)), torch.Generator().manual_seed(0)) for _ in range(7)]
    assert [bool(info.penalty > 0) for info in infos] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("name", list(penalties.NAMES))
@pytest.mark.parametrize("every", [1, 4])
def test_every_penalty_by_name_enters_the_energy_loss(name, every):
    torch.manual_seed(0)
    base, energy = networks.make("mlp", resolution=0, channels=2, latent_dim=2, width=8)
    model = GEBM(base, energy, StandardNormal(2), energy_floor=-math.inf)
    penalty = penalties.make(name, every=every)
    x_data, x_base = torch.randn(2, 6, 2)
    model.energy.eval()  # so that power iteration does not move the energy between the two losses
    terms = EnergyLoss(model, Wasserstein(), penalty)(x_data, x_base, penalty.draw(6, torch.Generator().manual_seed(0)))
    plain = EnergyLoss(model, Wasserstein(), NoPenalty())(x_data, x_base, None)
    assert plain.penalty == 0
    torch.testing.assert_close(terms.loss - plain.loss, terms.penalty, rtol=1e-4, atol=1e-6)
    assert (terms.penalty > 0) == (name != "none")


def test_critic_of_wgan_gp_is_drawn_to_slope_one():
    # The best 1-Lipschitz critic between two points a distance apart rises by exactly that, at slope one.
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
    model = GEBM(nn.Identity(), energy, StandardNormal(2), energy_floor=-math.inf)
    loss = EnergyLoss(model, Wasserstein(), penalties.make("wgan_gp"))
    optimizer = torch.optim.Adam(energy.parameters(), 1e-2, betas=(0.0, 0.9))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 256, 2, generator=generator) * 0.01
    x_data, x_base = noise[0] + torch.tensor([2.0, 0.0]), noise[1]
    for _ in range(300):
        optimizer.zero_grad()
        terms = loss(x_data, x_base, loss.penalty.draw(256, generator))
        terms.loss.backward()
        optimizer.step()
    distance = (terms.energy_base - terms.energy_data).item()
    # The penalty trades against the distance: at the optimum slope 1 + 1 / (2 lambda) * distance, lambda = 10.
    assert 2.0 * 0.95 < distance < 2.0 * (1 + 2.0 / 20) * 1.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: penalties.make("r3"), "choose one of none, gradient, wgan_gp, r1, r2, l2"),
        (lambda: penalties.make("r1", -1.0), "zero or more"),
        (lambda: penalties.make("r1", every=0), "at least 1"),
        (lambda: GradientPenalty(1.0, target=-1.0), "a norm is zero or more"),
        (lambda: Lazy(NoPenalty(), every=0), "at least 1"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
