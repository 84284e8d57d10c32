"""Folding changes what a network costs and not what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gebm import GEBM, StandardNormal, folded, networks, samplers
from gebm.folding import folded_base

FAMILIES = [
    ("dcgan", 8, 1),
    ("dcgan", 16, 3),
    ("sngan_convnet", 32, 3),
    ("sngan_convnet", 64, 1),
    ("sngan_resnet", 32, 3),
    ("sngan_resnet", 64, 1),
    ("sngan_convnet_arbel", 32, 3),
    ("sngan_resnet_arbel", 32, 3),
]


def seasoned(name: str, resolution: int, channels: int) -> GEBM:
    """A model that has seen a few batches, so that its statistics and power iterations are its own; float64."""
    torch.manual_seed(0)
    base, energy = networks.make(name, resolution=resolution, channels=channels, latent_dim=6, width=4)
    with torch.no_grad():
        for parameter in [*base.parameters(), *energy.parameters()]:
            parameter.add_(0.2 * torch.randn_like(parameter))
    base.train(), energy.train()
    for _ in range(3):
        energy(base(torch.randn(16, 6)))
    return GEBM(base, energy, StandardNormal(6)).eval().double()


def with_gradient(model: GEBM, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = z.clone().requires_grad_(True)
    energy = model.energy(model.base(z))
    (gradient,) = torch.autograd.grad(energy.sum(), z)
    return energy.detach(), gradient


@pytest.mark.parametrize(("name", "resolution", "channels"), FAMILIES)
def test_a_folded_model_is_the_model(name, resolution, channels):
    model = seasoned(name, resolution, channels)
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fixed = folded(model, torch.float64)
    with torch.no_grad():
        assert torch.allclose(fixed.base(z), model.base(z), rtol=1e-9, atol=1e-9)
    for one, other in zip(with_gradient(model, z), with_gradient(fixed, z), strict=True):
        assert other.abs().max() > 0
        # In float64, so that what is left is rounding alone: no unit of a ReLU is that near to zero.
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-9 * float(one.abs().max()))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(("name", "resolution", "channels"), FAMILIES)
def test_a_folded_base_is_the_base_in_evaluation_mode(name, resolution, channels, precision):
    base = seasoned(name, resolution, channels).base
    if precision is not None:
        base = base.float()
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=next(base.parameters()).dtype)
    with torch.no_grad():
        expected = base(z)
        found = folded_base(base.train(), precision)(z)
        trained = base(z)
    assert base.training and found.dtype == expected.dtype
    # A dozen layers at most, of 2^-9 relative each; a tangent's slope is at most one.
    allowed = 1e-9 if precision is None else 12 * 2**-9 * float(expected.atanh().abs().max().clamp(1, 8))
    assert (found - expected).abs().max() <= allowed < (trained - expected).abs().max()


def test_a_flow_is_not_folded():
    base, _ = networks.make("realnvp", resolution=0, channels=2, latent_dim=2)
    assert folded_base(base) is base


@pytest.mark.parametrize(("name", "resolution", "channels"), FAMILIES)
def test_what_is_folded_is_gone(name, resolution, channels):
    fixed = folded(seasoned(name, resolution, channels), torch.float64)
    assert not any("parametrizations" in key for key in fixed.state_dict())
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    norms = sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in fixed.modules())
    # The ResNet's stand behind sums, of which only the inner ones have a layer of their own before them.
    assert norms == (len([m for m in fixed.modules() if type(m).__name__ == "UpBlock"]) + 1 if "resnet" in name else 0)


@pytest.mark.parametrize("name", ["sngan_convnet", "sngan_resnet"])
def test_folding_leaves_the_model_as_it_was_and_does_not_follow_it(name):
    model = seasoned(name, 32, 3).float()
    before = copy.deepcopy(model.state_dict())
    z = torch.randn(3, 6)
    fixed = folded(model)
    found = fixed.potential(z).clone()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    folded(model)  # a second time: the layers' classes, which copies share, are whole
    model.train()
    loss = model.energy(model.base(z)).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.energy.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(fixed.potential(z), found)


@pytest.mark.parametrize("name", ["dcgan", "sngan_convnet", "sngan_resnet"])
def test_bfloat16_is_within_its_rounding_and_potentials_stay_in_float32(name):
    model = seasoned(name, 32, 3).float()
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    fixed = folded(model, torch.bfloat16)
    half, _ = with_gradient(fixed, z)
    full, _ = with_gradient(model, z)
    assert fixed.potential(z).dtype == half.dtype == torch.float32
    # Each of at most 20 layers rounds to 2^-9 of its values, of independent signs.
    assert (half - full).square().mean().sqrt() < 20**0.5 * 2**-9 * 2 * full.abs().max()
    chain = samplers.run(samplers.make("ula", step_size=1e-2), fixed.potential, z[:4], 3)
    assert chain.z.dtype == torch.float32 and chain.z.isfinite().all()


@pytest.mark.parametrize("name", ["mlp", "realnvp"])
def test_networks_of_vectors_are_copied_as_they_are(name):
    base, energy = networks.make(name, resolution=0, channels=3, latent_dim=3, width=8)
    model = GEBM(base, energy, StandardNormal(3)).eval()
    z = torch.randn(4, 3)
    fixed = folded(model, torch.bfloat16)
    assert torch.equal(fixed.potential(z), model.potential(z))
    if name == "realnvp":
        assert fixed.energy.network.base is fixed.base and fixed.base is not model.base


class Centered(torch.nn.Conv2d):
    """A convolution that is not what its class's parent is."""

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


