"""Exactness: what starts in a target's law stays in it, step by step, and in detailed balance.

Chains start at exact, independent draws of the target. A kernel that leaves the target alone then ends at exact,
independent draws, however slowly it mixes: no bound below has an autocorrelation time in it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gebm import samplers
from gebm.samplers import hamiltonian, langevin, metropolis, tempering

K = 5.0  # standard errors in every bound: about 1e-6 a comparison
CHAINS = 20_000
EXACT_DRAWS = 5 * CHAINS


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Normal:
    """A latent prior N(0, scale^2 I)."""

    def __init__(self, dim: int, scale: float):
        self.dim, self.scale = dim, scale

    def from_noise(self, noise):
        return self.scale * noise

    def log_prob(self, z):
        return -(z / self.scale).square().sum(1) / 2 - self.dim * math.log(self.scale * math.sqrt(2 * math.pi))


# Targets, each with its potential and with exact draws


class Gaussian:
    """A correlated Gaussian in ten dimensions; its standard deviations are between 0.5 and 2."""

    dim = 10

    def __init__(self):
        rotation = torch.linalg.qr(torch.randn(10, 10, generator=rng(5), dtype=torch.float64))[0]
        self.mean = torch.linspace(-1, 1, 10, dtype=torch.float64)
        self.root = rotation * torch.logspace(-0.3, 0.3, 10, dtype=torch.float64)
        self.precision = torch.linalg.inv(self.root @ self.root.T)

    def __call__(self, z):
        shifted = z - self.mean.to(z.dtype)
        return (shifted @ self.precision.to(z.dtype) * shifted).sum(1) / 2

    def sample(self, n, generator):
        return (self.mean + torch.randn(n, 10, generator=generator, dtype=torch.float64) @ self.root.T).float()


class Mixture:
    """Two Gaussians of unequal weights, in part of one another's reach."""

    dim = 2
    weight, scale = 0.3, 0.6
    centers = ((-1.2, -0.5), (1.2, 0.5))

    def __call__(self, z):
        a, b = ((z - torch.tensor(c)).square().sum(1) / (2 * self.scale**2) for c in self.centers)
        return -torch.logaddexp(math.log(self.weight) - a, math.log(1 - self.weight) - b)

    def sample(self, n, generator):
        first = torch.rand(n, generator=generator) < self.weight
        centers = torch.where(first[:, None], *(torch.tensor(c) for c in self.centers))
        return centers + self.scale * torch.randn(n, 2, generator=generator)


class Banana:
    """Rosenbrock's valley, in the form that can be sampled: a normal, and a normal around its square."""

    dim = 2

    def __call__(self, z):
        x, y = z.unbind(1)
        return x.square() / 2 + (y - (x.square() - 1) / 2).square() / (2 * 0.5**2)

    def sample(self, n, generator):
        x, noise = torch.randn(2, n, generator=generator)
        return torch.stack([x, (x.square() - 1) / 2 + 0.5 * noise], 1)


class Funnel:
    """Neal's funnel, Annals of Statistics 2003, with a neck of standard deviation 1 rather than 3."""

    dim = 2

    def __call__(self, z):
        v, x = z.unbind(1)
        return v.square() / 2 + x.square() * (-v).exp() / 2 + v / 2

    def sample(self, n, generator):
        v, noise = torch.randn(2, n, generator=generator)
        return torch.stack([v, (v / 2).exp() * noise], 1)


TARGETS = {"gaussian": Gaussian(), "mixture": Mixture(), "banana": Banana(), "funnel": Funnel()}
EVERY_TARGET = pytest.mark.parametrize("name", TARGETS)


@functools.cache
def exact(name: str, n: int = EXACT_DRAWS) -> Tensor:
    return TARGETS[name].sample(n, rng(11))


def starts(name: str, n: int = CHAINS, seed: int = 12) -> Tensor:
    return TARGETS[name].sample(n, rng(seed))


class Law(NamedTuple):
    """What exact draws say of a target: where to look at rows, and the mean and variance of what is seen there."""

    center: Tensor
    quantiles: Tensor
    mean: Tensor
    variance: Tensor


