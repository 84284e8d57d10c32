"""Chains are independent: each has noise and divergences of its own, whatever runs in parallel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gebm import GEBM, StandardNormal, networks, samplers
from gebm.samplers import philox

K = 5.0  # standard errors in every bound: about 1e-6 a comparison

KEYS = st.integers(-(2**63), 2**63 - 1)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rugged(z):
    """A potential without a matrix product in it: rows are computed alike in batches of any size."""
    return (z.square() / 2 + (3 * z).cos() / 2).sum(1) + z[:, 0] * z[:, 1] / 4


def same(a, b) -> bool:
    """Bit for bit the same, where "not a number" is the same as itself."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def every_kernel() -> dict[str, samplers.Kernel]:
    schedule = samplers.StepDecay(factor=0.5, every=3)
    common = {"schedule": schedule, "prior": StandardNormal(3), "friction": 2.0, "num_leapfrog_steps": 3}
    kernels = {name: samplers.make(name, step_size=0.2, **common) for name in samplers.NAMES}
    kernels["kla, normal"] = samplers.KineticLangevin(0.2, 2.0, schedule, initial_velocity="normal")
    kernels["hmc, mass"] = samplers.HMC(0.2, 3, inverse_mass=(1.0, 0.5, 2.0))
    kernels["mala, mass"] = samplers.MALA(0.2, inverse_mass=(1.0, 0.5, 2.0))
    return kernels


KERNELS = pytest.mark.parametrize("kernel", every_kernel().values(), ids=every_kernel().keys())


# Philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter, key, words):
    """The known-answer vectors of Random123, the authors' own library."""
    counter, key, words = ([int(word, 16) for word in row.split()] for row in (counter, key, words))
    key = key[0] | key[1] << 32
    key = torch.tensor(key - 2**64 if key >= 2**63 else key)  # the same 64 bits, signed
    assert philox.philox(torch.tensor(counter), key).tolist() == words
    many = philox.philox(torch.tensor(counter).view(4, 1, 1).expand(4, 5, 3), key)
    assert (many == torch.tensor(words).view(4, 1, 1)).all()


def test_philox_agrees_with_whole_number_arithmetic():
    def by_hand(counter, key):
        k = [key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF]
        for _ in range(10):
            a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
            counter = [b >> 32 ^ counter[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ counter[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return counter

    for key in torch.empty(50, dtype=torch.int64).random_(-(2**63), None, generator=rng(0)):
        counter = torch.randint(0, 2**32, (4,), generator=rng(abs(int(key))))
        assert philox.philox(counter, key).tolist() == by_hand(counter.tolist(), int(key))


@given(key=KEYS, first=st.integers(0, 2**32 - 100), n=st.integers(1, 40), dim=st.integers(1, 21), data=st.data())
def test_noise_is_a_function_of_key_chain_and_coordinate(key, first, n, dim, data):
    key, chain = torch.tensor(key), torch.arange(first, first + n)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
    columns = data.draw(st.integers(1, dim))
    z, u = philox.normal(key, chain, dim), philox.uniform(key, chain)
    assert z.shape == (n, dim) and z.is_contiguous() and z.dtype == torch.float32
    assert torch.equal(philox.normal(key, chain[rows], columns), z[rows, :columns])
    assert torch.equal(philox.uniform(key, chain[rows]), u[rows])
    assert ((u >= 0) & (u < 1)).all() and z.isfinite().all()


def test_normal_noise_has_the_normal_law():
    n, dim = 40_000, 7
    z = philox.normal(philox.draw_key(rng(1), "cpu"), torch.arange(n), dim).double()
    count = n * dim
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float(z.pow(power).mean()) - moment) <= K * math.sqrt(variance / count), power
    for quantile in (-3.5, -2.0, -1.0, -0.1, 0.0, 0.5, 1.5, 3.0, 4.0):
        p = 0.5 * math.erfc(-quantile / math.sqrt(2))
        assert abs(float((z < quantile).double().mean()) - p) <= K * math.sqrt(p * (1 - p) / count), quantile


def test_uniform_noise_has_the_uniform_law():
    n = 200_000
    u = philox.uniform(philox.draw_key(rng(1), "cpu"), torch.arange(n)).double()
    counts = torch.histc(u, 50, 0, 1)
    assert (counts - n / 50).square().sum() * 50 / n <= 49 + K * math.sqrt(2 * 49)  # chi-square of 49 degrees
    assert abs(float(u.mean()) - 0.5) <= K * math.sqrt(1 / 12 / n)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x.square() - 1, lambda x: (x > 1).double() - 0.158655])
