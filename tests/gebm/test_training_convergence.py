"""Training finds what is known: a log-partition, a divergence, a mean and covariance, the data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from gebm import (
    GEBM,
    KALE,
    Alternation,
    GradientPenalty,
    StandardNormal,
    Trainer,
    adam,
    initialize_log_partition,
    objectives,
)
from gebm.objectives.losses import EnergyLoss
from tests.helpers.trainers import flow_model, trainer_of, vectors


def test_maximum_likelihood_finds_the_mean_and_covariance():
    # Full batches, so that the optimum is the sample's own mean and covariance: that of n draws, exactly.
    model = flow_model(name="gaussian")
    x = next(vectors(0, 500))
    optimizer = adam(model.base.parameters(), 2e-2, betas=(0.9, 0.999))
    trainer = Trainer(model, objective=objectives.make("ml"), base_optimizer=optimizer)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        info = trainer.step(itertools.repeat(x), generator)
        if step in (200, 300):
            trainer.scale_learning_rates(0.1, 0.1)
    covariance = model.base.factor @ model.base.factor.T
    torch.testing.assert_close(model.base.mean.detach(), x.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance.detach(), torch.cov(x.T, correction=0), rtol=0, atol=2e-3)
    entropy = 0.5 * torch.logdet(torch.cov(x.T, correction=0)) + 1 + math.log(2 * math.pi)
    assert info.base_loss.item() == pytest.approx(entropy.item(), abs=1e-4)


@pytest.mark.parametrize(("objective", "ema_decay"), [("kale_fenchel", None), ("ml_kale", 0.9)])
def test_fenchel_finds_the_known_log_partition(objective, ema_decay):
    # exp(-D) dx has log-partition -1.3 at any time, whatever flows and base have learned; c starts at zero.
    model = flow_model(name="realnvp", offset=1.3)
    trainer = trainer_of(
        model,
        lr=5e-3,
        objective=objectives.make(objective),
        penalty=GradientPenalty(0.0),
        alternation=Alternation(energy_steps=4, warmup_energy_steps=4),
        ema_decay=ema_decay,
    )
    generator, batches = torch.Generator().manual_seed(0), vectors(0, 128)
    for step in range(140):
        info = trainer.step(batches, generator)
        if step in (90, 115):
            trainer.scale_learning_rates(0.3, 0.3)
    assert info.num_nonfinite == 0
    assert abs(info.log_partition - -1.3) < 0.1
    # And the model is the data's law: it is as likely as the truth, up to 0.1 nats of estimation error.
    x = next(vectors(10_000, 4_000))
    factor = torch.tensor([[1.2, 0.3], [0.0, 0.7]]).T
    truth = torch.distributions.MultivariateNormal(torch.tensor([0.5, -0.25]), factor @ factor.T)
    shortfall = (truth.log_prob(x) - trainer.sampling_model().log_prob(x, log_partition=-1.3)).mean()
    assert abs(shortfall) < 0.1


class Shift(nn.Module):
    """A base that can only move: x = z + theta."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.theta


class Quadratic(nn.Module):
    """E(x) = x^T A x / 2 + b^T x, with A symmetric: between Gaussians, the best energy is one of these."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.zeros(dim, dim))
        self.slope = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        symmetric = (self.curvature + self.curvature.T) / 2
        return ((x @ symmetric) * x).sum(1) / 2 + x @ self.slope


def test_trained_kale_approaches_the_known_divergence():
    # P = N(m, S), B = N(0, I): maximized on a fixed batch, the bound is at least its value at the optimal energy, which
    # estimates KL(P || B) with a known standard error; and on the distributions themselves it stays below KL(P || B).
    n, dim = 4_000, 2
    mean = torch.tensor([0.6, -0.3]).double()
    factor = torch.tensor([[0.7, 0.0], [0.3, 0.6]]).double()
    covariance = factor @ factor.T
    divergence = 0.5 * (covariance.trace() + mean @ mean - dim - torch.logdet(covariance))
    generator = torch.Generator().manual_seed(0)
    x_data = mean + torch.randn(n, dim, generator=generator, dtype=torch.float64) @ factor.T
    x_base = torch.randn(n, dim, generator=generator, dtype=torch.float64)

    model = GEBM(nn.Identity(), Quadratic(dim), StandardNormal(dim)).double()
    loss = EnergyLoss(model, KALE("fenchel"), GradientPenalty(0.0))
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(x_data, x_base, torch.zeros(n)).loss
        value.backward()
        return value

    optimizer.step(closure)
    trained = -closure().detach()

    optimum = Quadratic(dim).double()
    precision = covariance.inverse()
    with torch.no_grad():
        optimum.curvature.copy_(precision - torch.eye(dim))
        optimum.slope.copy_(-precision @ mean)
    log_partition = 0.5 * (mean @ precision @ mean + torch.logdet(covariance))
    ratio = (-(optimum(x_base) + log_partition)).exp()
    error = ((optimum(x_data).var() + ratio.var()) / n).sqrt().detach()
    assert trained >= divergence - 5 * error

    # F of the trained energy in closed form: Gaussian expectations of a quadratic and of its exponential.
    energy = model.energy.network
    curvature, slope = ((energy.curvature + energy.curvature.T) / 2).detach(), energy.slope.detach()
    expectation = 0.5 * ((curvature @ covariance).trace() + mean @ curvature @ mean) + slope @ mean
    tilted = torch.eye(dim) + curvature
    exact = 0.5 * (slope @ tilted.inverse() @ slope - torch.logdet(tilted))
    supremum = -expectation - exact
    c = model.log_partition.detach()
    fenchel = -expectation - c - (exact - c).exp() + 1
    assert fenchel <= supremum <= divergence
    # The trained c is the log-partition of the batch, whose standard error follows from its own weights.
    weights = (-(energy(x_base) + exact)).exp().detach()
    assert abs(c - exact) <= 5 * weights.std() / math.sqrt(n)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_base_moves_onto_the_data(ema_decay):
    # P = N(m, I), and the base can only shift: a step of Adam moves each entry by at most the learning rate, or a
    # small multiple, so the steps taken here could carry it 4, four times what is needed.
    torch.manual_seed(0)
    target = torch.tensor([1.0, -1.0])
    model = GEBM(Shift(2), Quadratic(2), StandardNormal(2))
    initialize_log_partition(model, 256)
    trainer = trainer_of(model, lr=2e-2, penalty=GradientPenalty(0.1), ema_decay=ema_decay)
    generator = torch.Generator().manual_seed(0)
    batches = (target + torch.randn(256, 2, generator=generator) for _ in itertools.count())
    distances = []
    for _ in range(200):
        info = trainer.step(batches, generator)
        distances.append((trainer.sampling_model().base.theta.detach() - target).norm().item())
    assert info.num_nonfinite == 0
    # Over the last quarter, nearer than half of the way it had to go.
    assert max(distances[-50:]) < math.sqrt(2) / 2
