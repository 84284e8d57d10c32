"""Objectives: the bounds that the mathematics promises, the base's gradient, the joined batch of several processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gebm import (
    GEBM,
    KALE,
    GradientPenalty,
    Hinge,
    NonSaturating,
    StandardNormal,
    Wasserstein,
    networks,
    objectives,
    samplers,
)
from gebm.distributed import all_gather_rows
from gebm.objectives import ContrastiveDivergence, MaximumLikelihood
from gebm.objectives.losses import BaseLoss, EnergyLoss
from gebm.objectives.negatives import DataChain, LatentChain
from tests.helpers.processes import run_in_processes

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
@given(energy_data=energies, energy_base=energies, log_partition=st.floats(-10, 10))
def test_the_slope_of_kale_in_the_log_partition_is_one_minus_the_mean_ratio(energy_data, energy_base, log_partition):
    c = torch.tensor(log_partition, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(FENCHEL.energy_loss(energy_data, energy_base, c), c)
    torch.testing.assert_close(slope, 1 - (-(energy_base + log_partition)).exp().mean())


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
            if objective.trains_energy:
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


def test_maximum_likelihood_leaves_the_energy_to_another_objective():
    alone, paired = objectives.make("ml"), objectives.make("ml_kale")
    assert not alone.trains_energy and not alone.trains_log_partition
    assert paired.trains_energy and paired.trains_log_partition and paired.energy == FENCHEL
    assert not MaximumLikelihood(DONSKER_VARADHAN).trains_log_partition
    contrastive = MaximumLikelihood(ContrastiveDivergence())
    assert contrastive.negatives == ContrastiveDivergence().negatives
    numbers = torch.randn(3, 5).double()
    c = torch.tensor(0.2).double()
    assert paired.energy_loss(numbers[0], numbers[1], c) == FENCHEL.energy_loss(numbers[0], numbers[1], c)
    for objective in (alone, paired):
        assert objective.base_learns_from == "data"
        torch.testing.assert_close(objective.base_loss(numbers[2]), -numbers[2].mean())
    with pytest.raises(ValueError, match="trains no energy") as error:
        alone.energy_loss(numbers[0], numbers[1], c)
    assert "\n" not in str(error.value)


@settings(deadline=None, derandomize=True)
@given(energy_data=energies, energy_base=energies)
def test_contrastive_divergence_is_a_difference_and_its_base_learns_by_kale(energy_data, energy_base):
    objective = ContrastiveDivergence()
    expected = energy_data.mean() - energy_base.mean()
    torch.testing.assert_close(objective.energy_loss(energy_data, energy_base, None), expected)
    torch.testing.assert_close(objective.base_loss(energy_base), FENCHEL.base_loss(energy_base))


def test_names_of_contrastive_divergence_say_where_the_chains_run():
    kernel = samplers.MALA(0.3)
    for name, chain, persistent in (
        ("cd", LatentChain, False),
        ("pcd", LatentChain, True),
        ("cd_data", DataChain, False),
        ("pcd_data", DataChain, True),
    ):
        negatives = objectives.make(name, kernel=kernel, num_steps=7).negatives
        assert negatives == chain(kernel, num_steps=7, persistent=persistent)
        assert objectives.make(name).negatives.persistent == persistent
    assert objectives.make("hinge", kernel=kernel, num_steps=7) == Hinge()
    with pytest.raises(ValueError, match="chain of 0 steps"):
        objectives.make("cd", num_steps=0)


CASES = [name for name in objectives.NAMES if not name.startswith("ml")]
CASES += [f"{name} over realnvp" for name in objectives.NAMES]
WORLD_SIZE = 2
ROWS = torch.randn(2 * WORLD_SIZE, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def losses(name: str) -> tuple[nn.Module | None, nn.Module, tuple[torch.Tensor, ...], torch.Tensor]:
    """Both loss modules and a joined batch, the same wherever it is called.

    The second time over a flow, and with an energy relative to it.
    """
    name, _, networks_name = name.partition(" over ")
    torch.manual_seed(0)
    base, energy = networks.make(networks_name or "mlp", resolution=0, channels=3, latent_dim=3, width=8)
    if networks_name:
        with torch.no_grad():
            for parameter in [*base.parameters(), *energy.parameters()]:
                parameter += 0.1 * torch.randn_like(parameter)
    model = GEBM(base, energy, StandardNormal(3)).double()
    with torch.no_grad():
        model.log_partition.fill_(0.2)
    objective = objectives.make(name)
    x_data, x_base = 3 * torch.randn(2, 16, 3, dtype=torch.float64)
    batch = (x_data + 1, x_base, torch.rand(16, dtype=torch.float64))
    inputs = batch[0] if objective.base_learns_from == "data" else torch.randn(16, 3).double()
    energy_loss = EnergyLoss(model, objective, GradientPenalty(0.7)) if objective.trains_energy else None
    return energy_loss, BaseLoss(model, objective), batch, inputs


def gradients(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def of_all_rows(everything: torch.Tensor) -> torch.Tensor:
    """A value in which each row has a weight of its own, and each pair of rows a second derivative."""
    weights = torch.arange(1.0, everything.numel() + 1, dtype=torch.float64).view_as(everything)
    return (weights * everything).sin().sum() * everything.square().mean()


def twice_differentiated(value: torch.Tensor, rows: list[torch.Tensor]) -> torch.Tensor:
    """First derivatives, and those of the sum of their cubes, (parts, 2, n, 3)."""
    first = torch.autograd.grad(value, rows, create_graph=True)
    second = torch.autograd.grad(sum(gradient.pow(3).sum() for gradient in first), rows)
    return torch.stack([torch.stack(first).detach(), torch.stack(second)], 1)


def run_one_process(rank: int, rendezvous: str, results: dict[str, torch.Tensor]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    for name in CASES:
        energy_loss, base_loss, batch, inputs = losses(name)
        if energy_loss is not None:
            energy_loss = DistributedDataParallel(energy_loss)
            energy_loss(*(part.chunk(WORLD_SIZE)[rank] for part in batch)).loss.backward()
            results[f"{name} energy"][rank] = gradients(energy_loss)
        base_loss = DistributedDataParallel(base_loss)
        base_loss(inputs.chunk(WORLD_SIZE)[rank]).backward()
        results[f"{name} base"][rank] = gradients(base_loss)
    rows = ROWS.chunk(WORLD_SIZE)[rank].clone().requires_grad_()
    [results["gather"][rank]] = twice_differentiated(of_all_rows(all_gather_rows(rows)), [rows])
    distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_the_joined_batch(tmp_path):
    expected = {}
    for name in CASES:
        energy_loss, base_loss, batch, inputs = losses(name)
        if energy_loss is not None:
            energy_loss(*batch).loss.backward()
            expected[f"{name} energy"] = gradients(energy_loss)
        base_loss(inputs).backward()
        expected[f"{name} base"] = gradients(base_loss)
    # All processes compute the value of the rows of all, and what is differentiated is its sum over them.
    parts = [part.clone().requires_grad_() for part in ROWS.chunk(WORLD_SIZE)]
    joined = twice_differentiated(WORLD_SIZE * of_all_rows(torch.cat(parts)), parts)
    results = {"gather": torch.full_like(joined, math.nan).share_memory_()}
    results |= {key: torch.full((WORLD_SIZE, len(g)), math.nan).double().share_memory_() for key, g in expected.items()}
    run_in_processes(run_one_process, (str(tmp_path / "rendezvous"), results), WORLD_SIZE)
    for key, gradient in expected.items():
        assert gradient.norm() > 1e-6, key
        for rank in range(WORLD_SIZE):
            torch.testing.assert_close(results[key][rank], gradient, msg=lambda text, key=key: f"{key}: {text}")
    torch.testing.assert_close(results["gather"], joined)
