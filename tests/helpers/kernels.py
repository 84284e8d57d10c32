"""A Gaussian, a prior and one of each kernel, that the tests of samplers share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gebm import samplers

__all__ = [
    "KERNELS",
    "LinearPosterior",
    "MEAN",
    "Normal",
    "PRECISION",
    "every_kernel",
    "gaussian_potential",
    "normal",
    "rng",
]

MEAN = torch.tensor([0.5, -1.0, 0.2])

PRECISION = torch.tensor([[2.0, 0.6, -0.3], [0.6, 1.5, 0.4], [-0.3, 0.4, 1.0]])


class Normal:
    """A latent prior N(0, scale^2 I)."""

    def __init__(self, dim: int = 3, scale: float = 1.0):
        self.dim, self.scale = dim, scale

    def from_noise(self, noise):
        return self.scale * noise

    def sample(self, n, generator):
        noise, key = samplers.philox, samplers.philox.draw_key(generator, "cpu")
        return self.from_noise(noise.normal(key, torch.arange(n), self.dim))

    def log_prob(self, z):
        return -(z / self.scale).square().sum(1) / 2


def gaussian_potential(z: Tensor) -> Tensor:
    centered = z - MEAN.to(z)
    return (centered @ PRECISION.to(z) * centered).sum(1) / 2


class LinearPosterior(nn.Module):
    """Linear base x = W z + b and energy (x - m)' Q (x - m) / 2: the latent posterior is Gaussian."""

    def __init__(self, beta: float):
        super().__init__()
        g = rng(7)
        self.base = nn.Linear(3, 4)
        with torch.no_grad():
            self.base.weight.copy_(0.5 * torch.randn(4, 3, generator=g))
            self.base.bias.copy_(0.3 * torch.randn(4, generator=g))
        root = torch.randn(4, 4, generator=g) / 2
        self.q = root @ root.T + 0.2 * torch.eye(4)
        self.m = torch.randn(4, generator=g)
        self.beta = beta

    def forward(self, z):
        x = self.base(z) - self.m
        return z.square().sum(1) / 2 + self.beta * (x @ self.q * x).sum(1) / 2

    def moments(self) -> tuple[Tensor, Tensor]:
        w, b = self.base.weight.detach().double(), self.base.bias.detach().double()
        q, m = self.q.double(), self.m.double()
        covariance = torch.linalg.inv(torch.eye(3, dtype=torch.float64) + self.beta * w.T @ q @ w)
        return covariance @ (self.beta * w.T @ q @ (m - b)), covariance


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=rng(seed))


def every_kernel() -> dict[str, samplers.Kernel]:
    """One of each, with schedules and random velocities where there are any."""
    schedule = samplers.StepDecay(factor=0.5, every=3)
    common = {"schedule": schedule, "prior": Normal(), "friction": 2.0, "num_leapfrog_steps": 3}
    kernels = {name: samplers.make(name, step_size=0.2, **common) for name in samplers.NAMES}
    kernels["kla, normal"] = samplers.KineticLangevin(0.2, 2.0, schedule, initial_velocity="normal")
    kernels["hmc, mass"] = samplers.HMC(0.2, 3, inverse_mass=(1.0, 0.5, 2.0))
    kernels["mala, mass"] = samplers.MALA(0.2, inverse_mass=(1.0, 0.5, 2.0))
    for inner in ("hmc", "rwm"):
        kernels[f"tempering, {inner}"] = samplers.make("tempering", kernel=inner, step_size=0.2, **common)
    return kernels


KERNELS = pytest.mark.parametrize("kernel", every_kernel().values(), ids=every_kernel().keys())
