"""The reference that speed is measured against: the same algorithm in plain float32, as one writes it at first.

Algorithms 1 and 2 of Arbel, Zhou and Gretton (ICLR 2021) on the same networks and with the same modes as
:mod:`gebm.training`, and nothing done for speed:

- a ResNet doubles the grid and then convolves, or convolves and then averages;
- layers are torch's own, so that the penalty's second derivative goes down the network once more than it need;
- every forward of the energy normalizes its weights anew, three times in an energy step;
- data and base samples go through the energy in two forwards;
- a base step evaluates the whole KALE, data included, whose gradient with respect to the base is zero, and the energy's
  parameters receive gradients that are never read;
- a step of the chain is one ordinary backward pass, which differentiates all parameters in addition to the latents;
- everything is in float32, and images lie in memory channel by channel.

Nothing is done against speed either: what does not need a graph has none, and no value is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from gebm.networks.double_backward import AvgPool2x2, Conv2d, LeakyReLU, ReLU
from gebm.networks.layers import DownsampleConv2d, UpsampleConv2d

__all__ = ["PlainTrainer", "bounded", "literal", "ula"]


def literal(network: nn.Module) -> nn.Module:
    """Return the network with each layer computed as one writes it: changed in place, its weights the same."""
    for layer in network.modules():
        forward = _literal_forward(layer)
        if forward is not None:
            layer.forward = forward
    return network


def _literal_forward(layer: nn.Module) -> Callable[..., Tensor] | None:
    """Return the forward of a layer as one writes it, or ``None`` if it is so already."""
    if isinstance(layer, DownsampleConv2d):
        return partial(_halve_after, layer)
    if isinstance(layer, UpsampleConv2d):
        return partial(_double_before, layer)
    if isinstance(layer, Conv2d):
        return partial(nn.Conv2d.forward, layer)
    if isinstance(layer, AvgPool2x2):
        return partial(F.avg_pool2d, kernel_size=2)
    if isinstance(layer, LeakyReLU):
        return partial(F.leaky_relu, negative_slope=layer.negative_slope)
    return F.relu if isinstance(layer, ReLU) else None


def _halve_after(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)


def _double_before(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)


Draw = Callable[[int, torch.Generator], Tensor]


def bounded(energy: nn.Module, x: Tensor, floor: float = -10.0) -> Tensor:
    """Return energies (N,) of samples (N, C, H, W), no lower than the floor."""
    return energy(x).flatten().clamp(min=floor)


def ula(
    base: nn.Module,
    energy: nn.Module,
    z: Tensor,
    num_steps: int,
    *,
    step_size: float,
    beta: float,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Run unadjusted Langevin chains on latent space, ``z' = z - h grad U(z) + sqrt(2h) xi``.

    Their potential is that of ``N(0, I)`` reweighted, ``U(z) = beta E(B(z)) + ||z||^2 / 2``.

    Args:
        base: Maps latents (N, D) to images (N, C, H, W).
        energy: Maps images to (N, 1).
        z: Starting positions (N, D).
        num_steps: Steps of each chain.
        step_size: The step ``h``.
        beta: Inverse temperature.
        noise: Gives ``xi`` (N, D) for positions (N, D).

    Returns:
        Last positions (N, D).
    """
    base.eval()
    energy.eval()
    for _ in range(num_steps):
        z = z.detach().requires_grad_(True)
        potential = beta * bounded(energy, base(z)) + z.square().sum(1) / 2
        base.zero_grad()
        energy.zero_grad()
        potential.sum().backward()
        assert z.grad is not None
        z = z.detach() - step_size * z.grad + math.sqrt(2 * step_size) * noise(z)
    return z


class PlainTrainer:
    """KALE in Fenchel's form, energy steps and base steps in turn.

    Args:
        base: Maps latents (N, D) to images (N, C, H, W).
        energy: Maps images to (N, 1).
        latent_dim: Latent dimension ``D``.
        lr: Learning rate of both parts.
        energy_steps: Energy steps per base step, at least 1.
        penalty: Weight of the gradient penalty.
        draw_latents: Gives latents (n, D) for their number and a generator (default: ``torch.randn``).
    """

    def __init__(
        self,
        base: nn.Module,
        energy: nn.Module,
        latent_dim: int,
        *,
        lr: float = 1e-4,
        energy_steps: int = 5,
        penalty: float = 1.0,
        draw_latents: Draw | None = None,
    ) -> None:
        self.base = literal(base).to(memory_format=torch.contiguous_format)
        self.energy = literal(energy).to(memory_format=torch.contiguous_format)
        self.log_partition = nn.Parameter(torch.zeros((), device=next(base.parameters()).device))
        self.energy_steps = energy_steps
        self.penalty = penalty
        self.energy_optimizer = Adam([*energy.parameters(), self.log_partition], lr=lr, betas=(0.5, 0.999))
        self.base_optimizer = Adam(base.parameters(), lr=lr, betas=(0.5, 0.999))
        self._latent_dim = latent_dim
        self._draw_latents = draw_latents or self._normal

    def step(self, batches: Iterator[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Take the energy steps, then one base step.

        Args:
            batches: Yields images (N, C, H, W).
            generator: Source of every random number, on the networks' device.

        Returns:
            The loss of the last energy step, penalty included, and that of the base step, without the part of it that
            no base changes: two scalars.
        """
        for _ in range(self.energy_steps - 1):
            self.step_energy(next(batches), generator)
        x_data = next(batches)
        return self.step_energy(x_data, generator), self.step_base(x_data, generator)

    def step_energy(self, x_data: Tensor, generator: torch.Generator) -> Tensor:
        """Train the energy on images (N, C, H, W) against N base samples, and return the loss, a scalar."""
        self.base.eval()
        self.energy.train()
        with torch.no_grad():
            x_base = self.base(self._draw_latents(len(x_data), generator))
        energy_data, energy_base = bounded(self.energy, x_data), bounded(self.energy, x_base)
        fenchel = (energy_data + self.log_partition).mean() + (-(energy_base + self.log_partition)).exp().mean() - 1
        loss = fenchel + self.penalty * self._squared_gradient(x_data, x_base, generator)
        self.energy_optimizer.zero_grad()
        loss.backward()
        self.energy_optimizer.step()
        return loss.detach()

    def step_base(self, x_data: Tensor, generator: torch.Generator) -> Tensor:
        """Train the base on KALE, which images (N, C, H, W) enter, and return the base's part of it, a scalar."""
        self.base.train()
        self.energy.eval()
        energy_base = bounded(self.energy, self.base(self._draw_latents(len(x_data), generator)))
        base_part = math.log(len(x_data)) - torch.logsumexp(-energy_base, 0)
        kale = base_part - bounded(self.energy, x_data).mean()
        self.base_optimizer.zero_grad()
        kale.backward()
        self.base_optimizer.step()
        return base_part.detach()

    def _squared_gradient(self, x_data: Tensor, x_base: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.rand(len(x_data), generator=generator, device=x_data.device).view(-1, 1, 1, 1)
        x = (t * x_data + (1 - t) * x_base).requires_grad_(True)
        (gradient,) = torch.autograd.grad(bounded(self.energy, x).sum(), x, create_graph=True)
        return gradient.flatten(1).square().sum(1).mean()

    def _normal(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self._latent_dim, generator=generator, device=generator.device)
