"""Laws of the samplers: what a chain's distribution is known to be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gebm import samplers
from gebm.samplers.discriminator_ot import estimate_lipschitz
from gebm.samplers.metropolis import accept
from tests.helpers.kernels import MEAN, PRECISION, LinearPosterior, Normal, gaussian_potential, normal, rng

CHAINS = 20_000
# Every bound below is this many standard errors, computed from independent chains: about 1e-6 a comparison.
K = 5.0


def assert_gaussian_law(z: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Holds sample mean and covariance of independent rows against a Gaussian's, within K standard errors."""
    z, mean, covariance = z.double(), mean.double(), covariance.double()
    n, variances = len(z), covariance.diagonal()
    assert ((z.mean(0) - mean).abs() <= K * (variances / n).sqrt()).all()
    error = ((torch.outer(variances, variances) + covariance.square()) / n).sqrt()
    assert ((torch.cov(z.T) - covariance).abs() <= K * error).all()


# A kernel and a number of steps after which what is left of the start is far below the bounds' standard errors. On the
# targets here, of precision 0.5 to 4, MALA's proposal keeps at most 1 - 0.3 * 0.5 of a direction in each step, and an
# HMC trajectory |cos(3 w)| with cos(w) = 1 - 0.35^2 a / 2, at most 0.74: e^-16 and e^-12 after these steps.
EXACT = pytest.mark.parametrize(
    ("kernel", "num_steps"),
    [
        (samplers.MALA(0.3), 100),
        (samplers.HMC(0.35, 3), 40),
        (samplers.RandomWalkMetropolis(0.9), 250),
        (samplers.IndependentMetropolis(Normal(scale=2.0)), 250),
    ],
    ids=["mala", "hmc", "rwm", "imh"],
)


# Exact samplers


@EXACT
def test_exact_samplers_reach_a_correlated_gaussian(kernel, num_steps):
    chain = samplers.run(kernel, gaussian_potential, normal(CHAINS), num_steps, generator=rng(1))
    assert_gaussian_law(chain.z, MEAN, torch.linalg.inv(PRECISION.double()))


@EXACT
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_exact_samplers_reach_the_posterior_of_a_linear_base(kernel, num_steps, beta):
    posterior = LinearPosterior(beta)
    chain = samplers.run(kernel, posterior, normal(CHAINS), num_steps, generator=rng(2))
    assert_gaussian_law(chain.z, *posterior.moments())


@EXACT
def test_exact_samplers_leave_the_prior_alone_when_the_energy_is_constant(kernel, num_steps):
    z0 = normal(CHAINS)
    chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2 + 3.0, z0, 5, generator=rng(3))
    assert_gaussian_law(chain.z, torch.zeros(3), torch.eye(3))
    assert (chain.z != z0).any(1).float().mean() > 0.5
    assert chain.infos.accepted.any(0).float().mean() > 0.5


@EXACT
def test_expectations_by_mcmc_are_those_by_importance_sampling(kernel, num_steps):
    base = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    with torch.no_grad():
        for index, parameter in enumerate([*base.parameters(), *energy.parameters()]):
            parameter.copy_(torch.randn(parameter.shape, generator=rng(index)))

    def f(z):
        x = base(z)
        return torch.cat([x, x.square(), x.sin()], 1).double()

    def potential(z):
        return z.square().sum(1) / 2 + energy(base(z))

    chain = samplers.run(kernel, potential, normal(CHAINS), num_steps, generator=rng(4))
    with torch.no_grad():
        by_chain = f(chain.z)
        proposals = normal(200_000, seed=5)
        values, weights = f(proposals), (-energy(base(proposals))).double().softmax(0)
    by_weights = weights @ values
    variance = by_chain.var(0) / CHAINS + weights.square() @ (values - by_weights).square()
    assert weights.std() > 0.5 * weights.mean()  # or the energy would reweight nothing
    assert ((by_chain.mean(0) - by_weights).abs() <= K * variance.sqrt()).all()


