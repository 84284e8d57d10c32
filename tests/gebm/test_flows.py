"""Flows: that they are invertible, that their density is the one of their samples; energies relative to a base."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gebm import GEBM, KALE, NonSaturating, StandardNormal, Wasserstein, networks
from gebm.energies import BoundedEnergy
from gebm.networks.flows import FLOWS, FlowBase, FlowEnergy, GaussianFlow, RelativeEnergy
from gebm.objectives.losses import BaseLoss, EnergyLoss
from gebm.objectives.penalties import GradientPenalty

NAMES = list(FLOWS)


def flow_of(name: str, dim: int, seed: int = 0, scale: float = 0.1, width: int = 12) -> FlowBase:
    """A flow some way from the identity, in double precision."""
    torch.manual_seed(seed)
    flow = FLOWS[name](dim, width=width).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter)
    return flow


def flow_model(name: str, dim: int = 2, seed: int = 0, offset: float = 0.7) -> GEBM:
    """Base and energy two flows of the family, both some way from the identity; the true A is minus the offset."""
    base = flow_of(name, dim, seed)
    energy = RelativeEnergy(FlowEnergy(flow_of(name, dim, seed + 100), offset), base)
    return GEBM(base, energy, StandardNormal(dim)).double()


def grid(radius: float = 9.0, points: int = 601) -> tuple[Tensor, float]:
    """Points of a square and the area that belongs to each."""
    axis = torch.linspace(-radius, radius, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


@pytest.mark.parametrize("dim", [2, 3, 11, 43])
@pytest.mark.parametrize("name", NAMES)
def test_a_new_flow_is_the_identity(name, dim):
    flow = FLOWS[name](dim, width=16)
    z = torch.randn(64, dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow(z), z)
    torch.testing.assert_close(flow.log_prob(z), StandardNormal(dim).log_prob(z), rtol=1e-5, atol=1e-4)
    assert flow.dim == dim and flow.log_prob(z).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(dim=st.integers(2, 6), seed=st.integers(0, 1000))
def test_inverse_and_density_are_those_of_the_map(name, dim, seed):
    flow = flow_of(name, dim, seed)
    z = torch.randn(5, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = flow(z)
    back, log_det = flow.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-7, atol=1e-7)
    # dx/dz by autograd, through the forward map alone: the density must follow from it.
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: flow(z[None])[0], row) for row in z])
    expected = -torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.log_prob(x), StandardNormal(dim).double().log_prob(z) + expected)


@pytest.mark.parametrize("name", ["realnvp", "nsf"])
@settings(deadline=None, max_examples=10, derandomize=True)
@given(dim=st.integers(2, 9), seed=st.integers(0, 1000))
def test_couplings_are_those_of_zuko_bit_for_bit(name, dim, seed):
    flow = flow_of(name, dim, seed, scale=0.4)
    theirs = flow.transform()
    rows = 3 * torch.randn(6, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ends = []
    for forward, inverse in ((flow, flow.inverse), (theirs.inv, theirs.call_and_ladj)):
        leaf = rows.clone().requires_grad_(True)
        x, (z, log_det) = forward(leaf), inverse(leaf)
        (slope,) = torch.autograd.grad(x.square().sum() + z.square().sum() + log_det.sum(), leaf, create_graph=True)
        ends.append([x, z, log_det, slope, *torch.autograd.grad(slope.square().sum(), list(flow.parameters()))])
    assert all(torch.equal(ours, other) for ours, other in zip(*ends, strict=True))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_density_integrates_to_one_and_is_that_of_the_samples(name):
    flow = flow_of(name, 2, seed=1)
    points, area = grid()
    density = flow.log_prob(points).exp() * area
    # A square of 18 holds the mass of flows this near the identity; splines have kinks in their second derivative,
    # so that the error of a sum over the grid is of the order of its mesh squared, (0.03)^2.
    assert abs(density.sum() - 1) < 1e-3
    n = 20_000
    samples = flow(torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    for function in (lambda x: x[:, 0], lambda x: x[:, 1].square(), lambda x: x.prod(1), lambda x: (2 * x[:, 0]).cos()):
        values = function(samples)
        error = values.std() / math.sqrt(n)
        assert abs(values.mean() - (density * function(points)).sum()) <= 5 * error + 1e-3


def test_gaussian_is_the_density_that_torch_knows():
    flow = flow_of("gaussian", 4, scale=0.5)
    x = torch.randn(20, 4, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(flow.mean, scale_tril=flow.factor).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_flows_stay_in_float32_inside_autocast(name):
    flow = flow_of(name, 3).float()
    x = torch.randn(6, 3)
    outside = flow.log_prob(x), flow(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = flow.log_prob(x), flow(x)
        assert flow(x.bfloat16()).dtype == flow.log_prob(x.bfloat16()).dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_flow_energy_has_the_log_partition_that_it_says(name):
    energy = FlowEnergy(flow_of(name, 2, seed=2), offset=1.3)
    points, area = grid()
    log_partition = ((-energy(points)).exp() * area).sum().log()
    assert energy.known_log_partition.item() == pytest.approx(-1.3)
    assert log_partition.item() == pytest.approx(-1.3, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_density_of_the_model_does_not_depend_on_the_base(name):
    model = flow_model(name, dim=3)
    other = model.with_base(flow_of(name, 3, seed=7))
    x = 2 * torch.randn(30, 3, dtype=torch.float64)
    expected = -model.energy.network.network(x) + 0.7
    for one in (model, other):
        torch.testing.assert_close(one.log_prob(x, log_partition=-0.7), expected)
        # Also as a difference of the parts, which is how a model of any other energy computes it.
        torch.testing.assert_close(one.base.log_prob(x) - one.energy(x) + 0.7, expected)
    assert not torch.allclose(model.energy(x), other.energy(x))
    # The trained c is what is taken by default.
    torch.testing.assert_close(model.log_prob(x), expected - 0.7 - model.log_partition.item())


def test_density_under_a_floor_is_that_of_the_bounded_energy():
    base = flow_of("gaussian", 2)
    model = GEBM(base, RelativeEnergy(FlowEnergy(flow_of("gaussian", 2, seed=5)), base), StandardNormal(2), -0.5)
    x = 4 * torch.randn(200, 2, dtype=torch.float64)
    energy = model.energy.network(x)
    assert (energy < -0.5).any()
    torch.testing.assert_close(model.log_prob(x), base.log_prob(x) - energy.clamp(min=-0.5))


def test_relative_energies_have_no_floor_unless_one_is_given():
    base = GaussianFlow(2)
    energy = RelativeEnergy(nn.Linear(2, 1), base)
    assert GEBM(base, energy, StandardNormal(2)).energy.floor == -math.inf
    assert GEBM(base, energy, StandardNormal(2), -3.0).energy.floor == -3.0
    assert GEBM(base, nn.Linear(2, 1), StandardNormal(2)).energy.floor == -10.0


def test_the_base_is_no_part_of_its_energy():
    model = flow_model("realnvp")
    assert not {id(p) for p in model.energy.parameters()} & {id(p) for p in model.base.parameters()}
    assert not any("_base" in name for name in model.energy.state_dict())
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    model.energy(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert all(parameter.grad is not None for parameter in model.energy.parameters())
    assert all(parameter.requires_grad for parameter in model.base.parameters())


def test_an_energy_follows_the_model_to_its_base():
    first, second = flow_of("gaussian", 2), flow_of("gaussian", 2, seed=3)
    energy = RelativeEnergy(nn.Linear(2, 1).double(), first)
    model = GEBM(second, BoundedEnergy(energy, -4.0).eval(), StandardNormal(2))
    assert model.energy.network.base is second and energy.base is first
    assert model.energy.network.network is energy.network
    assert model.energy.floor == -4.0 and not model.energy.training
    # A copy is a model of its own: its energy is relative to its own base.
    copied = copy.deepcopy(model)
    assert copied.energy.network.base is copied.base and copied.base is not model.base
    # What moves the base's weights in place, such as reading a checkpoint, moves the energy with them.
    before = model.energy(torch.zeros(1, 2, dtype=torch.float64))
    model.base.load_state_dict(first.state_dict())
    assert not torch.equal(model.energy(torch.zeros(1, 2, dtype=torch.float64)), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["fenchel", "donsker_varadhan"])
def test_base_gradient_is_the_weighted_one_with_the_density_held_fixed(name, form):
    # grad_theta KALE = sum_i w_i grad_x E(x_i) . grad_theta B(z_i): E = D + log b moves with x, not with theta.
    model = flow_model(name)
    z = torch.randn(64, 2, dtype=torch.float64)
    BaseLoss(model, KALE(form))(z).backward()

    fixed = copy.deepcopy(model.base).requires_grad_(False)
    x = model.base(z)
    leaf = x.detach().requires_grad_(True)
    energy_x = model.energy.network.network(leaf) + fixed.log_prob(leaf)
    (slope,) = torch.autograd.grad(energy_x.sum(), leaf)
    weights = (-energy_x.detach()).softmax(0)
    expected = torch.autograd.grad((weights[:, None] * slope * x).sum(), list(model.base.parameters()))
    for parameter, gradient in zip(model.base.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad is None for parameter in model.energy.parameters())


@pytest.mark.parametrize("objective", [KALE(), NonSaturating(), Wasserstein()])
def test_energy_step_gives_the_base_no_gradient(objective):
    model = flow_model("realnvp")
    loss = EnergyLoss(model, objective, GradientPenalty(0.3))
    x_data, x_base = torch.randn(2, 16, 2, dtype=torch.float64)
    loss(x_data, x_base, torch.rand(16)).loss.backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.energy.parameters())
    # The slope of log b is part of the penalty: the gradient of E is that of D plus the base's.
    x = (x_data + 2 * x_base) / 3
    leaf = x.clone().requires_grad_(True)
    whole = model.energy.network.network(leaf) + model.base.log_prob(leaf)
    (slope,) = torch.autograd.grad(whole.sum(), leaf)
    penalty = GradientPenalty(1.0)(model.energy, x_data, x_base, torch.full((16,), 1 / 3))
    torch.testing.assert_close(penalty.detach().double(), slope.square().sum(1).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_make_gives_a_flow_and_its_energy(name):
    base, energy = networks.make(name, resolution=0, channels=5, latent_dim=5, width=8, offset=0.25)
    assert isinstance(energy, RelativeEnergy) and energy.base is base
    assert type(energy.network.flow) is type(base)
    # The same law at first: the energy is the constant.
    torch.testing.assert_close(energy(torch.randn(4, 5)), torch.full((4,), 0.25), rtol=0, atol=1e-5)
    base, energy = networks.make(name, resolution=0, channels=5, latent_dim=5, width=8, energy="mlp")
    assert isinstance(energy, networks.mlp.MLPEnergy) and hasattr(base, "log_prob")


def test_published_size_of_realnvp():
    base, _ = networks.make("realnvp", resolution=0, channels=11, latent_dim=11)
    layers = base.transform.transforms
    assert len(layers) == 5
    assert all([layer.hyper[i].out_features for i in (0, 2)] == [100, 100] for layer in layers)
    assert [layer.mask.tolist() for layer in layers][:2] == [[i % 2 == k for i in range(11)] for k in (0, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 4}, "latent dimension is 4 and that of the data 3: make them equal"),
        ({"energy": "resnet"}, "realnvp has no energy 'resnet': choose 'mlp'"),
        ({"channels": 1, "latent_dim": 1}, "dimension 1: choose at least 1 layer, dimension 2"),
        ({"name": "mlp", "energy": "flow"}, "mlp has an energy of its own"),
        ({"name": "dcgan", "resolution": 8, "energy": "mlp"}, "dcgan has an energy of its own"),
        ({"name": "mlp", "offset": 1.0}, "mlp has an energy of its own"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(arguments, message):
    request = {"name": "realnvp", "resolution": 0, "channels": 3, "latent_dim": 3} | arguments
    with pytest.raises(ValueError, match=message) as error:
        networks.make(request.pop("name"), **request)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", networks.flows.FLOWS)
@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3,), (4, 3, 1)])
def test_rows_of_another_dimension_are_refused(name, shape):
    base, energy = networks.make(name, resolution=0, channels=3, latent_dim=3)
    model = GEBM(base, energy, StandardNormal(3))
    for call in (base, base.log_prob, energy, model.log_prob):
        with pytest.raises(ValueError, match=r"of 3 dimensions maps \(N, 3\), not ") as error:
            call(torch.zeros(shape))
        assert str(shape) in str(error.value) and "\n" not in str(error.value)


def test_parts_of_different_dimensions_make_no_model():
    base, energy = networks.make("realnvp", resolution=0, channels=3, latent_dim=3)
    with pytest.raises(ValueError, match="the base has 3 dimensions and the prior 2: make them equal"):
        GEBM(base, energy, StandardNormal(2))
    _, other = networks.make("gaussian", resolution=0, channels=2, latent_dim=2)
    with pytest.raises(ValueError, match="the energy has 2 dimensions and the base 3: make them equal"):
        GEBM(base, other, StandardNormal(3))


def test_relative_energy_needs_a_density():
    with pytest.raises(ValueError, match="needs its log_prob: use a normalizing flow") as error:
        RelativeEnergy(nn.Linear(2, 1), nn.Linear(2, 2))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at least 1"):
        GaussianFlow(0)


def test_without_zuko_all_else_works():
    program = """
import sys
sys.modules["zuko"] = None
import torch, gebm
base, _ = gebm.networks.make("gaussian", resolution=0, channels=2, latent_dim=2)
print(base.log_prob(torch.zeros(1, 2)).shape)
try:
    gebm.networks.make("realnvp", resolution=0, channels=2, latent_dim=2)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "torch.Size([1])",
        "this flow needs the package zuko: install it, or choose 'gaussian'",
    ]
