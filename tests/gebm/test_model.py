"""The model: its potential, what sampling leaves untouched, its density."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gebm import GEBM, BoundedEnergy, StandardNormal, frozen, networks, samplers


def digits_model(seed: int = 0) -> GEBM:
    torch.manual_seed(seed)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=4)
    return GEBM(base, energy, StandardNormal(4))


def test_standard_normal_is_the_density_that_torch_knows():
    torch.manual_seed(0)
    z = torch.randn(20, 7)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(StandardNormal(7).log_prob(z), expected)


def test_standard_normal_draws_its_moments():
    n = 100_000
    z = StandardNormal(3).sample(n, torch.Generator().manual_seed(0))
    # The mean has standard error 1/sqrt(n), the covariance's entries at most sqrt(2/n); five of each.
    assert z.mean(0).abs().max() < 5 / math.sqrt(n)
    assert (z.T @ z / n - torch.eye(3)).abs().max() < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_energy_is_bounded_and_one_number_per_sample(shape):
    network = nn.Flatten(0) if len(shape) == 1 else nn.Identity()
    values = torch.tensor([-1e6, -10.0, -9.0, 0.0, 1e6]).reshape(5, 1)
    assert BoundedEnergy(network)(values).tolist() == [-10.0, -10.0, -9.0, 0.0, 1e6]
    assert BoundedEnergy(network, floor=-math.inf)(values).tolist() == values.flatten().tolist()


def test_no_gradient_passes_the_floor():
    weight = nn.Parameter(torch.ones(1))
    energy = BoundedEnergy(nn.Module(), floor=-10.0)
    energy.network.forward = lambda x: weight * x
    x = torch.tensor([[-12.0], [-9.0], [-1e6], [3.0]], requires_grad=True)
    slopes = torch.autograd.grad(energy(x).sum(), [x, weight])
    assert slopes[0].flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
    assert slopes[1].tolist() == [-6.0]


def test_an_energy_without_a_floor_is_the_network_itself_with_all_its_gradients():
    model = digits_model().eval()  # in training each pass would move the spectral norms on
    unbounded = GEBM(model.base, model.energy.network, model.prior, energy_floor=-math.inf)
    x = (100 * torch.randn(6, 1, 8, 8)).requires_grad_(True)
    energy, network = unbounded.energy(x), model.energy.network(x).flatten()
    assert torch.equal(energy, network) and energy.isfinite().all()
    weights = list(unbounded.energy.parameters())

    def gradients(values):
        # Those that a penalised critic is trained by: of the energy, and of its slope at the samples.
        (slope,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return torch.autograd.grad(values.mean() + slope.square().mean(), [x, *weights], allow_unused=True)

    for one, other in zip(gradients(energy), gradients(network), strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one.isfinite().all() and torch.equal(one, other))
    z = torch.randn(6, 4, requires_grad=True)
    potential = unbounded.potential(z, beta=100.0)
    (slope,) = torch.autograd.grad(potential.sum(), z)
    assert potential.isfinite().all() and slope.isfinite().all()


def test_energy_of_wrong_shape_says_so():
    with pytest.raises(ValueError, match=r"returned \(5, 2\) for 5 samples"):
        BoundedEnergy(nn.Identity())(torch.zeros(5, 2))


@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_potential_is_prior_plus_tempered_energy(beta):
    model = digits_model().eval()
    z = torch.randn(6, 4)
    expected = z.square().sum(1) / 2 + 2 * math.log(2 * math.pi) + beta * model.energy(model.base(z))
    torch.testing.assert_close(model.potential(z, beta), expected)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_without_the_energy_the_potential_is_the_priors_wherever_the_energy_is_not_finite(value):
    class Cliff(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1).masked_fill(x[:, 0] > 0, value)

    model, z = GEBM(nn.Identity(), Cliff(), StandardNormal(2)), torch.randn(9, 2, requires_grad=True)
    potential = model.potential(z, beta=0.0)
    torch.testing.assert_close(potential, -model.prior.log_prob(z), rtol=0, atol=0)
    assert torch.equal(torch.autograd.grad(potential.sum(), z)[0], z)


def test_potential_stays_in_float32_inside_autocast():
    model = digits_model()
    z = torch.randn(6, 4)
    outside = model.potential(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.potential(z)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_potential_has_only_the_latents_in_its_graph():
    model = digits_model().train()
    z = torch.randn(6, 4, requires_grad=True)
    potential = model.potential(z).sum()
    leaves, nodes, seen = set(), [potential.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    assert leaves == {id(z)}


@pytest.mark.parametrize("name", list(samplers.NAMES))
def test_sampling_changes_nothing_of_the_model(name):
    model = digits_model().train()
    model.base[0].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    kernel = samplers.make(name, step_size=1e-2, friction=1.0, prior=model.prior)
    images = model.sample(7, kernel, 3, generator=torch.Generator().manual_seed(0), batch_size=3)
    assert images.shape == (7, 1, 8, 8) and not images.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_optimal_transport_draws_one_sample_and_batches_of_one():
    model = digits_model()
    kernel = samplers.make("dot", step_size=1e-2, prior=model.prior)
    assert model.sample(1, kernel, 3).shape == (1, 1, 8, 8)
    assert model.sample(3, kernel, 3, batch_size=1).isfinite().all()


def test_frozen_restores_also_after_an_error():
    model = digits_model().train()
    with pytest.raises(RuntimeError), frozen(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_sampling_is_reproducible_from_its_generator():
    model = digits_model()
    kernel = samplers.make("ula", step_size=1e-2)
    first, second = (model.sample(5, kernel, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_sampling_with_no_steps_is_sampling_the_base():
    model = digits_model()
    kernel = samplers.make("ula", step_size=1e-2)
    of_model = model.sample(5, kernel, 0, generator=torch.Generator().manual_seed(1), batch_size=2)
    of_base = model.sample_base(5, torch.Generator().manual_seed(1), batch_size=2)
    assert torch.equal(of_model, of_base)


class Gaussian(nn.Module):
    """A base with a density: x = shift + z."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, z):
        return z + self.shift

    def log_prob(self, x):
        return StandardNormal(x.shape[1]).log_prob(x - self.shift)