def features(rows: Tensor, center: Tensor, quantiles: Tensor) -> Tensor:
    """The rows themselves, the products of any two entries, and whether each is below each quantile."""
    rows = rows.double()
    pairs = [(rows[:, i:] - center[i:]) * (rows[:, i, None] - center[i]) for i in range(rows.shape[1])]
    return torch.cat([rows, *pairs, *((rows < quantile).double() for quantile in quantiles)], 1)


# The draws of a target are the same tensor for all of its tests.
@functools.lru_cache(maxsize=4)
def law_of(draws: Tensor) -> Law:
    center, levels = draws.double().mean(0), torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]).double()
    quantiles = draws.double().quantile(levels, 0)
    seen = features(draws, center, quantiles)
    return Law(center, quantiles, seen.mean(0), seen.var(0))


def assert_same_law(z: Tensor, draws: Tensor) -> None:
    """Holds independent rows against exact draws: means, covariances and quantiles, within K standard errors."""
    assert z.isfinite().all()
    law = law_of(draws)
    error = (law.variance * (1 / len(z) + 1 / len(draws))).sqrt()
    assert ((features(z, law.center, law.quantiles).mean(0) - law.mean).abs() <= K * error).all()


@dataclass(frozen=True)
class Case:
    """A kernel for each of the targets, by its dimension, with steps that accept neither nearly all nor nearly none."""

    build: callable
    num_steps: int

    def kernel(self, name: str) -> samplers.Kernel:
        return self.build(TARGETS[name].dim)


def masses(dim: int) -> Tensor:
    return torch.linspace(0.4, 2.0, dim)


