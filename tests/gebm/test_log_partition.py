"""Estimators of the log-partition function against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gebm import (
    GEBM,
    StandardNormal,
    annealing_schedule,
    initialize_log_partition,
    log_partition_annealed,
    log_partition_monte_carlo,
    networks,
    samplers,
)


class Quadratic(nn.Module):
    """E(x) = a ||x||^2 / 2 + b sum(x)."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return self.a * x.square().sum(1) / 2 + self.b * x.sum(1)


def quadratic_model(a: float, b: float, dim: int) -> tuple[GEBM, float]:
    """Under N(0, I), E exp(-E) = prod (1 + a)^(-1/2) exp(b^2 / (2 (1 + a)))."""
    exact = dim * (-math.log1p(a) / 2 + b**2 / (2 * (1 + a)))
    return GEBM(nn.Identity(), Quadratic(a, b), StandardNormal(dim)), exact


# Weights with a finite fourth moment (a > -1/4), so that five standard errors mean what they say.
@settings(deadline=None, max_examples=40, derandomize=True)
@given(a=st.floats(-0.15, 3.0), b=st.floats(-0.7, 0.7), dim=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_monte_carlo_is_within_its_standard_error(a, b, dim, seed):
    model, exact = quadratic_model(a, b, dim)
    estimate, error = log_partition_monte_carlo(model, 20_000, torch.Generator().manual_seed(seed), batch_size=7_000)
    assert abs(estimate - exact) <= 5 * error + 1e-6


def test_standard_error_covers_as_often_as_it_says():
    model, exact = quadratic_model(1.0, 0.3, 2)
    runs = 400
    covered = 0
    for seed in range(runs):
        estimate, error = log_partition_monte_carlo(model, 2_000, torch.Generator().manual_seed(seed))
        covered += bool(abs(estimate - exact) <= error)
    # One standard error covers 68.3 % of the time; the count is binomial, and four of its deviations are allowed.
    assert abs(covered / runs - 0.683) <= 4 * math.sqrt(0.683 * 0.317 / runs)


def test_batches_do_not_matter():
    model, _ = quadratic_model(1.0, 0.3, 1)
    whole = log_partition_monte_carlo(model, 100, torch.Generator().manual_seed(0), batch_size=100)
    parts = log_partition_monte_carlo(model, 100, torch.Generator().manual_seed(0), batch_size=100_000)
    torch.testing.assert_close(whole, parts)


def test_initialize_sets_the_estimate():
    model, _ = quadratic_model(1.0, 0.3, 2)
    initialize_log_partition(model, 500, torch.Generator().manual_seed(0))
    estimate, _ = log_partition_monte_carlo(model, 500, torch.Generator().manual_seed(0))
    assert model.log_partition.item() == pytest.approx(estimate.item())
    assert model.log_partition.requires_grad


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="at least 2"):
        log_partition_monte_carlo(quadratic_model(1.0, 0.0, 1)[0], 1)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(a=st.floats(-0.15, 3.0), b=st.floats(-0.7, 0.7), dim=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_annealing_is_within_its_standard_error(a, b, dim, seed):
    model, exact = quadratic_model(a, b, dim)
    generator = torch.Generator().manual_seed(seed)
    found = log_partition_annealed(
        model, 1_500, samplers.MALA(0.3), annealing_schedule(8), generator=generator, batch_size=700
    )
    assert abs(found.log_partition - exact) <= 5 * found.standard_error + 1e-6
    assert 1 <= found.effective_sample_size <= 1_500 + 1e-6


@pytest.mark.parametrize("name", samplers.NAMES.having("exact", True))
def test_annealing_with_any_exact_kernel_is_within_its_standard_error(name):
    model, exact = quadratic_model(0.0, -1.5, 1)
    kernel = samplers.make(name, step_size=0.5, num_leapfrog_steps=3, prior=model.prior)
    generator = torch.Generator().manual_seed(0)
    found = log_partition_annealed(model, 20_000, kernel, annealing_schedule(6), num_steps=2, generator=generator)
    assert found.standard_error < 0.05
    assert abs(found.log_partition - exact) <= 5 * found.standard_error


class Half(nn.Module):
    """E(x) = 1 where the first coordinate is negative, and infinite elsewhere."""

    def forward(self, x):
        return (1.0 + 0.0 * x.sum(1)).masked_fill(x[:, 0] > 0, math.inf)


@pytest.mark.parametrize("kernel", [samplers.MALA(0.3), samplers.HMC(0.3, 2), samplers.RandomWalkMetropolis(0.5)])
@pytest.mark.parametrize("batch_size", [1024, 1], ids=["", "of one each"])
def test_annealing_gives_latents_of_infinite_energy_no_weight(kernel, batch_size):
    """Also a batch of nothing else."""
    model, n = GEBM(nn.Identity(), Half(), StandardNormal(2)), 200
    draws = torch.Generator().manual_seed(0)
    found = log_partition_annealed(model, n, kernel, [0.25, 0.5, 1.0], generator=draws, batch_size=batch_size)
    assert abs(found.log_partition - (math.log(0.5) - 1)) <= 5 * found.standard_error
    # All weights are equal, or zero: those that begin in the half stay there.
    assert found.effective_sample_size == pytest.approx(n * math.exp(float(found.log_partition) + 1))


@pytest.mark.parametrize("kernel", [samplers.HMC(0.4, num_leapfrog_steps=3), samplers.MALA(0.3)])
def test_annealing_reaches_what_monte_carlo_does_not(kernel):
    # Base and model are six standard deviations apart: E(x) = -6 x has A = 18, and hardly a base draw is near x = 6.
    model, exact = quadratic_model(0.0, -6.0, 1)
    model.energy.floor = -math.inf
    generator = torch.Generator().manual_seed(0)
    found = log_partition_annealed(model, 500, kernel, annealing_schedule(60), num_steps=2, generator=generator)
    assert exact == 18
    assert abs(found.log_partition - exact) <= 5 * found.standard_error
    assert found.standard_error < 0.2 and found.effective_sample_size > 50
    plain = log_partition_annealed(model, 500, kernel, [1.0], generator=torch.Generator().manual_seed(0))
    assert plain.effective_sample_size < 10


def test_one_temperature_is_plain_monte_carlo():
    model, _ = quadratic_model(1.0, 0.3, 2)
    annealed = log_partition_annealed(model, 400, samplers.MALA(0.1), [1.0], generator=torch.Generator().manual_seed(0))
    plain = log_partition_monte_carlo(model, 400, torch.Generator().manual_seed(0))
    torch.testing.assert_close(annealed[:2], plain)
    # The effective sample size by its definition.
    weights = (-model.energy(model.sample_base(400, torch.Generator().manual_seed(0)))).exp().double()
    torch.testing.assert_close(annealed.effective_sample_size, weights.sum() ** 2 / weights.square().sum())


def test_a_constant_energy_has_no_error():
    model = GEBM(nn.Identity(), Quadratic(0.0, 0.0), StandardNormal(3))
    found = log_partition_annealed(model, 20, samplers.MALA(0.2), annealing_schedule(5))
    assert found.log_partition == found.standard_error == 0
    assert found.effective_sample_size == pytest.approx(20)


@pytest.mark.parametrize("name", list(networks.flows.FLOWS))
def test_known_log_partition_of_flows_is_found(name):
    # E = log b - log f + 1.5, both flows some way from the identity; A is -1.5 whatever they are.
    torch.manual_seed(3)
    base, energy = networks.make(name, resolution=0, channels=3, latent_dim=3, width=16, offset=1.5)
    with torch.no_grad():
        for parameter in [*base.parameters(), *energy.parameters()]:
            parameter += 0.05 * torch.randn_like(parameter)
    model = GEBM(base, energy, StandardNormal(3))
    true = energy.network.known_log_partition
    generator = torch.Generator().manual_seed(0)
    plain, error = log_partition_monte_carlo(model, 4_000, generator)
    assert abs(plain - true) <= 4 * error and error < 0.1
    for kernel in (samplers.MALA(0.3), samplers.HMC(0.4, num_leapfrog_steps=2)):
        found = log_partition_annealed(model, 400, kernel, annealing_schedule(6), generator=generator)
        assert abs(found.log_partition - true) <= 4 * found.standard_error and found.standard_error < 0.1


def test_annealing_changes_nothing_of_the_model():
    model, _ = quadratic_model(1.0, 0.3, 2)
    model.train()
    first, second = (
        log_partition_annealed(model, 10, samplers.MALA(0.2), [0.5, 1.0], generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert first == second and model.training and model.log_partition == 0


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_schedules_lead_from_the_prior_to_the_model(power):
    betas = annealing_schedule(7, power)
    assert len(betas) == 7 and betas == sorted(betas) and betas[0] > 0 and betas[-1] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 1}, "at least 2"),
        ({"num_steps": 0}, "at least 1"),
        ({"betas": []}, "must increase from above 0 to 1"),
        ({"betas": [0.5]}, "must increase from above 0 to 1"),
        ({"betas": [0.5, 0.5, 1.0]}, "must increase from above 0 to 1"),
        ({"betas": [0.0, 1.0]}, "must increase from above 0 to 1"),
        ({"kernel": samplers.ParallelTempering(samplers.HMC(0.1), StandardNormal(1))}, "of a level, HMC"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        log_partition_annealed(
            quadratic_model(1.0, 0.0, 1)[0], **{"num_samples": 4, "kernel": samplers.MALA(0.1)} | settings
        )
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="choose at least 1, and a positive power"):
        annealing_schedule(0)
