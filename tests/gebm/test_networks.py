"""Networks: shapes at every resolution, the published layouts, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gebm import networks

SNGAN = ("sngan_convnet", "sngan_resnet", "sngan_convnet_arbel", "sngan_resnet_arbel")
IMAGES = [("dcgan", size) for size in (8, 16, 32, 64, 128)] + [(name, size) for name in SNGAN for size in (32, 64, 128)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "resolution"), IMAGES)
def test_shapes_and_range(name, resolution, channels):
    torch.manual_seed(0)
    base, energy = networks.make(name, resolution=resolution, channels=channels, latent_dim=5, width=4)
    images = base(100 * torch.randn(3, 5))
    assert images.shape == (3, channels, resolution, resolution)
    assert images.abs().max() <= 1
    assert energy(images).shape in ((3,), (3, 1))


def test_vectors():
    base, energy = networks.make("mlp", resolution=0, channels=7, latent_dim=3)
    assert base(torch.zeros(4, 3)).shape == (4, 7)
    assert energy(torch.zeros(4, 7)).shape == (4, 1)


@pytest.mark.parametrize(("name", "resolution"), [*IMAGES, ("mlp", 0)])
def test_every_weight_of_an_energy_is_spectrally_normalized_and_none_of_a_base(name, resolution):
    base, energy = networks.make(name, resolution=resolution, channels=3, latent_dim=5, width=2)
    weighted = [layer for layer in energy.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if name == "sngan_convnet_arbel":
        # The one exception, and the whole of it.
        assert isinstance(weighted[-1], nn.Linear) and not parametrize.is_parametrized(weighted.pop())
    assert weighted and all(parametrize.is_parametrized(layer, "weight") for layer in weighted)
    assert not any(parametrize.is_parametrized(layer) for layer in base.modules())


@pytest.mark.parametrize(("name", "resolution"), [*IMAGES, ("mlp", 0)])
def test_an_energy_is_a_function_of_one_sample(name, resolution):
    torch.manual_seed(0)
    _, energy = networks.make(name, resolution=resolution, channels=2, latent_dim=5, width=4)
    energy.eval()
    x = torch.randn(4, 2) if name == "mlp" else torch.rand(4, 2, resolution, resolution) * 2 - 1
    together, alone = energy(x), torch.cat([energy(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def convolutions(network: nn.Module) -> list[tuple[int, int, int, int]]:
    """(channels in, channels out, kernel, stride) of each."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in network.modules()
        if isinstance(layer, kinds)
    ]


def test_convnet_is_the_published_one_at_32():
    base, energy = networks.make("sngan_convnet", resolution=32, channels=3, latent_dim=100)
    assert base[0].weight.shape == (512 * 4 * 4, 100)
    assert convolutions(base) == [(512, 256, 4, 2), (256, 128, 4, 2), (128, 64, 4, 2), (64, 3, 3, 1)]
    assert convolutions(energy) == [
        (3, 64, 3, 1),
        (64, 128, 4, 2),
        (128, 128, 3, 1),
        (128, 256, 4, 2),
        (256, 256, 3, 1),
        (256, 512, 4, 2),
        (512, 512, 3, 1),
    ]
    assert energy[-1].in_features == 512 * 4 * 4
    assert {layer.negative_slope for layer in energy if isinstance(layer, nn.LeakyReLU)} == {0.1}


def test_resnet_is_the_published_one_at_32():
    base, energy = networks.make("sngan_resnet", resolution=32, channels=3, latent_dim=100)
    assert base[0].weight.shape == (128 * 4 * 4, 100)
    assert sum(isinstance(layer, networks.sngan.UpBlock) for layer in base) == 3
    blocks = [layer for layer in energy if isinstance(layer, networks.sngan.DownBlock)]
    assert [isinstance(block.pool, networks.double_backward.AvgPool2x2) for block in blocks] == [
        True,
        True,
        False,
        False,
    ]
    assert {out for _, out, _, _ in convolutions(energy)} == {128}
    assert energy[-1].in_features == 128