def test_layers_that_are_something_else_are_left_alone():
    torch.manual_seed(0)
    norm = torch.nn.utils.parametrizations.spectral_norm
    base = torch.nn.Sequential(
        torch.nn.Linear(6, 4 * 16),
        torch.nn.Unflatten(1, (4, 4, 4)),
        torch.nn.BatchNorm2d(4, affine=False),
        Centered(4, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 3, 3, padding=1),
    )
    energy = torch.nn.Sequential(
        norm(torch.nn.Conv2d(3, 6, 3, groups=3, padding=1)),
        torch.nn.BatchNorm2d(6),
        torch.nn.Flatten(),
        norm(torch.nn.Linear(96, 1)),
    )
    model = GEBM(base, energy, StandardNormal(6))
    for _ in range(3):
        energy.train()(base.train()(torch.randn(16, 6)))
    model = model.eval()
    z = torch.randn(4, 6)
    state = torch.random.get_rng_state()
    fixed = folded(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.allclose(fixed.potential(z), model.potential(z), rtol=1e-4, atol=1e-4)
    assert folded(model, torch.bfloat16).potential(z).isfinite().all()


@pytest.mark.parametrize("name", ["dcgan", "sngan_resnet"])
def test_a_model_can_be_folded_to_another_precision(name):
    model = seasoned(name, 32, 3)
    z = torch.randn(4, 6)
    wide, narrow = folded(model.float(), torch.float64), folded(model.double(), torch.float32)
    assert wide.potential(z.double()).dtype == torch.float64
    assert torch.allclose(narrow.potential(z).double(), wide.potential(z.double()), rtol=1e-3, atol=1e-3)


def test_another_precision_is_refused():
    model = seasoned("dcgan", 8, 1)
    with pytest.raises(ValueError, match=r"no sampling in torch\.float16: choose torch\.float32"):
        folded(model, torch.float16)


def compiled(base: nn.Module) -> nn.Module:
    return torch.compile(base, backend="eager")


def hooked(index: int) -> Callable[[nn.Module], nn.Module]:
    def wrap(base: nn.Module) -> nn.Module:
        base[index].register_forward_hook(lambda layer, inputs, x: x.abs())
        return base

    return wrap


def normalized_by_a_hook(base: nn.Module) -> nn.Module:
    torch.nn.utils.spectral_norm(base[4])
    base(torch.randn(4, 6, dtype=torch.float64))
    return base.eval()


@pytest.mark.parametrize("wrapped", [compiled, *map(hooked, range(7)), normalized_by_a_hook])
def test_what_wraps_a_layer_is_not_folded_away(wrapped):
    model = seasoned("dcgan", 8, 1)
    with torch.no_grad():
        base = wrapped(model.base)
    fixed = folded(model.with_base(base), torch.float64)
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fixed.base(z), base(z), rtol=1e-9, atol=1e-9)