def test_noise_is_independent_over_chains_coordinates_steps_and_streams(function):
    """Correlations of what would be correlated if a word of the counter or of the key were not well mixed in."""
    n, dim, generator = 10_000, 6, rng(3)
    chain = torch.arange(n)
    keys = [philox.draw_key(generator, "cpu"), philox.draw_key(generator, "cpu"), torch.tensor(0), torch.tensor(1)]
    draws = [philox.normal(key, chain, dim, stream) for key in keys for stream in (philox.PROPOSAL, philox.VELOCITY)]
    draws += [philox.normal(keys[0], chain + shift, dim) for shift in (1, 2, n, 2**31, 2**32)]
    # The radius of a pair of normals by itself: a uniform number of another stream must know nothing of it.
    uniforms = torch.stack([philox.uniform(key, chain) for key in keys], 1)
    z = torch.cat([*draws, torch.special.ndtri(uniforms.double().clamp(1e-6, 1 - 1e-6))], 1)
    columns = function(z.double())
    correlations = columns.T.corrcoef() - torch.eye(columns.shape[1])
    assert correlations.abs().max() <= K * math.sqrt(1 / n)


def test_a_key_is_any_of_64_bits_and_one_number_of_the_generator():
    generator = rng(0)
    keys = torch.stack([philox.draw_key(generator, "cpu") for _ in range(2_000)])
    bits = (keys[:, None] >> torch.arange(64)) & 1
    assert ((bits.double().mean(0) - 0.5).abs() <= K * math.sqrt(0.25 / 2_000)).all()
    assert len(keys.unique()) == 2_000


# Kernels


@KERNELS
@pytest.mark.parametrize("prior", [None, StandardNormal(3)], ids=["", "restarting"])
def test_a_chain_does_not_depend_on_the_chains_beside_it_nor_on_the_batch(kernel, prior):
    z0, first = StandardNormal(3).sample(11, rng(0)), 5
    settings = {"num_steps": 8, "prior": prior}
    whole = samplers.run(kernel, rugged, z0, generator=rng(1), first_chain=first, **settings)
    for size in (1, 4, 10):
        parts = [
            samplers.run(kernel, rugged, part, generator=rng(1), first_chain=first + size * index, **settings)
            for index, part in enumerate(z0.split(size))
        ]
        assert torch.equal(torch.cat([part.z for part in parts]), whole.z)
        for name, entry in whole.infos._asdict().items():
            assert same(torch.cat([getattr(part.infos, name) for part in parts], 1), entry), name
    assert whole.state.chain.tolist() == list(range(first, first + 11))


@KERNELS
def test_chains_of_other_numbers_go_other_ways(kernel):
    z0 = torch.zeros(2, 3) + 0.3
    z = samplers.run(kernel, rugged, z0, 20, generator=rng(1)).z
    other = samplers.run(kernel, rugged, z0, 20, generator=rng(1), first_chain=2).z
    if not isinstance(kernel, samplers.GradientDescent | samplers.DiscriminatorOptimalTransport):
        assert len(torch.cat([z, other]).unique(dim=0)) == 4


@KERNELS
def test_a_step_takes_one_number_of_the_generator_however_many_chains_there_are(kernel):
    if isinstance(kernel, samplers.GradientDescent | samplers.DiscriminatorOptimalTransport):
        return
    for prior, keys in ((None, 6), (StandardNormal(3), 12)):
        generator, expected = rng(1), rng(1)
        samplers.run(kernel, rugged, torch.zeros(5, 3), 6, generator=generator, prior=prior)
        # Tempering takes a key for its exchanges in addition to the one of the inner kernel.
        for _ in range(keys + 6 * isinstance(kernel, samplers.ParallelTempering)):
            philox.draw_key(expected, "cpu")
        assert torch.equal(generator.get_state(), expected.get_state())


