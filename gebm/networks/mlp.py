"""Multilayer perceptrons, for data that are vectors.

Activations are smooth, so that samplers which follow the energy's gradient meet no kinks.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["MLPBase", "MLPEnergy", "make"]


class MLPBase(nn.Sequential):
    """The base: two hidden layers with SiLU, and a linear output, not confined to [-1, 1].

    Args:
        latent_dim: Latent dimension ``D``.
        dim: Dimension of the data.
        width: Hidden units per layer.

    Example:
        >>> import torch
        >>> MLPBase(latent_dim=2, dim=3, width=8)(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, latent_dim: int, dim: int, width: int = 64) -> None:
        super().__init__(
            nn.Linear(latent_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dim),
        )


class MLPEnergy(nn.Sequential):
    """The energy: two hidden layers with SiLU, spectrally normalised.

    Args:
        dim: Dimension of the data.
        width: Hidden units per layer.

    Example:
        >>> import torch
        >>> MLPEnergy(dim=3, width=8)(torch.zeros(4, 3)).shape
        torch.Size([4, 1])
    """

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__(
            spectral_norm(nn.Linear(dim, width)),
            nn.SiLU(),
            spectral_norm(nn.Linear(width, width)),
            nn.SiLU(),
            spectral_norm(nn.Linear(width, 1)),
        )


def make(resolution: int, channels: int, latent_dim: int, width: int = 64) -> tuple[MLPBase, MLPEnergy]:
    """Build both for vectors of ``channels`` entries; see :func:`gebm.networks.make`."""
    return MLPBase(latent_dim, channels, width), MLPEnergy(channels, width)
