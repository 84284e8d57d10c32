"""Conventions of networks from elsewhere: other latents than standard normal ones, other pixels, a discriminator.

A model's latents are standard normal, its images in [-1, 1] and its energy is low on data, for every sampler, penalty
and score. Networks that were trained with others say so where they are registered, and :func:`gebm.networks.make` puts
a map before and after each. Other latents become a function of standard normal ones that has their distribution,
the inverse of their distribution function after the normal one: the base that a chain sees maps standard normal
latents, its density and its support need no care, and no reflection at the border of a cube costs a sampler its order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["DISCRIMINATORS", "LATENTS", "Adapted", "Latents", "adapt", "inner"]


def _wide(x: Tensor) -> Tensor:
    """Return numbers in float32 or wider: in fewer digits the maps lose theirs, and torch has not all of them there."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _uniform(z: Tensor) -> Tensor:
    return torch.erf(z / math.sqrt(2))


# Probability of each tail of a normal distribution beyond two standard deviations, where the latents end.
_TAIL = float(torch.special.ndtr(torch.tensor(-2.0, dtype=torch.float64)))


def _truncated_normal(z: Tensor) -> Tensor:
    # From the lower tail, where a float has all its digits, and by symmetry above.
    lower = torch.special.ndtri(_TAIL + (1 - 2 * _TAIL) * torch.special.ndtr(-z.abs()))
    return torch.where(z < 0, lower, -lower)


def _unit_sphere(z: Tensor) -> Tensor:
    return z / z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)


def _sphere(z: Tensor) -> Tensor:
    return _unit_sphere(z) * math.sqrt(z.shape[1])


Latents = str | Callable[[Tensor], Tensor]
"""A name of :data:`LATENTS`, or a function from standard normal numbers (N, D) to latents (N, D)."""

LATENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda z: z,
    "uniform": _uniform,
    "truncated_normal": _truncated_normal,
    "sphere": _sphere,
    "unit_sphere": _unit_sphere,
}
"""Distributions of latents, each by its map from standard normal ones: uniform on [-1, 1], normal within two standard
deviations, and uniform on the sphere of radius the root of the dimension, or one."""


def _minus_logit(y: Tensor) -> Tensor:
    p, limits = y.reshape(len(y), -1), torch.finfo(y.dtype)
    # Zero and one would have infinite energies, and numbers below the normal ones infinite slopes.
    p = p.masked_fill(p < limits.tiny, limits.tiny).masked_fill(p >= 1, 1 - limits.eps / 2)
    return torch.log1p(-p) - p.log()


DISCRIMINATORS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "logit": lambda y: -y.reshape(len(y), -1),
    "probability": _minus_logit,
}
"""What the second network of a pair returns, each with its map to an energy: an energy, or of a discriminator the logit
or the probability that a sample is of the data."""


class Adapted(nn.Module):
    """A network between a map of what goes into it and one of what comes out, both in float32 or wider.

    Args:
        network: The network.
        before: Map of its inputs.
        after: Map of its outputs.

    Example:
        >>> Adapted(nn.Identity(), LATENTS["uniform"], lambda x: 2 * x)(torch.zeros(1, 2))
        tensor([[0., 0.]])
    """

    def __init__(
        self, network: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, ...) to outputs (N, ...), float32 or wider; the network's inputs have the type of ``x``."""
        return self.after(_wide(self.network(self.before(_wide(x)).to(x.dtype))))


class _Scaled:
    """Affine map from one interval to another."""

    def __init__(self, source: tuple[float, float], target: tuple[float, float]) -> None:
        self.factor = (target[1] - target[0]) / (source[1] - source[0])
        self.shift = target[0] - self.factor * source[0]

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * x + self.shift


_OURS = (-1.0, 1.0)


def adapt(
    base: nn.Module,
    energy: nn.Module,
    latents: Latents = "normal",
    pixels: tuple[float, float] = _OURS,
    discriminator: str | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Return a pair for standard normal latents and pixels in [-1, 1]; as it is where those are its own.

    Args:
        base: Maps latents to samples.
        energy: Maps samples to energies.
        latents: Distribution of the latents that the base was trained with.
        pixels: Interval of the pixels that both were trained with.
        discriminator: Key of :data:`DISCRIMINATORS`, if the second is no energy.

    Raises:
        ValueError: If there are no such latents or discriminators, or the interval is none.

    Example:
        >>> base, energy = adapt(nn.Sigmoid(), nn.Identity(), "uniform", (0.0, 1.0))
        >>> base(torch.zeros(1, 2)), energy(torch.ones(1, 2))
        (tensor([[0., 0.]]), tensor([[1., 1.]]))
    """
    if isinstance(latents, str) and latents not in LATENTS:
        raise ValueError(f"latents={latents}: choose one of {', '.join(LATENTS)}, or give a function of normal ones")
    low, high = (float(end) for end in pixels)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"pixels={pixels}: give an interval, such as (0.0, 1.0)")
    if discriminator not in DISCRIMINATORS:
        raise ValueError(
            f"discriminator={discriminator}: it returns a logit or a probability; an energy is no such one"
        )
    is_ours, is_normal = (low, high) == _OURS, latents == "normal"
    before = LATENTS[latents] if isinstance(latents, str) else latents
    if not (is_ours and is_normal):
        base = Adapted(base, before, LATENTS["normal"] if is_ours else _Scaled((low, high), _OURS))
    if not is_ours or discriminator is not None:
        scale = LATENTS["normal"] if is_ours else _Scaled(_OURS, (low, high))
        energy = Adapted(energy, scale, DISCRIMINATORS[discriminator])
    return base, energy


def inner(network: nn.Module) -> nn.Module:
    """Return the network that :func:`adapt` was given.

    Example:
        >>> base, _ = adapt(nn.Sigmoid(), nn.Identity(), "uniform")
        >>> inner(base), inner(nn.Tanh())
        (Sigmoid(), Tanh())
    """
    return network.network if isinstance(network, Adapted) else network