class Flat(nn.Module):
    """An energy that is the same in a batch of any size, without a matrix product."""

    def forward(self, x):
        return x.sin().sum(1)


@pytest.mark.parametrize("name", list(samplers.NAMES))
def test_a_sample_of_the_model_is_the_same_for_any_number_of_samples_and_batches(name):
    model = GEBM(nn.Identity(), Flat(), StandardNormal(3))
    kernel = samplers.make(name, step_size=0.1, friction=1.0, prior=model.prior)
    whole = model.sample(9, kernel, 5, generator=rng(1))
    for n, batch_size in ((9, 4), (9, 1), (6, None), (5, 2), (1, None)):
        assert torch.equal(model.sample(n, kernel, 5, generator=rng(1), batch_size=batch_size), whole[:n])
    assert len(whole.unique(dim=0)) == 9
    assert not torch.equal(model.sample(9, kernel, 5, generator=rng(2)), whole)


def test_a_sample_of_networks_is_the_same_for_any_batch_but_for_rounding():
    torch.manual_seed(0)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=4)
    model = GEBM(base, energy, StandardNormal(4))
    kernel = samplers.make("kla", step_size=0.1, friction=1.0)
    whole = model.sample(9, kernel, 5, generator=rng(1))
    for n, batch_size in ((9, 4), (4, 1)):
        parts = model.sample(n, kernel, 5, generator=rng(1), batch_size=batch_size)
        torch.testing.assert_close(parts, whole[:n], rtol=1e-3, atol=1e-3)


def test_sampling_moves_its_generator_on_alike_for_any_number_of_samples():
    model, states = GEBM(nn.Identity(), Flat(), StandardNormal(3)), []
    for n, batch_size in ((9, 4), (2, None)):
        generator = rng(1)
        model.sample(n, samplers.make("ula", step_size=0.1), 3, generator=generator, batch_size=batch_size)
        states.append(generator.get_state())
    assert torch.equal(*states)


# Divergences


def cliff(z):
    """Half a normal's potential, and not a number beyond: chains fall off all the time."""
    return torch.where(z[:, 0] > 1.0, math.nan, 1.0) * z.square().sum(1) / 2


UNADJUSTED = pytest.mark.parametrize(
    "kernel",
    [samplers.UnadjustedLangevin(0.1), samplers.KineticLangevin(0.3, 1.0, initial_velocity="normal")],
    ids=["ula", "kla"],
)
METROPOLIS = pytest.mark.parametrize(
    "kernel",
    [
        samplers.MALA(0.3),
        samplers.HMC(0.4, 3),
        samplers.RandomWalkMetropolis(0.7),
        samplers.IndependentMetropolis(StandardNormal(3)),
    ],
    ids=["mala", "hmc", "rwm", "imh"],
)


def below_the_cliff(n: int, seed: int = 0) -> torch.Tensor:
    z0 = StandardNormal(3).sample(n, rng(seed))
    z0[:, 0] = -z0[:, 0].abs()
    return z0


@UNADJUSTED
def test_a_diverged_chain_is_counted_and_restarted_from_the_prior(kernel):
    seen = []
    chain = samplers.run(
        kernel, cliff, below_the_cliff(200), 60, generator=rng(1), prior=StandardNormal(3), every=1,
        callback=lambda step, state: seen.append(state.z),
    )  # fmt: skip
    assert torch.stack(seen).isfinite().all()
    assert torch.equal(chain.divergences, chain.infos.diverged.sum(0))
    assert 100 < int(chain.divergences.sum()) < 200 * 60
    assert torch.equal(chain.infos.potential.isnan(), chain.infos.diverged)


