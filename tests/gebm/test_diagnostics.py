"""Diagnostics against chains whose mixing is known."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import diagnostics, samplers


def autoregression(rho: float, steps: int, chains: int, dim: int, seed: int) -> torch.Tensor:
    """Stationary AR(1) chains (T, N, D) of unit variance."""
    noise = torch.randn(steps, chains, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = [noise[0]]
    for step in noise[1:]:
        z.append(rho * z[-1] + math.sqrt(1 - rho**2) * step)
    return torch.stack(z)


@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.5, 0.8])
def test_the_effective_sample_size_of_an_autoregression(rho):
    steps, chains = 4_000, 8
    n, time = steps * chains, (1 + rho) / (1 - rho)
    ess = diagnostics.effective_sample_size(autoregression(rho, steps, chains, 3, seed=1))
    # Sokal's variance of an autocorrelation time summed up to a lag of M: 2 (2M + 1) / n, relative to its square.
    # M = 5 times (the lag at which the autocorrelation is below e^-5), at least 5; bound of four standard errors.
    lags = 5 if rho <= 0 else max(5, -5 / math.log(rho))
    bound = 4 * math.sqrt(2 * (2 * lags + 1) / n)
    assert ((ess * time / n - 1).abs() <= bound).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), chains=st.integers(2, 5))
def test_the_bulk_depends_on_ranks_only_and_not_on_the_order_of_chains(seed, chains):
    z = autoregression(0.5, 60, chains, 2, seed)
    for statistic in (diagnostics.effective_sample_size, diagnostics.r_hat):
        expected = statistic(z)
        torch.testing.assert_close(statistic(z.flip(1)), expected)
        torch.testing.assert_close(statistic(z.flip(2)), expected.flip(0))
    torch.testing.assert_close(diagnostics.effective_sample_size(z.exp()), diagnostics.effective_sample_size(z))


def test_r_hat_tells_chains_that_agree_from_chains_that_do_not():
    z = autoregression(0.0, 1_000, 8, 2, seed=1)
    assert (diagnostics.r_hat(z) < 1.01).all()
    z[:, :4, 1] += 1.0  # half of the chains sit elsewhere, in one coordinate
    r_hat = diagnostics.r_hat(z)
    # Within chains the variance is 1, between them 1/4: sqrt(1.25) but for the ranks' transformation.
    assert r_hat[0] < 1.01 and r_hat[1] > 1.09
    # The offset is an autocorrelation of 1/5 that never dies out: over 25 lags or more it costs a factor of ten.
    ess = diagnostics.effective_sample_size(z)
    assert ess[1] < ess[0] / 10


def test_a_summary_of_a_real_chain():
    kernel, seen = samplers.HMC(0.5, 3), []
    generator = torch.Generator().manual_seed(0)
    chain = samplers.run(
        kernel,
        lambda z: z.square().sum(1) / 2,
        torch.randn(8, 3, generator=generator),
        400,
        generator=generator,
        every=2,
        callback=lambda step, state: seen.append(state.z),
    )
    positions = torch.stack(seen)
    result = diagnostics.summary(positions, chain.infos, gradients_per_step=kernel.gradients_per_step)
    assert set(result) == {
        "mean_potential", "ess_bulk", "ess_tail", "r_hat", "acceptance_rate", "ess_per_gradient"
    }  # fmt: skip
    assert result["acceptance_rate"] == pytest.approx(float(chain.infos.accepted.float().mean()))
    assert result["ess_bulk"] == float(diagnostics.effective_sample_size(positions).min())
    assert result["ess_per_gradient"] == pytest.approx(result["ess_bulk"] / (400 * 8 * 3))
    assert result["r_hat"] < 1.02
    # The potential is half a chi-square of 3 degrees: mean 3/2, variance 3/2. The energy mixes more slowly than the
    # coordinates: for this bound one draw in ten of the chains counts as independent.
    assert abs(result["mean_potential"] - 1.5) <= 5 * math.sqrt(1.5 / (400 * 8 / 10))


def test_a_summary_leaves_out_what_there_is_not():
    kernel = samplers.UnadjustedLangevin(0.1)
    seen = []
    chain = samplers.run(
        kernel,
        lambda z: z.square().sum(1) / 2,
        torch.zeros(1, 2),
        20,
        every=1,
        callback=lambda step, state: seen.append(state.z),
    )
    assert set(diagnostics.summary(torch.stack(seen), chain.infos)) == {"mean_potential", "ess_bulk", "ess_tail"}
    assert diagnostics.acceptance_rate(chain.infos) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diagnostics.effective_sample_size(torch.zeros(10, 2)), "T, N, D"),
        (lambda: diagnostics.effective_sample_size(torch.zeros(3, 2, 2)), "at least 4"),
        (lambda: diagnostics.effective_sample_size(torch.zeros(9, 2, 2), "middle"), "bulk"),
        (lambda: diagnostics.r_hat(torch.zeros(9, 1, 2)), "two"),
    ],
)
def test_misuse_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_gebm_imports_without_the_statistics_package():
    program = """
import sys
sys.modules["arviz_stats"] = None
import gebm, gebm.samplers
assert "gebm.diagnostics" not in sys.modules
try:
    import gebm.diagnostics
except ImportError as error:
    assert "arviz-stats" in str(error), error
else:
    raise SystemExit("imported")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
