"""Objectives: the bounds that the mathematics promises, the base's gradient, the joined batch of several processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gebm import GEBM, KALE, GradientPenalty, Hinge, NonSaturating, StandardNormal, Wasserstein, networks, objectives
from gebm.training import BaseLoss, EnergyLoss

FENCHEL, DONSKER_VARADHAN = KALE("fenchel"), KALE("donsker_varadhan")
energies = st.lists(st.floats(-10, 20), min_size=1, max_size=30).map(lambda values: torch.tensor(values).double())


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    means=st.tuples(*[st.floats(-0.5, 0.5)] * 2),
    scales=st.tuples(*[st.floats(0.5, 1.1)] * 2),
    constant=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
)
def test_kale_of_gaussians_with_the_optimal_energy_is_their_divergence(means, scales, constant, seed):
    # P = N(m, diag s^2), B = N(0, I). E = log b - log p + k gives Q = P and A = log E_B[p / b exp(-k)] = -k.
    n = 50_000
    mean, scale = torch.tensor(means).double(), torch.tensor(scales).double()
    p = torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)
    b = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), torch.ones(2).double()), 1)
    divergence = 0.5 * (scale.square() + mean.square() - 1 - 2 * scale.log()).sum()

    generator = torch.Generator().manual_seed(seed)
    x_data = mean + scale * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x_base = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    energy_data, energy_base = (b.log_prob(x) - p.log_prob(x) + constant for x in (x_data, x_base))
    log_partition = torch.tensor(-constant).double()

    # Both means are of independent terms; scales up to 1.1 leave p / b a finite fourth moment under B.
    ratio = (-(energy_base + log_partition)).exp()
    error = ((energy_data.var() + ratio.var()) / n).sqrt() + 1e-9
    for objective in (FENCHEL, DONSKER_VARADHAN):
        bound = -objective.energy_loss(energy_data, energy_base, log_partition)
        assert abs(bound - divergence) <= 5 * error


@settings(deadline=None, derandomize=True)
@given(energy_data=energies, energy_base=energies, log_partition=st.floats(-10, 10))
def test_fenchel_is_at_most_donsker_varadhan_and_equal_at_the_log_partition(energy_data, energy_base, log_partition):
    # On one and the same batch this is log x <= x - 1: exact, whatever the energies.
    supremum = -DONSKER_VARADHAN.energy_loss(energy_data, energy_base, None)
    rounding = 1e-9 * (1 + energy_data.abs().max() + (-(energy_base + log_partition)).exp().mean())
    assert -FENCHEL.energy_loss(energy_data, energy_base, torch.tensor(log_partition)) <= supremum + rounding
    exact = objectives.log_mean_exp(-energy_base)
    torch.testing.assert_close(-FENCHEL.energy_loss(energy_data, energy_base, exact), supremum)


@settings(deadline=None, derandomize=True)
@given(energy_data=energies, energy_base=energies, shift=st.floats(-5, 5))
def test_a_constant_in_the_energy_moves_the_log_partition_and_nothing_else(energy_data, energy_base, shift):
    c = torch.tensor(0.3).double()
    for objective in (FENCHEL, DONSKER_VARADHAN):
        torch.testing.assert_close(
            objective.energy_loss(energy_data + shift, energy_base + shift, c - shift),
            objective.energy_loss(energy_data, energy_base, c),
        )


def test_no_objective_overflows_at_the_energy_floor_or_far_above():
    low, high = torch.full((8,), -10.0), torch.full((8,), 1e4)
    for name in objectives.NAMES:
        objective = objectives.make(name)
        for energy_data, energy_base in ((low, high), (high, low)):
            assert objective.energy_loss(energy_data, energy_base, torch.tensor(0.0)).isfinite()
            assert objective.base_loss(energy_base).isfinite()


@pytest.mark.parametrize("form", ["fenchel", "donsker_varadhan"])
def test_base_gradient_is_the_weighted_one(form):
    # grad_theta KALE = sum_i w_i grad_x E(x_i) . grad_theta B(z_i), w_i proportional to exp(-E(x_i)).
    torch.manual_seed(0)
    base, energy = (network.double() for network in networks.make("mlp", resolution=0, channels=3, latent_dim=2))
    model = GEBM(base, energy, StandardNormal(2))
    z = torch.randn(64, 2, dtype=torch.float64)
    BaseLoss(model, KALE(form))(z).backward()

    energy.eval()
    x = model.base(z)
    leaf = x.detach().requires_grad_(True)
    energy_x = model.energy(leaf)
    (slope,) = torch.autograd.grad(energy_x.sum(), leaf)
    weights = (-energy_x.detach()).softmax(0)
    expected = torch.autograd.grad((weights[:, None] * slope * x).sum(), list(base.parameters()))
    for parameter, gradient in zip(base.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@settings(deadline=None, derandomize=True)
@given(energy_data=energies, energy_base=energies)
def test_gan_losses_are_the_published_ones_with_minus_the_logit(energy_data, energy_base):
    logit_data, logit_base = -energy_data, -energy_base
    bce = nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like, torch.zeros_like
    expected = bce(logit_data, ones(logit_data)) + bce(logit_base, zeros(logit_base))
    torch.testing.assert_close(NonSaturating().energy_loss(energy_data, energy_base, None), expected)
    torch.testing.assert_close(NonSaturating().base_loss(energy_base), bce(logit_base, ones(logit_base)))
    expected = (1 - logit_data).clamp(min=0).mean() + (1 + logit_base).clamp(min=0).mean()
    torch.testing.assert_close(Hinge().energy_loss(energy_data, energy_base, None), expected)
    torch.testing.assert_close(Hinge().base_loss(energy_base), -logit_base.mean())
    expected = logit_base.mean() - logit_data.mean()
    torch.testing.assert_close(Wasserstein().energy_loss(energy_data, energy_base, None), expected)
    torch.testing.assert_close(Wasserstein().base_loss(energy_base), -logit_base.mean())


def test_unknown_names_say_what_there_is():
    with pytest.raises(ValueError, match="choose one of kale_fenchel, kale_dv, gan, hinge, wasserstein"):
        objectives.make("kl")
    with pytest.raises(ValueError, match="choose 'fenchel' or 'donsker_varadhan'"):
        KALE("legendre")


@settings(deadline=None, max_examples=30, derandomize=True)
@given(slope=st.floats(-5, 5), weight=st.floats(0, 10), n=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_penalty_is_the_mean_squared_gradient_on_the_segments(slope, weight, n, seed):
    # E(x) = slope |x|^2 / 2 has gradient slope x; x is the point on the segment itself.
    generator = torch.Generator().manual_seed(seed)
    penalty = GradientPenalty(weight)
    x_data, x_base = torch.randn(2, n, 3, 2, 2, generator=generator)
    t = penalty.draw(n, generator)
    assert t.shape == (n,) and t.min() >= 0 and t.max() < 1
    x = t.view(n, 1, 1, 1) * x_data + (1 - t.view(n, 1, 1, 1)) * x_base
    expected = weight * slope**2 * x.square().flatten(1).sum(1).mean()
    actual = penalty(lambda x: slope * x.square().flatten(1).sum(1) / 2, x_data, x_base, t)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-5)


def test_penalty_of_zero_does_not_look_at_the_energy():
    def explode(x):
        raise AssertionError

    x = torch.zeros(3, 2)
    assert GradientPenalty(0.0)(explode, x, x, torch.zeros(3)) == 0
    with pytest.raises(ValueError, match="zero or more"):
        GradientPenalty(-1.0)


CASES = list(objectives.NAMES)
WORLD_SIZE = 2


def losses(name: str) -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...], torch.Tensor]:
    """Both loss modules and a joined batch, the same wherever it is called."""
    torch.manual_seed(0)
    base, energy = (network.double() for network in networks.make("mlp", resolution=0, channels=3, latent_dim=2))
    model = GEBM(base, energy, StandardNormal(2)).double()
    with torch.no_grad():
        model.log_partition.fill_(0.2)
    objective = objectives.make(name)
    x_data, x_base = 3 * torch.randn(2, 16, 3, dtype=torch.float64)
    batch = (x_data + 1, x_base, torch.rand(16, dtype=torch.float64))
    return EnergyLoss(model, objective, GradientPenalty(0.7)), BaseLoss(model, objective), batch, torch.randn(16, 2)


def gradients(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def run_one_process(rank: int, rendezvous: str, results: dict[str, torch.Tensor]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    for name in CASES:
        energy_loss, base_loss, batch, z = losses(name)
        energy_loss, base_loss = DistributedDataParallel(energy_loss), DistributedDataParallel(base_loss)
        energy_loss(*(part.chunk(WORLD_SIZE)[rank] for part in batch)).loss.backward()
        results[f"{name} energy"][rank] = gradients(energy_loss)
        base_loss(z.double().chunk(WORLD_SIZE)[rank]).backward()
        results[f"{name} base"][rank] = gradients(base_loss)
    distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_the_joined_batch(tmp_path):
    expected = {}
    for name in CASES:
        energy_loss, base_loss, batch, z = losses(name)
        energy_loss(*batch).loss.backward()
        base_loss(z.double()).backward()
        expected |= {f"{name} energy": gradients(energy_loss), f"{name} base": gradients(base_loss)}
    results = {key: torch.full((WORLD_SIZE, len(g)), math.nan).double().share_memory_() for key, g in expected.items()}
    torch.multiprocessing.spawn(run_one_process, (str(tmp_path / "rendezvous"), results), nprocs=WORLD_SIZE)
    for key, gradient in expected.items():
        assert gradient.norm() > 1e-6, key
        for rank in range(WORLD_SIZE):
            torch.testing.assert_close(results[key][rank], gradient, msg=lambda text, key=key: f"{key}: {text}")
