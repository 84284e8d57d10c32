"""The authors' networks against a description of them in plain functions: layers, sizes, initial weights, forward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gebm import GEBM, KALE, GradientPenalty, StandardNormal, networks
from gebm.folding import folded
from gebm.objectives.losses import EnergyLoss

# Inputs, outputs and kernel of each layer with weights, in the order of the authors' code, at 32x32.
CONVNET_BASE = [(100, 8192, 1), (512, 256, 4), (256, 128, 4), (128, 64, 4), (64, 3, 3)]
CONVNET_ENERGY = [
    (3, 64, 3), (64, 128, 4), (128, 128, 3), (128, 256, 4), (256, 256, 3), (256, 512, 4), (512, 512, 3), (8192, 1, 1)
]  # fmt: skip
RESNET_BASE = [(100, 2048, 1), *[(128, 128, 3)] * 6, (128, 3, 3)]
RESNET_ENERGY = [(3, 128, 3), (128, 128, 3), (3, 128, 1), *[(128, 128, 3)] * 2, (128, 128, 1), *[(128, 128, 3)] * 4,
                 (128, 1, 1)]  # fmt: skip
LAYOUTS = {"sngan_convnet_arbel": (CONVNET_BASE, CONVNET_ENERGY), "sngan_resnet_arbel": (RESNET_BASE, RESNET_ENERGY)}
# Channels of the batch normalizations, each with a scale and a shift.
NORMS = {"sngan_convnet_arbel": [512, 256, 128, 64], "sngan_resnet_arbel": [128] * 7}


def make(name: str, **sizes) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return networks.make(name, **{"resolution": 32, "channels": 3, "latent_dim": 100, **sizes})


def weighted(network: nn.Module) -> list[nn.Linear | nn.Conv2d | nn.ConvTranspose2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]


def raw_weight(layer: nn.Module) -> torch.Tensor:
    return layer.parametrizations.weight.original if parametrize.is_parametrized(layer) else layer.weight


def fans(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) as torch counts them: of a transposed convolution the other way round."""
    weight = raw_weight(layer)
    pixels = math.prod(weight.shape[2:])
    return weight.shape[1] * pixels, weight.shape[0] * pixels


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layers_and_the_number_of_parameters_are_those_of_the_authors_code(name):
    for network, layout, norms in zip(make(name), LAYOUTS[name], (NORMS[name], []), strict=True):
        sizes = sorted(
            (layer.in_channels, layer.out_channels, layer.kernel_size[0])
            if hasattr(layer, "in_channels")
            else (layer.in_features, layer.out_features, 1)
            for layer in weighted(network)
        )
        assert sizes == sorted(layout)
        count = sum(i * o * k * k + o for i, o, k in layout) + sum(2 * channels for channels in norms)
        assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("name", LAYOUTS)