CASES = {
    "mala": Case(lambda dim: samplers.MALA(0.3), 30),
    "mala, mass": Case(lambda dim: samplers.MALA(0.3, masses(dim)), 30),
    "hmc": Case(lambda dim: samplers.HMC(0.55, 4), 15),
    "hmc, mass": Case(lambda dim: samplers.HMC(0.45, 4, masses(dim)), 15),
    "rwm": Case(lambda dim: samplers.RandomWalkMetropolis(0.5 if dim > 2 else 1.0), 50),
    "imh": Case(lambda dim: samplers.IndependentMetropolis(Normal(dim, 1.5)), 50),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


# Invariance


@EVERY_CASE
@EVERY_TARGET
def test_an_exact_kernel_leaves_its_target_alone(case, name):
    z0 = starts(name)
    chain = samplers.run(case.kernel(name), TARGETS[name], z0, case.num_steps, generator=rng(1))
    assert_same_law(chain.z, exact(name))
    assert (chain.z != z0).any(1).double().mean() > 0.5  # or there would be nothing to see


@pytest.mark.parametrize("name", ["gaussian", "mixture", "banana"])
@pytest.mark.parametrize("case", [CASES[key] for key in ("mala, mass", "hmc", "rwm")], ids=["mala", "hmc", "rwm"])
def test_an_exact_kernel_reaches_its_target_from_elsewhere(case, name):
    """From one point. Ten times the steps over which it was checked that the target is left alone."""
    z0 = torch.zeros(4_000, TARGETS[name].dim)
    steps = 10 * case.num_steps
    chain = samplers.run(case.kernel(name), TARGETS[name], z0, steps, generator=rng(2))
    assert_same_law(chain.z, exact(name))


# Detailed balance


def asymmetry(kernel: samplers.Kernel, name: str, n: int) -> Tensor:
    """How far one step from the target's law is from detailed balance, in standard errors of each statistic.

    Where pi(dz) P(z, dz') is symmetric, so is the joint law of a start and its successor, and f(z) g(z') - g(z) f(z')
    has mean zero for any f and g. With f = 1 it is invariance.
    """
    z0, draws = starts(name, n, seed=13).double(), exact(name).double()
    z1 = samplers.run(kernel, TARGETS[name], z0, 1, generator=rng(3)).z.double()
    z0, median = z0.float().double(), draws.median(0).values

    def features(z):
        z = z[:, :3]
        columns = [torch.ones(len(z), 1), z, (z - median[:3]).square(), (z < median[:3]).double(), z.sin()]
        return torch.cat(columns, 1)

    before, after = features(z0), features(z1)
    found = []
    for i in range(before.shape[1]):
        for j in range(i):
            statistic = before[:, i] * after[:, j] - before[:, j] * after[:, i]
            found.append(statistic.mean() / (statistic.std() / math.sqrt(n)).clamp_min(1e-12))
    return torch.stack(found)


@EVERY_CASE
@EVERY_TARGET
def test_a_metropolis_kernel_is_in_detailed_balance(case, name):
    assert asymmetry(case.kernel(name), name, 40_000).abs().max() <= K


MODULES = {"mala": langevin, "mala, mass": langevin, "hmc": hamiltonian, "hmc, mass": hamiltonian}


def always(log_ratio, finite, uniform):
    decided = metropolis.Decision(torch.ones_like(log_ratio), -log_ratio, ~finite)
    return torch.ones_like(finite), decided


def by_half_the_ratio(log_ratio, finite, uniform):
    return metropolis_accept(log_ratio / 2, finite, uniform)


metropolis_accept = metropolis.accept


@pytest.mark.parametrize("broken", [always, by_half_the_ratio])
@pytest.mark.parametrize("key", CASES)
def test_the_checks_see_a_kernel_that_accepts_wrongly(key, broken, monkeypatch):
    case = CASES[key]
    monkeypatch.setattr(MODULES.get(key, metropolis), "accept", broken)
    if broken is always:  # at half the ratio one step of HMC is wrong by too little to be seen so soon
        assert asymmetry(case.kernel("banana"), "banana", 40_000).abs().max() > K
    chain = samplers.run(case.kernel("banana"), TARGETS["banana"], starts("banana"), case.num_steps, generator=rng(1))
    with pytest.raises(AssertionError):
        assert_same_law(chain.z, exact("banana"))


@pytest.mark.parametrize("key", ["mala, mass", "hmc, mass"])
def test_the_checks_see_a_proposal_that_does_not_fit_its_ratio(key, monkeypatch):
    """Noise of another scale than the one that the ratio is computed with."""
    module, honest = MODULES[key], MODULES[key].normal
    monkeypatch.setattr(module, "normal", lambda *arguments, **keywords: 1.1 * honest(*arguments, **keywords))
    assert asymmetry(CASES[key].kernel("gaussian"), "gaussian", 40_000).abs().max() > K


# Masses


@pytest.mark.parametrize("kernel", [samplers.MALA(0.2), samplers.HMC(0.4, 3)], ids=["mala", "hmc"])
def test_a_mass_is_another_unit_of_length(kernel):
    """With inverse mass m on U(z) as without on U(sqrt(m) w): the same chain, z = sqrt(m) w."""
    target, mass = TARGETS["gaussian"], masses(10)
    scale, z0 = mass.sqrt(), starts("gaussian", 200)
    heavy = samplers.run(replace(kernel, inverse_mass=mass), target, z0, 10, generator=rng(1))
    scaled = samplers.run(kernel, lambda w: target(w * scale), z0 / scale, 10, generator=rng(1))
    same = (heavy.infos.accepted == scaled.infos.accepted).all(0)
    assert same.double().mean() > 0.99  # a decision may fall the other way by a rounding
    torch.testing.assert_close(heavy.z[same], (scaled.z * scale)[same], rtol=1e-3, atol=1e-3)
    unit = samplers.run(replace(kernel, inverse_mass=torch.ones(10)), target, z0, 10, generator=rng(1))
    torch.testing.assert_close(unit.z, samplers.run(kernel, target, z0, 10, generator=rng(1)).z)


# Warm-up


WARMED = {
    "mala": samplers.MALA(1e-3),
    "hmc": samplers.HMC(2.0, 5),
    "rwm": samplers.RandomWalkMetropolis(1e-2),
}
EVERY_WARMED = pytest.mark.parametrize("kernel", WARMED.values(), ids=WARMED.keys())


@EVERY_WARMED
@EVERY_TARGET
def test_a_warmed_up_kernel_is_exact_and_accepts_as_often_as_asked(kernel, name):
    target = TARGETS[name]
    warm = samplers.warm_up(kernel, target, 2 * torch.randn(200, target.dim, generator=rng(4)), 300, generator=rng(5))
    assert type(warm.kernel) is type(kernel)
    chain = samplers.run(warm.kernel, target, starts(name), 20, generator=rng(6))
    assert_same_law(chain.z, exact(name))
    # Dual averaging ends with 50 steps; their average gets so near.
    assert float(chain.infos.acceptance_probability.mean()) == pytest.approx(kernel.target_acceptance, abs=0.12)
    assert warm.history.step_size.shape == warm.history.acceptance.shape == warm.history.potential.shape == (300,)


@EVERY_WARMED
def test_a_chain_goes_on_from_its_warm_up(kernel):
    target = TARGETS["gaussian"]
    warm = samplers.warm_up(kernel, target, torch.full((4_000, 10), 2.0), 400, generator=rng(1))
    chain = samplers.run(warm.kernel, target, None, 100, generator=rng(2), state=warm.state)
    assert int(chain.state.step) == 500
    assert_same_law(chain.z, exact("gaussian"))


@pytest.mark.parametrize("kernel", [samplers.MALA(1e-3), samplers.HMC(1e-2, 5)], ids=["mala", "hmc"])
def test_a_warm_up_finds_the_variances_of_a_badly_scaled_target(kernel):
    scale, chains = torch.logspace(-1, 1, 8), 400
    target = lambda z: (z / scale).square().sum(1) / 2  # noqa: E731
    warm = samplers.warm_up(kernel, target, torch.zeros(chains, 8), 1000, generator=rng(1))
    found = torch.tensor(warm.kernel.inverse_mass)
    # The last window has 500 steps of each chain: as good as one independent draw of each at the very least.
    assert ((found / scale.square() - 1).abs() <= K * math.sqrt(2 / chains)).all()
    # In units of the target a step is then of order 1, while without masses it is held to the narrowest scale, 0.1.
    plain = samplers.warm_up(
        samplers.RandomWalkMetropolis(0.1), target, torch.zeros(chains, 8), 400, generator=rng(1)
    ).kernel.step_size
    assert warm.kernel.step_size > 0.3 and plain < 0.3


def test_a_warm_up_asks_for_what_it_is_given():
    target = TARGETS["gaussian"]
    rates = []
    for rate in (0.4, 0.9):
        warm = samplers.warm_up(samplers.MALA(0.1), target, starts("gaussian", 200), 300, rate, generator=rng(1))
        chain = samplers.run(warm.kernel, target, None, 50, generator=rng(2), state=warm.state)
        rates.append(float(chain.infos.acceptance_probability.mean()))
    assert rates == pytest.approx([0.4, 0.9], abs=0.12)


def test_a_warm_up_is_reproducible_and_short_ones_work():
    for steps in (1, 10, 25, 149, 151):
        a, b = (
            samplers.warm_up(samplers.HMC(0.1, 2), TARGETS["banana"], torch.zeros(8, 2), steps, generator=rng(1))
            for _ in range(2)
        )
        assert a.kernel == b.kernel and torch.equal(a.state.z, b.state.z)
        assert (a.kernel.inverse_mass is None) == (steps < 20)


# Tempering


def ladder_start(kernel: samplers.ParallelTempering, potential, levels: list[Tensor]) -> tempering.TemperingState:
    """The state of ladders with given positions on each level."""
    states = [kernel.init(z, potential) for z in levels]
    first = states[0]
    ladders = {
        name: torch.stack([getattr(state, name)[:, 0] for state in states], 1)
        for name in ("positions", "potentials", "log_priors", "potential_gradients", "prior_gradients")
    }
    return first._replace(**ladders)


def tempered_draws(name: str, prior: Normal, beta: float, n: int, seed: int) -> Tensor:
    """Exact draws of `eta^(1 - beta) exp(-beta U)`."""
    target, generator = TARGETS[name], rng(seed)
    if beta == 1:
        return target.sample(n, generator)
    if isinstance(target, Gaussian):
        precision = (1 - beta) / prior.scale**2 * torch.eye(10).double() + beta * target.precision
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        mean = torch.linalg.solve(precision, beta * target.precision @ target.mean)
        return (mean + torch.randn(n, 10, generator=generator, dtype=torch.float64) @ root.T).float()
    # By rejection from the prior. The energy has no minimum far out, where the prior's tail is lighter than the
    # target's: draws beyond 6 have less than 1e-4 of the prior's mass there, and are given up.
    axis = torch.linspace(-6, 6, 601)
    grid = torch.cartesian_prod(axis, axis)
    lowest = (target(grid) + prior.log_prob(grid)).min() - 0.05
    kept, count = [], 0
    while count < n:
        z = prior.scale * torch.randn(400_000, 2, generator=generator)
        chance = (-beta * (target(z) + prior.log_prob(z) - lowest)).exp()
        kept.append(z[torch.rand(len(z), generator=generator) < chance])
        count += len(kept[-1])
    return torch.cat(kept)[:n]


BETAS = (1.0, 0.5, 0.2, 0.0)
PRIORS = {"gaussian": Normal(10, 1.5), "mixture": Normal(2, 2.0), "banana": Normal(2, 1.5), "funnel": Normal(2, 1.5)}
INNER = {"mala": samplers.MALA(0.2), "hmc": samplers.HMC(0.4, 3), "rwm": samplers.RandomWalkMetropolis(0.6)}


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        *(("mala", name) for name in TARGETS),
        *((inner, name) for inner in ("hmc", "rwm") for name in ("mixture", "banana")),
    ],
)
def test_tempering_leaves_the_law_of_every_level_alone(inner, name):
    prior, n = PRIORS[name], 6_000
    kernel = samplers.ParallelTempering(INNER[inner], prior, BETAS)
    levels = [tempered_draws(name, prior, beta, n, seed) for seed, beta in enumerate(BETAS)]
    state = ladder_start(kernel, TARGETS[name], levels)
    chain = samplers.run(kernel, TARGETS[name], None, 12, generator=rng(1), state=state)
    assert torch.equal(chain.z, chain.state.positions[:, 0])
    for level, beta in enumerate(BETAS):
        assert_same_law(chain.state.positions[:, level], tempered_draws(name, prior, beta, 10 * n, 100 + level))
    assert chain.infos.swap_acceptance.nanmean() > 0.1


