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
    """The energy: two hidden layers with SiLU, spectrally normalized by default.

    Args:
        dim: Dimension of the data.
        width: Hidden units per layer.
        normalized: Whether the layers are spectrally normalized, which bounds how steep the energy is. Without, the
            last layer starts at zero: on a base that is already good, the energy starts from the base.

    Example:
        >>> import torch
        >>> MLPEnergy(dim=3, width=8)(torch.zeros(4, 3)).shape
        torch.Size([4, 1])
    """

    def __init__(self, dim: int, width: int = 64, normalized: bool = True) -> None:
        layers = [nn.Linear(dim, width), nn.Linear(width, width), nn.Linear(width, 1)]
        if normalized:
            layers = [spectral_norm(layer) for layer in layers]
        else:
            nn.init.zeros_(layers[-1].weight)
            nn.init.zeros_(layers[-1].bias)
        super().__init__(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])


def make(
    resolution: int, channels: int, latent_dim: int, width: int = 64, energy: str | None = None
) -> tuple[MLPBase, MLPEnergy]:
    """Build both for vectors of ``channels`` entries; see :func:`gebm.networks.make`."""
    if energy not in (None, "mlp"):
        raise ValueError(f"energy={energy}, offset=0.0: mlp has an energy of its own; leave both out")
    return MLPBase(latent_dim, channels, width), MLPEnergy(channels, width, normalized=energy is None)