def test_the_independent_sampler_accepts_by_energies_alone():
    # With the prior as proposal, the prior cancels from the ratio: Turner et al. 2019, beta (E - E').
    z0, kernel, shift = normal(500), samplers.IndependentMetropolis(Normal()), torch.tensor([1.0, -0.5, 2.0])
    chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2 + z @ shift, z0, 1, generator=rng(1))
    proposal = Normal().sample(500, generator=rng(1))
    expected = ((z0 - proposal) @ shift).clamp(max=0).exp()
    torch.testing.assert_close(chain.infos.acceptance_probability[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(chain.z, torch.where(chain.infos.accepted[0][:, None], proposal, z0))


def test_the_chance_of_acceptance_is_the_frequency_of_acceptance():
    chain = samplers.run(samplers.RandomWalkMetropolis(1.0), gaussian_potential, normal(2_000), 50, generator=rng(1))
    p, accepted = chain.infos.acceptance_probability.double(), chain.infos.accepted.double()
    assert (p.sum() - accepted.sum()).abs() <= K * (p * (1 - p)).sum().sqrt()


def test_the_lipschitz_constant_is_that_of_the_steepest_pair():
    z = torch.tensor([[0.0], [1.0], [3.0]])
    # Between neighbors, the first and the last included, the slopes are 2, 5 and 0.5.
    energy = torch.tensor([0.0, 5.0, 6.0])
    assert estimate_lipschitz(z, energy).item() == 5.0
    kernel = samplers.DiscriminatorOptimalTransport(step_size=0.1)
    potential = lambda z: torch.where(z < 1, 5 * z, 4.5 + z / 2).squeeze(1)  # noqa: E731
    assert kernel.init(z, potential).lipschitz.item() == 5.0


@given(infinite=st.sets(st.integers(0, 6), max_size=7), value=st.sampled_from([math.inf, -math.inf, math.nan]))
def test_the_lipschitz_constant_is_of_the_pairs_with_finite_energies(infinite, value):
    n, z = 7, torch.arange(7.0)[:, None]
    energy = z[:, 0].square()
    energy[list(infinite)] = value
    pairs = [(i, (i - 1) % n) for i in range(n) if not {i, (i - 1) % n} & infinite]
    if pairs:
        # Of squares at whole numbers, the slope between two is their sum.
        assert estimate_lipschitz(z, energy).item() == max(i + j for i, j in pairs)
    else:
        with pytest.raises(ValueError, match="not finite in pairs: give lipschitz"):
            estimate_lipschitz(z, energy)


@pytest.mark.parametrize("kernel", [samplers.MALA(0.3), samplers.HMC(0.3, 3), samplers.RandomWalkMetropolis(0.5)])
@pytest.mark.parametrize("outside", [math.nan, math.inf])
def test_a_proposal_without_a_density_is_rejected(kernel, outside):
    def potential(z):
        return torch.where(z[:, 0] > 0, z.square().sum(1) / 2, outside)

    chain = samplers.run(kernel, potential, normal(500).abs(), 50, generator=rng(1))
    assert (chain.z[:, 0] > 0).all()
    assert chain.infos.potential.isfinite().all()
    assert (chain.infos.acceptance_probability == 0).any()
    assert ((chain.infos.acceptance_probability >= 0) & (chain.infos.acceptance_probability <= 1)).all()


def test_a_proposal_of_probability_zero_is_never_taken():
    """Also where the uniform number is the least there is, which is zero."""
    accepted, _ = accept(torch.tensor([-math.inf, -1e4, 0.0]), torch.ones(3, dtype=torch.bool), torch.zeros(3))
    assert accepted.tolist() == [False, False, True]


# Unadjusted samplers, whose law on a Gaussian is known at every step: z' = M z + c + noise of covariance R


def kinetic_map(h: float, friction: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step of KLA for the potential above, as an affine map of (z, v): matrix, offset, noise covariance."""
    eye, zero, a = (torch.eye(3).double(), torch.zeros(3, 3).double(), PRECISION.double())
    c = math.exp(-friction * h)
    drift = torch.cat([torch.cat([eye, h / 2 * eye], 1), torch.cat([zero, eye], 1)])
    kick = torch.cat([torch.cat([eye, zero], 1), torch.cat([-h / 2 * a, eye], 1)])
    damp = torch.block_diag(eye, c * eye)
    offset = torch.cat([torch.zeros(3).double(), h / 2 * a @ MEAN.double()])
    after = drift @ kick
    noise = after @ torch.block_diag(zero, (1 - c**2) * eye) @ after.T
    return after @ damp @ kick @ drift, after @ damp @ offset + drift @ offset, noise


def overdamped_map(h: float) -> tuple[Tensor, Tensor, Tensor]:
    eye, a = torch.eye(3).double(), PRECISION.double()
    return eye - h * a, h * a @ MEAN.double(), 2 * h * eye


def stationary_covariance(matrix: Tensor, noise: Tensor) -> Tensor:
    """Solves S = M S M' + R."""
    size = len(matrix)
    kron = torch.kron(matrix, matrix)
    return torch.linalg.solve(torch.eye(size**2).double() - kron, noise.flatten()).view(size, size)


def test_ula_has_the_law_of_its_recursion_at_every_step():
    kernel, start = samplers.UnadjustedLangevin(0.3), torch.full((CHAINS, 3), 2.0)
    matrix, offset, noise = overdamped_map(0.3)
    mean, covariance = start[0].double(), torch.zeros(3, 3).double()
    state, generator = None, rng(1)
    for _ in range(6):
        state = samplers.run(kernel, gaussian_potential, start, 1, generator=generator, state=state).state
        mean, covariance = matrix @ mean + offset, matrix @ covariance @ matrix.T + noise
        assert_gaussian_law(state.z, mean, covariance)


@pytest.mark.parametrize("velocity", ["zero", "normal"])
def test_kla_has_the_law_of_its_recursion_at_every_step(velocity):
    h, friction = 0.4, 0.7
    kernel = samplers.KineticLangevin(h, friction, initial_velocity=velocity)
    start = torch.full((CHAINS, 3), 2.0)
    matrix, offset, noise = kinetic_map(h, friction)
    mean = torch.cat([start[0], torch.zeros(3)]).double()
    covariance = torch.block_diag(torch.zeros(3, 3), float(velocity == "normal") * torch.eye(3)).double()
    state, generator = None, rng(1)
    for _ in range(8):
        state = samplers.run(kernel, gaussian_potential, start, 1, generator=generator, state=state).state
        mean, covariance = matrix @ mean + offset, matrix @ covariance @ matrix.T + noise
        assert_gaussian_law(torch.cat([state.z, state.velocity], 1), mean, covariance)


@pytest.mark.parametrize("h", [0.4, 0.2, 0.1])
def test_ula_ends_in_its_discretised_law(h):
    matrix, _, noise = overdamped_map(h)
    kernel = samplers.UnadjustedLangevin(h)
    chain = samplers.run(kernel, gaussian_potential, normal(CHAINS), int(30 / h), generator=rng(1))
    assert_gaussian_law(chain.z, MEAN, stationary_covariance(matrix, noise))


@pytest.mark.parametrize("h", [1.0, 0.5])
def test_kla_ends_in_its_discretised_law(h):
    # On a Gaussian the positions are exact at any stable step; the velocities bear the bias, of order h^2.
    velocities = torch.linalg.inv(torch.eye(3).double() - h**2 / 4 * PRECISION.double())
    covariance = torch.block_diag(torch.linalg.inv(PRECISION.double()), velocities)
    matrix, _, noise = kinetic_map(h, friction=1.5)
    torch.testing.assert_close(stationary_covariance(matrix, noise), covariance)
    kernel = samplers.KineticLangevin(h, friction=1.5)
    chain = samplers.run(kernel, gaussian_potential, normal(CHAINS), int(60 / h), generator=rng(1))
    assert_gaussian_law(torch.cat([chain.z, chain.state.velocity], 1), torch.cat([MEAN, torch.zeros(3)]), covariance)


def test_the_bias_of_ula_shrinks_with_the_step():
    """Measured on the chains, for the variance along the eigenvector in which the target is narrowest."""
    values, vectors = torch.linalg.eigh(PRECISION.double())
    a, n = float(values[-1]), 10 * CHAINS

    def bias(h, num_steps):
        kernel = samplers.UnadjustedLangevin(h)
        z = samplers.run(kernel, gaussian_potential, normal(n), num_steps, generator=rng(num_steps)).z.double()
        variance = float((z @ vectors[:, -1]).var())
        return variance - 1 / a, variance * math.sqrt(2 / n)

    # The bias is (1 / a) (ha / 2) / (1 - ha / 2): in proportion to h but for the last factor, which goes to one.
    coarse, coarse_error = bias(0.4, 60)
    fine, fine_error = bias(0.1, 150)
    ratio = 4 * (1 - 0.1 * a / 2) / (1 - 0.4 * a / 2)
    assert abs(coarse - ratio * fine) <= K * math.hypot(coarse_error, ratio * fine_error)
    assert fine > K * fine_error


def test_mala_at_a_tiny_step_is_ula():
    # The correction vanishes with h, and the same noise leads both to the same place.
    mala, ula = (
        samplers.run(kernel, gaussian_potential, normal(200), 1, generator=rng(1))
        for kernel in (samplers.MALA(1e-6), samplers.UnadjustedLangevin(1e-6))
    )
    accepted = mala.infos.accepted[0]
    assert torch.equal(mala.z[accepted], ula.z[accepted])
    assert mala.infos.acceptance_probability.min() > 0.999


def test_hmc_with_one_leapfrog_step_is_mala():
    # The proposal of one leapfrog step e is ULA's of step h = e^2 / 2, and so is the ratio.
    z0, e = normal(500), 0.8
    kernels = samplers.HMC(e, 1), samplers.MALA(e**2 / 2)
    hmc, mala = (samplers.run(kernel, gaussian_potential, z0, 1, generator=rng(1)) for kernel in kernels)
    torch.testing.assert_close(hmc.z, mala.z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        hmc.infos.acceptance_probability, mala.infos.acceptance_probability, rtol=1e-3, atol=1e-4
    )


# Descents


@settings(max_examples=20, deadline=None)
@given(h=st.floats(0.01, 0.5), steps=st.integers(1, 30))
def test_descent_is_ula_without_noise(h, steps):
    z0 = normal(8)
    chain = samplers.run(samplers.GradientDescent(h), gaussian_potential, z0, steps)
    matrix = torch.linalg.matrix_power(torch.eye(3).double() - h * PRECISION.double(), steps)
    expected = MEAN.double() + (z0.double() - MEAN.double()) @ matrix.T
    torch.testing.assert_close(chain.z.double(), expected, rtol=1e-4, atol=1e-5)


def test_optimal_transport_descends_tanakas_objective():
    z0, k, h, steps = normal(50), 0.8, 0.05, 12
    energy = lambda z: z.sin().sum(1) + (z[:, 0] * z[:, 1]) / 2  # noqa: E731
    chain = samplers.run(samplers.DiscriminatorOptimalTransport(h, lipschitz=k), energy, z0, steps)

    z = z0.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(z).sum() / k, z)  # at the start the norm contributes nothing
    z = z0 - h * gradient
    for _ in range(steps - 1):
        z = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad((energy(z) / k + (z - z0).norm(dim=1)).sum(), z)
        z = z - h * gradient
    torch.testing.assert_close(chain.z, z.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chain.infos.distance[-1], (chain.z - z0).norm(dim=1))
    torch.testing.assert_close(chain.infos.potential[-1], energy(chain.z))
    assert chain.infos.potential[-1].mean() < energy(z0).mean()


@settings(max_examples=20, deadline=None)
@given(slope=st.floats(0.1, 4.0), k=st.floats(0.2, 2.0), steps=st.integers(2, 40))
def test_optimal_transport_moves_only_where_the_energy_is_steeper_than_k(slope, k, steps):
    h, direction = 0.05, torch.tensor([[0.6, 0.0, 0.8]])
    z0 = normal(4)
    kernel = samplers.DiscriminatorOptimalTransport(h, lipschitz=k)
    chain = samplers.run(kernel, lambda z: slope * (z * direction).sum(1), z0, steps)
    moved = ((z0 - chain.z) * direction).sum(1)
    expected = h * slope / k + (steps - 1) * h * (slope / k - 1)
    if slope > k:
        torch.testing.assert_close(moved, torch.full((4,), expected), rtol=1e-3, atol=1e-4)
    else:
        assert (moved.abs() <= h * (1 + slope / k) + 1e-4).all()


def test_optimal_transport_takes_the_priors_part_off_the_models_potential():
    energy = lambda z: z.sin().sum(1)  # noqa: E731
    z0, prior, estimates = normal(64), Normal(scale=2.0), {}
    for beta in (1.0, 10.0):
        potential = lambda z, beta=beta: beta * energy(z) - prior.log_prob(z)  # noqa: E731
        kernel = samplers.make("dot", step_size=0.1, prior=prior, friction=1.0)
        chain = samplers.run(kernel, potential, z0, 10)
        estimates[beta] = float(chain.state.lipschitz)
        # K is estimated as well, so that beta cancels.
        known = samplers.DiscriminatorOptimalTransport(0.1, lipschitz=estimates[1.0])
        alone = samplers.run(known, energy, z0, 10)
        torch.testing.assert_close(chain.z, alone.z, rtol=1e-3, atol=1e-3)
    assert estimates[10.0] == pytest.approx(10 * estimates[1.0], rel=1e-3)
    assert (alone.z - z0).norm(dim=1).mean() > 0.05


def test_optimal_transport_of_a_latent_does_not_depend_on_which_others_run_with_it():
    z0, prior = normal(7), Normal()
    kernel = samplers.make("dot", step_size=0.1, prior=prior)
    potential = lambda z: z.sin().sum(1) - prior.log_prob(z)  # noqa: E731
    together, in_threes, alone = (
        torch.cat([samplers.run(kernel, potential, part, 10).z for part in z0.split(size)]) for size in (7, 3, 1)
    )
    torch.testing.assert_close(in_threes, together, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)
    assert (alone - z0).norm(dim=1).mean() > 0.05


def test_one_latent_and_no_prior_give_no_lipschitz_constant():
    with pytest.raises(ValueError, match="give prior or lipschitz"):
        samplers.run(samplers.DiscriminatorOptimalTransport(0.1), lambda z: z.sum(1), normal(1), 1)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 50), slope=st.floats(0.01, 100))
def test_the_estimated_lipschitz_constant_is_a_slope_and_no_more_than_the_true_constant(n, slope):
    z = normal(n, seed=n)
    estimate = samplers.DiscriminatorOptimalTransport(0.1).init(z, lambda z: slope * z[:, 0].sin()).lipschitz
    assert 0 < float(estimate) <= slope * (1 + 1e-3)
