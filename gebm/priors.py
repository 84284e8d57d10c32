"""Priors of the latents that a base maps to samples."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from gebm import samplers
from gebm.inputs import as_count

__all__ = ["LatentPrior", "StandardNormal"]


class LatentPrior(samplers.Prior, Protocol):
    """A latent prior as the model needs it: a module with the methods of :class:`StandardNormal`."""

    @property
    def dim(self) -> int:
        """Latent dimension ``D``."""
        ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (n, D)."""
        ...


class StandardNormal(nn.Module):
    """The prior ``N(0, I)`` on latent space.

    Args:
        dim: Latent dimension ``D``.

    Example:
        >>> prior = StandardNormal(3)
        >>> prior.log_prob(prior.sample(5)).shape
        torch.Size([5])
    """

    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim = as_count("the latent dimension", dim)
        # It follows the model from device to device; being zero, it need not be in a checkpoint.
        self.register_buffer("mean", torch.zeros(dim), persistent=False)

    def extra_repr(self) -> str:
        """Return the settings that ``repr`` shows."""
        return f"dim={self.dim}"

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density, normalizing constant included.

        Args:
            z: Latents (N, D).

        Returns:
            Log-densities (N,), in nats.
        """
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Map standard normal noise to latents: here they are the same.

        Args:
            noise: Standard normal numbers (N, D).

        Returns:
            Latents (N, D).

        Raises:
            ValueError: If the noise is not of this dimension.
        """
        if noise.shape[-1] != self.dim:
            raise ValueError(f"the prior has {self.dim} dimensions, but the noise is {tuple(noise.shape)}")
        return noise

    def sample(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """Draw latents.

        Args:
            n: Number of latents.
            generator: Source of every random number, on any device (default: torch's global one). One number is taken
                from it, whatever ``n`` is (see :mod:`gebm.samplers.philox`).
            device: Device of the result (default: the prior's).

        Returns:
            Latents (n, D), of the model's type. The first are the same for any ``n``.
        """
        device = self.mean.device if device is None else torch.device(device)
        chain = torch.arange(as_count("n", n, minimum=0), device=device)
        key, dtype = samplers.philox.draw_key(generator, device), samplers.wide(self.mean.dtype)
        return self.from_noise(samplers.philox.normal(key, chain, self.dim, dtype=dtype).to(self.mean.dtype))
