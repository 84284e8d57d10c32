"""Estimators of the log-partition function against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gebm import GEBM, StandardNormal, initialise_log_partition, log_partition_monte_carlo


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


def test_initialise_sets_the_estimate():
    model, _ = quadratic_model(1.0, 0.3, 2)
    initialise_log_partition(model, 500, torch.Generator().manual_seed(0))
    estimate, _ = log_partition_monte_carlo(model, 500, torch.Generator().manual_seed(0))
    assert model.log_partition.item() == pytest.approx(estimate.item())
    assert model.log_partition.requires_grad


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="at least 2"):
        log_partition_monte_carlo(quadratic_model(1.0, 0.0, 1)[0], 1)