def test_initial_weights_and_biases_have_the_scale_of_the_authors(name):
    base, energy = make(name)
    shortcuts = [layer for layer in weighted(energy) if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert len(shortcuts) == (2 if "resnet" in name else 0)
    for layer in [*weighted(base), *weighted(energy)]:
        fan_in, fan_out = fans(layer)
        limit = math.sqrt(6 / (fan_in + fan_out)) * (math.sqrt(2) if layer in shortcuts else 1)
        if name == "sngan_convnet_arbel" and parametrize.is_parametrized(layer):
            # Torch's own: theirs is drawn where the next forward overwrites it.
            limit = 1 / math.sqrt(fan_in)
        # Of n uniform draws the largest is above (1 - 20 / n) of the limit but for a probability of exp(-20).
        weight = raw_weight(layer).detach()
        assert (1 - 20 / weight.numel()) * limit < weight.abs().max() <= limit * (1 + 1e-6)
        bias = layer.bias.detach()
        assert 0 < bias.abs().max() <= 1 / math.sqrt(fan_in)
        if len(bias) >= 64:
            assert bias.abs().max() > (1 - 20 / len(bias)) / math.sqrt(fan_in)


def seasoned(name: str) -> tuple[nn.Module, nn.Module]:
    """Base and energy with statistics of their own, and power iterations that have converged; float64."""
    base, energy = (network.double() for network in make(name, latent_dim=6, width=4))
    with torch.no_grad():
        base(torch.randn(8, 6, dtype=torch.float64))
        for layer in filter(parametrize.is_parametrized, energy.modules()):
            for _ in range(200):
                _ = layer.weight
    return base.eval(), energy.eval()


def normalized(layer: nn.Module) -> torch.Tensor:
    weight = raw_weight(layer)
    return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def batch_norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def convnet_base(base: nn.Module, z: torch.Tensor) -> torch.Tensor:
    dense, *convolutions = weighted(base)
    norms = [layer for layer in base.modules() if isinstance(layer, nn.BatchNorm2d)]
    x = F.linear(z, dense.weight, dense.bias).view(len(z), -1, 4, 4)
    for norm, layer in zip(norms, convolutions, strict=True):
        stride = 1 if layer is convolutions[-1] else 2
        x = F.conv_transpose2d(F.relu(batch_norm(norm, x)), layer.weight, layer.bias, stride, 1)
    return x.tanh()


def convnet_energy(energy: nn.Module, x: torch.Tensor) -> torch.Tensor:
    *convolutions, last = weighted(energy)
    for index, layer in enumerate(convolutions):
        x = F.leaky_relu(F.conv2d(x, normalized(layer), layer.bias, 1 + index % 2, 1), 0.1)
    return F.linear(x.flatten(1), last.weight, last.bias)


def resnet_base(base: nn.Module, z: torch.Tensor) -> torch.Tensor:
    dense, *convolutions = weighted(base)
    norms = iter(layer for layer in base.modules() if isinstance(layer, nn.BatchNorm2d))
    x = F.linear(z, dense.weight, dense.bias).view(len(z), -1, 4, 4)
    for first, second in zip(convolutions[0:6:2], convolutions[1:6:2], strict=True):
        residual = F.interpolate(F.relu(batch_norm(next(norms), x)), scale_factor=2)
        residual = F.relu(batch_norm(next(norms), F.conv2d(residual, first.weight, first.bias, padding=1)))
        x = F.conv2d(residual, second.weight, second.bias, padding=1) + F.interpolate(x, scale_factor=2)
    return F.conv2d(F.relu(batch_norm(next(norms), x)), convolutions[6].weight, convolutions[6].bias, padding=1).tanh()


def resnet_energy(energy: nn.Module, x: torch.Tensor) -> torch.Tensor:
    def convolve(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, normalized(layer), layer.bias, padding=layer.kernel_size[0] // 2)

    *convolutions, last = weighted(energy)
    layers = iter(convolutions)
    for index in range(4):
        residual = convolve(next(layers), x if index == 0 else F.relu(x))
        residual = convolve(next(layers), F.relu(residual))
        x = (F.avg_pool2d(residual, 2) + F.avg_pool2d(convolve(next(layers), x), 2)) if index < 2 else residual + x
    return F.linear(F.relu(x).mean((2, 3)), normalized(last), last.bias)


@pytest.mark.parametrize(
    ("name", "plain_base", "plain_energy"),
    [("sngan_convnet_arbel", convnet_base, convnet_energy), ("sngan_resnet_arbel", resnet_base, resnet_energy)],
)
def test_the_forward_is_the_plain_one_of_the_authors_code(name, plain_base, plain_energy):
    base, energy = seasoned(name)
    z = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        x = base(z)
        torch.testing.assert_close(x, plain_base(base, z), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(energy(x), plain_energy(energy, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_energy_step_takes_three_power_iterations(name):
    base, energy = make(name, latent_dim=6, width=4)
    model = GEBM(base, energy, StandardNormal(6))
    layer = weighted(energy)[1]
    norm = layer.parametrizations.weight[0]
    v, weight = norm._v.clone(), raw_weight(layer).detach().flatten(1)
    for _ in range(3):
        u = F.normalize(weight @ v, dim=0)
        v = F.normalize(weight.T @ u, dim=0)
    x = torch.rand(4, 3, 32, 32)
    EnergyLoss(model, KALE(), GradientPenalty())(x, -x, torch.rand(4, 1, 1, 1))
    torch.testing.assert_close(norm._v, v)
    torch.testing.assert_close(norm._u, u)


def test_the_slope_of_the_convnets_energy_has_no_bound():
    _, energy = make("sngan_convnet_arbel", width=4)
    energy.eval()
    x = torch.rand(2, 3, 32, 32)
    before = energy(x) - energy(-x)
    with torch.no_grad():
        energy[-1].weight.mul_(100)
    torch.testing.assert_close(energy(x) - energy(-x), 100 * before, rtol=1e-3, atol=1e-3)


def test_a_base_of_transposed_convolutions_alone_is_folded_as_a_network_of_images():
    base, energy = make("sngan_convnet_arbel", latent_dim=6, width=4)
    assert not any(isinstance(layer, nn.Conv2d) for layer in base.modules())
    fixed = folded(GEBM(base, energy, StandardNormal(6)))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fixed.base.modules())