@pytest.mark.parametrize("broken", [always, by_half_the_ratio])
def test_the_checks_see_levels_that_exchange_wrongly(broken, monkeypatch):
    monkeypatch.setattr(tempering, "accept", broken)
    kernel = samplers.ParallelTempering(samplers.RandomWalkMetropolis(0.6), PRIORS["banana"], BETAS)
    levels = [tempered_draws("banana", PRIORS["banana"], beta, 6_000, seed) for seed, beta in enumerate(BETAS)]
    state = ladder_start(kernel, TARGETS["banana"], levels)
    chain = samplers.run(kernel, TARGETS["banana"], None, 12, generator=rng(1), state=state)
    with pytest.raises(AssertionError):
        assert_same_law(chain.z, exact("banana"))


@pytest.mark.parametrize("inner", INNER)
def test_a_ladder_remembers_what_it_would_compute(inner):
    target, prior = TARGETS["banana"], PRIORS["banana"]
    kernel = samplers.ParallelTempering(INNER[inner], prior, BETAS)
    state = samplers.run(kernel, target, starts("banana", 300), 25, generator=rng(1)).state
    flat = state.positions.flatten(0, 1)
    value, gradient = samplers.value_and_gradient(target, flat)
    torch.testing.assert_close(state.potentials.flatten(), value)
    torch.testing.assert_close(state.log_priors.flatten(), prior.log_prob(flat))
    torch.testing.assert_close(state.potential, state.potentials[:, 0])
    if inner == "rwm":
        assert state.potential_gradients.numel() == 0
    else:
        torch.testing.assert_close(state.potential_gradients.flatten(0, 1), gradient, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state.prior_gradients.flatten(0, 1), flat / prior.scale**2, rtol=1e-4, atol=1e-4)