@UNADJUSTED
def test_without_a_prior_a_diverged_chain_stays_as_it_is_and_is_counted(kernel):
    chain = samplers.run(kernel, cliff, below_the_cliff(200), 60, generator=rng(1))
    lost = ~samplers.finite_chains(chain.state)
    assert int(lost.sum()) > 0
    assert torch.equal(chain.infos.diverged[-1], lost)
    assert torch.equal(chain.infos.diverged, chain.infos.diverged.cummax(0).values)  # once lost, always lost
    assert torch.equal(chain.divergences, chain.infos.diverged.sum(0))
    assert torch.equal(chain.infos.potential.isnan(), chain.infos.diverged)


@UNADJUSTED
def test_what_one_chain_suffers_the_others_do_not_notice(kernel):
    settings = {"num_steps": 40, "prior": StandardNormal(3)}
    z0 = below_the_cliff(30)
    whole = samplers.run(kernel, cliff, z0, generator=rng(1), **settings)
    assert (whole.divergences > 0).any() and (whole.divergences == 0).any()
    for index in range(30):
        alone = samplers.run(kernel, cliff, z0[index, None], generator=rng(1), first_chain=index, **settings)
        assert torch.equal(alone.z[0], whole.z[index])
        assert torch.equal(alone.divergences[0], whole.divergences[index])


def test_restarts_are_independent_draws_of_the_prior():
    n, kernel = 20_000, samplers.UnadjustedLangevin(0.1)
    state = kernel.init(torch.full((n, 3), math.nan), rugged)
    state = state._replace(z=state.z.index_fill(0, torch.tensor([7]), 0.5))
    lost = ~samplers.finite_chains(state._replace(potential=state.z[:, 0], gradient=state.z))
    fresh = samplers.runner.restart(kernel, StandardNormal(3), state, lost, philox.draw_key(rng(1), "cpu"))
    assert (fresh.z[7] == 0.5).all() and int(lost.sum()) == n - 1
    # Nothing is known of the potential there yet: a step from there has no drift, and a proposal is taken.
    assert (fresh.potential[lost] == math.inf).all() and (fresh.gradient[lost] == 0).all()
    z = fresh.z[lost].double()
    assert (z.mean(0).abs() <= K / math.sqrt(n)).all()
    assert ((z.T @ z / n - torch.eye(3)).abs() <= K * math.sqrt(2 / n)).all()
    lagged = (z[1:] * z[:-1]).mean(0)
    assert (lagged.abs() <= K / math.sqrt(n)).all()
    assert torch.equal(fresh.chain, state.chain)


@UNADJUSTED
@settings(max_examples=6, deadline=None)
@given(cut=st.integers(0, 20), seed=st.integers(0, 2**31))
def test_a_chain_that_diverges_is_resumed_bit_for_bit(kernel, cut, seed):
    common = {"prior": StandardNormal(3)}
    whole = samplers.run(kernel, cliff, below_the_cliff(20), 20, generator=rng(seed), **common)
    generator = rng(seed)
    first = samplers.run(kernel, cliff, below_the_cliff(20), cut, generator=generator, **common)
    second = samplers.run(kernel, cliff, None, 20 - cut, generator=generator, state=first.state, **common)
    # A restart may miss its footing too, and leave a potential that is not a number.
    assert all(same(one, other) for one, other in zip(whole.state, second.state, strict=True))
    assert torch.equal(first.divergences + second.divergences, whole.divergences)


@METROPOLIS
@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_a_proposal_that_is_not_finite_is_rejected_and_told_of(kernel, outside):
    def potential(z):
        return torch.where(z[:, 0] > 1.0, outside, z.square().sum(1) / 2)

    chain = samplers.run(kernel, potential, below_the_cliff(200), 60, generator=rng(1), prior=StandardNormal(3))
    infos = chain.infos
    assert infos.potential.isfinite().all() and (chain.z[:, 0] <= 1.0).all()
    assert infos.diverged.any() and not (infos.diverged & infos.accepted).any()
    assert (infos.energy_error[infos.diverged] == math.inf).all()
    assert (infos.acceptance_probability[infos.diverged] == 0).all()
    assert torch.equal(chain.divergences, infos.diverged.sum(0))


