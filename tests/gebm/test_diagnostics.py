"""Diagnostics against chains whose mixing is known."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import StandardNormal, diagnostics, samplers
from gebm.samplers.langevin import LangevinInfo


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


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), chains=st.integers(1, 4), place=st.floats(-1e6, 1e6))
@pytest.mark.parametrize("method", ["bulk", "tail"])
def test_chains_that_never_moved_have_no_effective_sample_size(method, seed, chains, place):
    z = autoregression(0.5, 40, chains, 3, seed)
    expected = diagnostics.effective_sample_size(z, method)
    z[:, :, 1] = place
    ess = diagnostics.effective_sample_size(z, method)
    assert ess.isnan().tolist() == [False, True, False]
    assert torch.equal(ess[::2], expected[::2])
    info = torch.ones(40, chains)
    assert diagnostics.summary(z, LangevinInfo(info, info < 0))[f"ess_{method}"] == 0


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
    result = diagnostics.summary(positions, chain.infos, gradients_per_step=kernel.gradients_per_step, seconds=0.25)
    assert set(result) == {
        "mean_potential", "divergences", "ess_bulk", "ess_tail", "r_hat", "acceptance_rate", "energy_error",
        "ess_per_gradient", "ess_per_second",
    }  # fmt: skip
    assert result["divergences"] == 0
    assert result["energy_error"] == pytest.approx(float(chain.infos.energy_error.double().abs().mean()))
    assert result["ess_per_second"] == pytest.approx(result["ess_bulk"] / 0.25)
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
    assert set(diagnostics.summary(torch.stack(seen), chain.infos)) == {
        "mean_potential", "divergences", "ess_bulk", "ess_tail"
    }  # fmt: skip
    assert diagnostics.acceptance_rate(chain.infos) is None
    assert diagnostics.energy_error(chain.infos) is None
    assert diagnostics.swap_acceptance(chain.infos) is None


def cliff(z):
    """A normal's potential, and not a number beyond 1."""
    return torch.where(z[:, 0] > 1.0, math.nan, 1.0) * z.square().sum(1) / 2


@pytest.mark.parametrize("prior", [None, StandardNormal(3)], ids=["", "restarting"])
def test_divergences_are_counted_and_left_out(prior):
    seen, kernel = [], samplers.UnadjustedLangevin(0.02)
    generator = torch.Generator().manual_seed(0)
    chain = samplers.run(
        kernel, cliff, torch.zeros(40, 3), 100, generator=generator, prior=prior, every=1,
        callback=lambda step, state: seen.append(state.z),
    )  # fmt: skip
    positions = torch.stack(seen)
    result = diagnostics.summary(positions, chain.infos, seconds=1.0)
    assert result["divergences"] == float(chain.divergences.sum()) > 0
    kept = chain.infos.potential[~chain.infos.diverged].double()
    assert result["mean_potential"] == pytest.approx(float(kept.mean()))
    whole = positions.isfinite().all(2).all(0)
    assert whole.all() == (prior is not None) and whole.any()
    assert result["ess_bulk"] == float(diagnostics.effective_sample_size(positions[:, whole]).min())
    assert all(math.isfinite(value) for value in result.values())


def test_a_rejected_divergence_counts_as_a_rejection():
    kernel, generator = samplers.RandomWalkMetropolis(1.0), torch.Generator().manual_seed(0)
    infos = samplers.run(kernel, cliff, torch.zeros(40, 3), 100, generator=generator).infos
    assert diagnostics.divergences(infos) == int(infos.diverged.sum()) > 0
    assert diagnostics.mean_potential(infos) == pytest.approx(float(infos.potential.double().mean()))
    assert diagnostics.acceptance_rate(infos) == pytest.approx(float(infos.accepted.double().mean()))
    kept = infos.energy_error[~infos.diverged].double().abs()
    assert diagnostics.energy_error(infos) == pytest.approx(float(kept.mean()))


def test_chains_that_are_all_lost_have_no_sample_size():
    positions = torch.full((20, 3, 2), math.nan)
    lost = torch.full((20, 3), math.nan)
    result = diagnostics.summary(positions, LangevinInfo(lost, lost.isnan()))
    assert result["ess_bulk"] == result["ess_tail"] == 0 and result["divergences"] == 60
    assert math.isnan(result["mean_potential"]) and "r_hat" not in result


def test_the_swap_acceptance_is_that_of_the_pairs_that_had_their_turn():
    prior = StandardNormal(3)
    kernel, seen = samplers.ParallelTempering(samplers.MALA(0.1), prior, betas=(1.0, 0.5, 0.2, 0.0)), []
    potential = lambda z: 3 * z.square().sum(1) - prior.log_prob(z)  # noqa: E731
    chain = samplers.run(
        kernel, potential, torch.zeros(8, 3), 101, generator=torch.Generator().manual_seed(0), every=1,
        callback=lambda step, state: seen.append(state.z),
    )  # fmt: skip
    swaps = chain.infos.swap_acceptance.double()
    rates = torch.stack([swaps[0::2, :, 0].mean(), swaps[1::2, :, 1].mean(), swaps[0::2, :, 2].mean()])
    torch.testing.assert_close(diagnostics.swap_acceptance(chain.infos), rates)
    result = diagnostics.summary(torch.stack(seen), chain.infos, gradients_per_step=kernel.gradients_per_step)
    assert result["swap_acceptance"] == pytest.approx(float(rates.min()))
    assert result["ess_per_gradient"] == pytest.approx(result["ess_bulk"] / (101 * 8 * 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diagnostics.effective_sample_size(torch.zeros(10, 2)), "T, N, D"),
        (lambda: diagnostics.effective_sample_size(torch.zeros(3, 2, 2)), "at least 4"),
        (lambda: diagnostics.effective_sample_size(torch.zeros(9, 2, 2), "middle"), "bulk"),
        (lambda: diagnostics.r_hat(torch.zeros(9, 1, 2)), "two"),
        (lambda: diagnostics.summary(torch.zeros(9, 2), None), "T, N, D"),
        (lambda: diagnostics.summary(torch.zeros(9, 2, 2), None, seconds=0.0), "seconds"),
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
assert "gebm.samplers.diagnostics" not in sys.modules
try:
    import gebm.samplers.diagnostics
except ImportError as error:
    assert "arviz-stats" in str(error), error
else:
    raise SystemExit("imported")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
