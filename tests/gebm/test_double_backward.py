"""Layers that are differentiated twice: torch's own functions and derivatives, and none of the work for nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gebm import networks
from gebm.networks import double_backward
from gebm.objectives.penalties import R1


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([0.0, 0.1, 0.2, 1.0, 1.5]), st.integers(1, 4), st.integers(0, 2**31))
def test_layers_of_energies_are_torchs_own_and_so_are_their_derivatives(slope, n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    for layer, theirs in (
        (double_backward.LeakyReLU(slope), nn.LeakyReLU(slope)),
        (double_backward.ReLU(), nn.ReLU()),
        (double_backward.AvgPool2x2(), nn.AvgPool2d(2)),
    ):
        found = []
        for each in (layer, theirs):
            y = each(weight * x.sin())
            (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            found.append((y, gradient, *torch.autograd.grad(gradient.square().sum(), [x, weight])))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "resolution"), [("dcgan", 16), ("sngan_convnet", 32), ("sngan_resnet", 64)])
def test_a_penalty_is_differentiated_without_a_pass_of_zeros(name, resolution):
    torch.manual_seed(0)
    _, energy = networks.make(name, resolution=resolution, channels=3, latent_dim=5, width=4)
    x = torch.randn(3, 3, resolution, resolution, requires_grad=True)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    # The gradient of a network of rectifiers is a product of its weights: only zeros would get to a bias.
    received = {key.split(".")[-1] for key, parameter in energy.named_parameters() if parameter.grad is not None}
    assert received == {"original"}
    assert all(p.grad.abs().max() > 0 for key, p in energy.named_parameters() if key.endswith("original"))


def test_a_rectifier_with_a_negative_slope_is_refused():
    with pytest.raises(ValueError, match=r"the slope below zero is -0\.1: choose zero or more"):
        double_backward.LeakyReLU(-0.1)


def test_a_unit_that_is_off_passes_nothing_on_and_an_odd_grid_is_refused():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(double_backward.ReLU()(x).sum() * float("inf"), x)
    assert gradient.tolist() == [0.0, float("inf")]
    with pytest.raises(ValueError, match="a grid of 5 x 4 pixels has no half"):
        double_backward.AvgPool2x2()(torch.zeros(1, 1, 5, 4))


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)
)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(4, 7), st.booleans(), st.integers(0, 2**31))
def test_a_convolution_and_its_derivatives_to_the_third_are_torchs(shape, size, with_bias, seed):
    n, channels, width, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64, requires_grad=True)

    x, weight = draw(n, channels, size, size), draw(width, channels, kernel, kernel)
    inputs = [x, weight, *([draw(width)] if with_bias else [])]
    bias = inputs[2] if with_bias else None
    found = []
    for y in (
        double_backward.convolve(x, weight, bias, stride, padding),
        F.conv2d(x, weight, bias, stride, padding),
    ):
        level = [y]
        for _ in range(3):
            # A square, so that each derivative depends on all the inputs again.
            scalar = sum(tensor.square().sum() for tensor in level)
            derivatives = torch.autograd.grad(scalar, inputs, create_graph=True)
            level = [y, *derivatives]
        found.append([y, *derivatives])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_convolution_keeps_the_precision_and_the_layout_that_torchs_has(layout, precision):
    torch.manual_seed(0)
    ours = double_backward.Conv2d(2, 3, 4, stride=2, padding=1).to(memory_format=layout)
    theirs = nn.Conv2d(2, 3, 4, stride=2, padding=1).to(memory_format=layout)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 8, 8).to(memory_format=layout)
    found = []
    for layer in (ours, theirs):
        with torch.autocast("cpu", dtype=precision, enabled=precision == torch.bfloat16):
            y = layer(x.requires_grad_(True))
        (gradient,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append([y, gradient, *(parameter.grad for parameter in layer.parameters())])
    # In bfloat16 a library may round a sum's parts before it adds them: by the largest of its numbers, not by each.
    rounding = torch.finfo(precision).eps if precision == torch.bfloat16 else 0.0
    for one, other in zip(*found, strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        atol = max(1e-5, rounding * other.detach().abs().max().item())
        torch.testing.assert_close(one, other, atol=atol, rtol=max(1.3e-6, rounding))


def test_a_penalty_asks_for_no_gradient_of_a_weight_until_its_own(monkeypatch):
    asked = []
    transposes = double_backward._transposes

    def noted(*arguments):
        asked.append(arguments[-1])
        return transposes(*arguments)

    monkeypatch.setattr(double_backward, "_transposes", noted)
    layer, x = double_backward.Conv2d(2, 3, 3), torch.randn(4, 2, 5, 5)
    penalty = R1()(lambda x: layer(x).sum((1, 2, 3)), x, x, torch.zeros(len(x)))
    assert asked == [(True, False, False)]
    penalty.backward()
    assert asked[1:] == [(False, True, False)] and layer.weight.grad.abs().max() > 0
    asked.clear()
    layer(x).square().sum().backward()
    assert asked == [(False, True, True)]