@METROPOLIS
def test_the_energy_error_is_minus_the_log_of_the_ratio(kernel):
    infos = samplers.run(kernel, rugged, below_the_cliff(50), 20, generator=rng(1)).infos
    torch.testing.assert_close(infos.acceptance_probability, (-infos.energy_error).exp().clamp(max=1))
    assert (infos.energy_error > 0).any() and (infos.energy_error < 0).any()


def test_the_energy_error_of_a_trajectory_is_of_third_order_in_the_step():
    # Of leapfrog's local error h^3 only h^2 is left at a fixed time; here one step is taken, and its error is h^3.
    z0 = below_the_cliff(2_000).double().float()
    errors = [
        float(samplers.run(samplers.HMC(h, 1), rugged, z0, 1, generator=rng(1)).infos.energy_error.abs().mean())
        for h in (0.1, 0.05)
    ]
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.15)


def test_a_start_that_is_not_finite_is_refused_in_one_clear_line():
    z0 = below_the_cliff(5)
    z0[3:, 0] = 2.0
    for kernel in every_kernel().values():
        with pytest.raises(ValueError, match="finite, but 2 of 5 do not") as caught:
            samplers.run(kernel, cliff, z0, 1)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="2 of 2 do not"):
        samplers.run(samplers.UnadjustedLangevin(0.1), cliff, z0[3:], 1, prior=StandardNormal(3))


@UNADJUSTED
def test_a_start_that_is_not_finite_is_restarted_where_there_is_a_prior(kernel):
    z0 = below_the_cliff(5)
    z0[3:, 0] = 2.0
    chain = samplers.run(kernel, cliff, z0, 40, generator=rng(1), prior=StandardNormal(3))
    assert (chain.divergences[3:] > 0).all() and chain.z.isfinite().all()


def test_a_metropolis_chain_that_starts_at_no_number_is_restarted_where_there_is_a_prior():
    z0 = below_the_cliff(5)
    z0[3:, 0] = 2.0
    chain = samplers.run(samplers.MALA(0.1), cliff, z0, 40, generator=rng(1), prior=StandardNormal(3))
    assert (chain.divergences[3:] > 0).all() and samplers.finite_chains(chain.state).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: samplers.run(samplers.MALA(0.1), rugged, torch.zeros(2, 3), 1, first_chain=-1), "first_chain"),
        (lambda: samplers.run(samplers.MALA(0.1), rugged, torch.zeros(2, 3), 1, prior=3), "from_noise"),
        (lambda: samplers.IndependentMetropolis(nn.Linear(2, 2)), "from_noise"),
        (lambda: samplers.MALA(0.1, inverse_mass=(1.0, -1.0)), "inverse_mass.*-1.0"),
        (lambda: samplers.MALA(0.1, inverse_mass=()), "inverse_mass"),
        (lambda: samplers.HMC(0.1, inverse_mass=2.0), "inverse_mass"),
        (lambda: samplers.HMC(0.1, inverse_mass=torch.eye(2)), "inverse_mass"),
        (lambda: samplers.HMC(0.1, inverse_mass=(math.nan, 1.0)), "inverse_mass.*nan"),
        (
            lambda: samplers.run(samplers.HMC(0.1, inverse_mass=(1.0, 1.0)), rugged, torch.zeros(2, 3), 1),
            "2 numbers.*3 latents",
        ),
        (lambda: StandardNormal(3).from_noise(torch.zeros(4, 2)), "3 dimensions"),
        (lambda: philox.philox(torch.zeros(3, 2, dtype=torch.int64), torch.tensor(0)), "four words"),
        (lambda: GEBM(nn.Identity(), Flat(), StandardNormal(3)).potential(torch.zeros(4, 3), -1.0), "beta.*-1.0"),
        (lambda: GEBM(nn.Identity(), Flat(), StandardNormal(3)).potential(torch.zeros(4, 3), math.nan), "beta.*nan"),
    ],
)
def test_misuse_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