def test_a_ladder_of_the_target_alone_moves_as_the_inner_kernel_does():
    """The coldest level, before anything is exchanged, is the inner kernel's chain of the same number."""
    target, z0 = TARGETS["banana"], starts("banana", 300)
    kernel = samplers.ParallelTempering(samplers.HMC(0.4, 3), PRIORS["banana"], (1.0, 0.0))
    plain, _ = kernel.kernel.step(kernel.kernel.init(z0, target), target, rng(1))
    state = kernel.init(z0, target)._replace(step=torch.ones((), dtype=torch.int64))  # odd: no pair has its turn
    tempered, info = kernel.step(state, target, rng(1))
    torch.testing.assert_close(tempered.z, plain.z)
    assert info.swap_acceptance.isnan().all()


def test_tempering_leaves_a_mode_that_langevin_steps_do_not():
    """Two modes 16 standard deviations apart, all chains in the lighter one."""
    center, weight, prior = torch.tensor([2.4, 0.0]), 0.25, Normal(2, 1.5)

    def potential(z):
        a, b = ((z - c).square().sum(1) / (2 * 0.3**2) for c in (center, -center))
        return -torch.logaddexp(math.log(weight) - a, math.log(1 - weight) - b)

    z0, n = center.repeat(2_000, 1), 2_000
    mala = samplers.MALA(0.09)
    stuck = samplers.run(mala, potential, z0, 400, generator=rng(1)).z
    assert (stuck[:, 0] > 0).all()
    kernel = samplers.ParallelTempering(mala, prior, (1.0, 0.4, 0.15, 0.05, 0.0))
    # Measured, the share exceeds the weight by 0.75 at the start and by 0.03 after 300 steps: by 1e-5 after 1000.
    z = samplers.run(kernel, potential, z0, 1000, generator=rng(1)).z
    share = float((z[:, 0] > 0).double().mean())
    assert abs(share - weight) <= K * math.sqrt(weight * (1 - weight) / n)
    for side, sign in ((z[:, 0] > 0, 1), (z[:, 0] < 0, -1)):
        rows = z[side].double() - sign * center
        assert (rows.mean(0).abs() <= K * 0.3 / math.sqrt(len(rows))).all()
        assert ((rows.var(0) / 0.09 - 1).abs() <= K * math.sqrt(2 / len(rows))).all()