class Tilt(nn.Module):
    """E(x) = -slope * sum(x): it moves a unit Gaussian by its slope."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return -self.slope * x.sum(1)


def test_log_prob_is_the_tilted_density():
    # exp(slope sum x) N(x; s, I) is N(x; s + slope, I) times exp(D (slope s + slope^2 / 2)).
    dim, shift, slope = 3, 0.7, 0.5
    model = GEBM(Gaussian(shift), Tilt(slope), StandardNormal(dim))
    with torch.no_grad():
        model.log_partition.fill_(dim * (slope * shift + slope**2 / 2))
    x = torch.randn(10, dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.log_prob(x), StandardNormal(dim).log_prob(x - shift - slope))


def test_log_prob_without_density_says_so():
    with pytest.raises(ValueError, match="no density"):
        digits_model().log_prob(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(("n", "batch_size"), [(0, None), (3, 0)])
def test_empty_requests_say_so(n, batch_size):
    with pytest.raises(ValueError, match="at least 1"):
        digits_model().sample_base(n, batch_size=batch_size)


def test_what_is_held_fixed_stays_so_until_the_outermost_block_ends():
    outer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    inner, other = outer[0], nn.Linear(1, 1)
    with frozen(outer):
        with frozen(inner, other):
            assert not inner.training and not other.training
            assert not any(parameter.requires_grad for parameter in [*outer.parameters(), *other.parameters()])
        assert not inner.training and not inner.weight.requires_grad
        assert other.training and other.weight.requires_grad
        with pytest.raises(RuntimeError, match="left"), frozen(outer):
            raise RuntimeError("left")
        assert not outer.training and not inner.weight.requires_grad
    assert outer.training and all(parameter.requires_grad for parameter in outer.parameters())
    with frozen(inner):
        assert outer[1].training and not inner.training
    assert inner.training and inner.weight.requires_grad
