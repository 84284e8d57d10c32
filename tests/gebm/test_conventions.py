"""Latents of other distributions, and pixels in other intervals: for the samplers both are what they always are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gebm import GEBM, StandardNormal, folded, networks, samplers
from gebm.networks.conventions import DISCRIMINATORS, LATENTS, adapt

N = 20_000


def latents(name, dim=3):
    return LATENTS[name](torch.randn(N, dim, generator=torch.Generator().manual_seed(0)))


def distance(values, cumulative):
    """The Kolmogorov-Smirnov distance of values and a distribution function."""
    values = values.flatten().double().sort().values
    steps = torch.arange(1, len(values) + 1) / len(values)
    return float((steps - cumulative(values)).abs().max())


def test_uniform_latents_are_uniform():
    assert distance(latents("uniform"), lambda u: (u + 1) / 2) < 0.01


def test_truncated_latents_are_normal_within_two():
    values, tail = latents("truncated_normal"), torch.special.ndtr(torch.tensor(-2.0))
    assert values.abs().max() < 2
    assert distance(values, lambda u: (torch.special.ndtr(u) - tail) / (1 - 2 * tail)) < 0.01


@pytest.mark.parametrize(("name", "radius"), [("sphere", math.sqrt(3)), ("unit_sphere", 1.0)])
def test_latents_on_a_sphere_are_uniform_on_it(name, radius):
    values = latents(name)
    assert torch.allclose(values.norm(dim=1), torch.full((N,), radius), rtol=1e-5)
    # Each coordinate of a uniform point on the sphere in three dimensions is uniform.
    assert distance(values, lambda u: (u / radius + 1) / 2) < 0.01


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_latents_and_their_gradient_are_finite_wherever_a_chain_goes(name, scale):
    z = (scale * torch.randn(64, 4)).requires_grad_()
    values = LATENTS[name](z)
    [gradient] = torch.autograd.grad(values.sum(), z)
    # At the origin a direction is none, and no chain is there.
    assert values.isfinite().all() and (gradient.isfinite().all() or (scale == 0 and "sphere" in name))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LATENTS)
def test_a_folded_model_samples_in_any_precision_from_any_latents(name, precision):
    torch.manual_seed(0)
    base, energy = adapt(*networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=4), name, (0.0, 1.0))
    model = GEBM(base, energy, StandardNormal(4)).eval()
    z = StandardNormal(4).sample(16, torch.Generator().manual_seed(1))
    exact, ours = folded(model, torch.float64), folded(model, precision)
    values, expected = (samplers.value_and_gradient(one.potential, z) for one in (ours, exact))
    tolerance = 0.05 if precision == torch.bfloat16 else 1e-4
    for value, right in zip(values, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(p=st.floats(-100, 0).map(lambda power: 2.0**power) | st.floats(1, 24).map(lambda power: 1 - 2.0**-power))
def test_a_probabilitys_energy_has_the_right_value_and_slope_however_certain_it_is(p):
    y = torch.tensor([[p]], requires_grad=True)
    rounded = float(y.detach())
    energy = DISCRIMINATORS["probability"](y)
    [slope] = torch.autograd.grad(energy.sum(), y)
    inside = min(rounded, 1 - 2.0**-24)
    assert energy.item() == pytest.approx(math.log1p(-inside) - math.log(inside), rel=1e-5, abs=1e-6)
    assert slope.item() == pytest.approx(-1 / (rounded * (1 - rounded)) if rounded < 1 else 0.0, rel=1e-5)


def test_probabilities_of_zero_and_one_have_finite_energies():
    y = torch.tensor([[0.0], [1e-42], [1.0]], requires_grad=True)
    energy = DISCRIMINATORS["probability"](y)
    [slope] = torch.autograd.grad(energy.sum(), y)
    assert energy.isfinite().all() and slope.isfinite().all() and energy[0] > 80 and energy[2] < -16


def test_a_chain_has_the_distribution_of_the_model_on_uniform_latents():
    """On the model ``exp(-x)`` of x uniform on [-1, 1], of which the mean is known."""

    class First(nn.Module):
        def forward(self, x):
            return x[:, :1]

    base, energy = adapt(nn.Identity(), First(), "uniform")
    model = GEBM(base, energy, StandardNormal(1))
    samples = model.sample(4000, samplers.make("mala", step_size=0.8), 40, generator=torch.Generator().manual_seed(0))
    expected = -(math.cosh(1) / math.sinh(1) - 1)
    assert abs(float(samples.mean()) - expected) < 0.03 and samples.abs().max() <= 1


def test_pixels_of_both_are_scaled():
    base, energy = adapt(nn.Sigmoid(), nn.Identity(), pixels=(0.0, 255.0))
    x = torch.tensor([[-1.0, 0.0, 1.0]])
    assert torch.equal(energy(x), torch.tensor([[0.0, 127.5, 255.0]]))
    assert torch.allclose(energy(base(x)), nn.Sigmoid()(x), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "output"),
    [("logit", nn.Identity()), ("probability", nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (1, 1))))],
)
def test_an_energy_is_minus_the_logit_of_a_discriminator(kind, output):
    logit = torch.tensor([[-2.0], [0.5], [3.0]])
    _, energy = adapt(nn.Identity(), output, discriminator=kind)
    assert torch.allclose(energy(logit), -logit, atol=1e-4)


def test_a_registered_family_says_both(monkeypatch):
    monkeypatch.setattr(networks.NAMES, "_parts", dict(networks.NAMES._parts))

    @networks.register("foreign", tasks=("points",), latents="uniform", pixels=(0.0, 1.0))
    def foreign(channels: int, latent_dim: int):
        return nn.Sequential(nn.Linear(latent_dim, channels), nn.Sigmoid()), nn.Linear(channels, 1)

    base, energy = networks.make("foreign", resolution=0, channels=2, latent_dim=3)
    z = torch.randn(5, 3)
    own_base, own_energy = networks.conventions.inner(base), networks.conventions.inner(energy)
    x = own_base(LATENTS["uniform"](z))
    assert torch.allclose(base(z), 2 * x - 1) and torch.allclose(energy(base(z)), own_energy(x), atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"latents": "gamma"}, {"pixels": (1.0, 1.0)}, {"pixels": (0.0, math.inf)}, {"discriminator": "score"}]
)
def test_what_is_no_convention_is_refused(arguments):
    with pytest.raises(ValueError, match=r"latents=gamma: choose one of normal|give an interval|it returns a logit"):
        adapt(nn.Identity(), nn.Identity(), **arguments)