# What is refused


PLAIN = samplers.MALA(0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: samplers.ParallelTempering(PLAIN, Normal(2, 1.0), (1.0,)), "two"),
        (lambda: samplers.ParallelTempering(PLAIN, Normal(2, 1.0), (0.9, 0.1)), "fall from 1"),
        (lambda: samplers.ParallelTempering(PLAIN, Normal(2, 1.0), (1.0, 0.3, 0.3)), "fall"),
        (lambda: samplers.ParallelTempering(PLAIN, Normal(2, 1.0), (1.0, -0.1)), "at or above 0"),
        (lambda: samplers.ParallelTempering(PLAIN, Normal(2, 1.0), (1.0, math.nan)), "fall"),
        (lambda: samplers.ParallelTempering(PLAIN, Normal(2, 1.0), 0.5), "ladder"),
        (lambda: samplers.ParallelTempering(PLAIN, 3, (1.0, 0.0)), "from_noise"),
        (lambda: samplers.ParallelTempering(samplers.UnadjustedLangevin(0.1), Normal(2, 1.0)), "UnadjustedLangevin"),
        (lambda: samplers.make("tempering", step_size=0.1), "needs prior"),
        (lambda: samplers.make("tempering", prior=Normal(2, 1.0)), "needs step_size"),
        (lambda: samplers.make("tempering", kernel="nuts", prior=Normal(2, 1.0)), "choose one of"),
        (lambda: warm(samplers.UnadjustedLangevin(0.1)), "target_acceptance"),
        (lambda: warm(samplers.UnadjustedLangevin(0.1), target_acceptance=0.5), "accepts everything"),
        (lambda: warm(samplers.IndependentMetropolis(Normal(2, 1.0))), "step_size"),
        (lambda: warm(PLAIN, target_acceptance=1.0), "between 0 and 1"),
        (lambda: warm(PLAIN, target_acceptance=math.nan), "between 0 and 1"),
        (lambda: warm(PLAIN, num_steps=0), "num_steps"),
        (lambda: warm(PLAIN, z0=torch.full((2, 2), math.nan)), "2 of 2"),
        (lambda: samplers.load_state_dict({"z": torch.zeros(2)}), "state_dict"),
        (lambda: samplers.load_state_dict({}), "nothing"),
    ],
)
def test_misuse_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def warm(kernel, z0=None, num_steps=5, **settings):
    z0 = torch.zeros(2, 2) if z0 is None else z0
    return samplers.warm_up(kernel, TARGETS["banana"], z0, num_steps, **settings)