@pytest.mark.parametrize("name", ["dcgan", *SNGAN])
def test_each_doubling_adds_one_stage(name):
    strided = {}
    for resolution in (32, 64, 128):
        base, energy = networks.make(name, resolution=resolution, channels=3, latent_dim=5, width=2)
        doublings = [layer for layer in base if isinstance(layer, nn.ConvTranspose2d | networks.sngan.UpBlock)]
        halvings = [
            layer
            for layer in energy
            if isinstance(getattr(layer, "pool", None), networks.double_backward.AvgPool2x2)
            or getattr(layer, "stride", 1) == (2, 2)
        ]
        strided[resolution] = (len(doublings), len(halvings))
    (base_32, energy_32), (base_64, energy_64), (base_128, energy_128) = strided.values()
    assert (base_64, base_128) == (base_32 + 1, base_32 + 2)
    assert (energy_64, energy_128) == (energy_32 + 1, energy_32 + 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([2, 4, 6, 8]), st.integers(0, 2**31))
def test_two_layers_in_one_are_the_two(channels, width, size, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, channels, size, size, dtype=torch.float64, requires_grad=True)
    for layer, literal in (
        (
            networks.layers.DownsampleConv2d(channels, width).double(),
            lambda x, layer: F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2),
        ),
        (
            networks.layers.UpsampleConv2d(channels, width).double(),
            lambda x, layer: F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1),
        ),
    ):
        one, two = layer(x), literal(x, layer)
        assert torch.allclose(one, two, atol=1e-12)
        direction = torch.randn_like(one)
        for ours, theirs in zip(
            torch.autograd.grad(one, [x, layer.weight, layer.bias], direction),
            torch.autograd.grad(two, [x, layer.weight, layer.bias], direction),
            strict=True,
        ):
            assert torch.allclose(ours, theirs, atol=1e-11)


def test_resnet_shortcuts_have_the_larger_gain():
    # Uniform on (-a, a) has deviation a / sqrt(3), with a = gain sqrt(6 / (fan_in + fan_out)).
    torch.manual_seed(0)
    block = networks.sngan.UpBlock(128)
    for weight, gain, fan in [(block.shortcut[0].weight, 2**0.5, 128), (block.residual[2].weight, 1.0, 128 * 9)]:
        limit = gain * (6 / (2 * fan)) ** 0.5
        assert weight.abs().max() <= limit
        # Of n uniform draws the largest is above 0.99 a but for a probability of 0.99^n, and n is above 16,000.
        assert weight.abs().max() > 0.99 * limit


def test_bases_return_float32_inside_autocast():
    for name, resolution in (("dcgan", 8), ("sngan_convnet", 32), ("sngan_resnet", 32)):
        base, _ = networks.make(name, resolution=resolution, channels=1, latent_dim=5, width=4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert base(torch.randn(2, 5)).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "biggan"},
            "choose one of dcgan, sngan_convnet, sngan_resnet, .*mlp",
        ),
        ({"resolution": 12}, "choose one of 8, 16, 32, 64, 128"),
        ({"resolution": 256}, "choose one of 8, 16, 32, 64, 128"),
        ({"name": "sngan_convnet", "resolution": 16}, "choose one of 32, 64, 128"),
        ({"name": "sngan_resnet", "resolution": 8}, "choose one of 32, 64, 128"),
        ({"width": 0}, "at least 1"),
        ({"channels": 0}, "at least 1"),
        ({"latent_dim": -1}, "at least 1"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(settings, message):
    request = {"name": "dcgan", "resolution": 8, "channels": 1, "latent_dim": 4} | settings
    with pytest.raises(ValueError, match=message) as error:
        networks.make(request.pop("name"), **request)
    assert "\n" not in str(error.value)
