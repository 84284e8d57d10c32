"""DCGAN (Radford, Metz and Chintala 2016), for small images.

A stack of strided convolutions with a 4x4 grid at its narrow end, channels doubling as the grid halves. Two departures:
a 3x3 convolution works at full resolution on either side, so that even 8x8 images see more than one layer; and the
energy is spectrally instead of batch-normalized, since an energy is a function of one sample, not of its batch.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gebm.networks.double_backward import Conv2d, LeakyReLU
from gebm.networks.layers import BatchNorm2d, TanhFloat32, num_upsamplings

__all__ = ["DCGANBase", "DCGANEnergy", "make"]


class DCGANBase(nn.Sequential):
    """The base: linear to 4x4, then transposed 4x4 convolutions of stride 2, batch norm and ReLU between.

    Args:
        resolution: Pixels on a side: 8, 16, 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        width: Channels at the full resolution, doubled per halving.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> DCGANBase(16, channels=3, latent_dim=8, width=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, resolution: int, channels: int, latent_dim: int, width: int = 64) -> None:
        stages = num_upsamplings(resolution, smallest=8, family="dcgan")
        widths = [width * 2**stage for stage in range(stages, -1, -1)]
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, widths[0] * 16),
            nn.Unflatten(1, (widths[0], 4, 4)),
            BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for wide, narrow in pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), BatchNorm2d(narrow), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, channels, 3, padding=1), TanhFloat32())
        for layer in self:
            _initialize(layer)


class DCGANEnergy(nn.Sequential):
    """The energy: 4x4 convolutions of stride 2 down to 4x4, LeakyReLU(0.2), linear to 1, spectrally normalized.

    Args:
        resolution: Pixels on a side: 8, 16, 32, 64 or 128.
        channels: Color channels.
        width: Channels at the full resolution, doubled per halving.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> DCGANEnergy(16, channels=3, width=4)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 1])
    """

    def __init__(self, resolution: int, channels: int, width: int = 64) -> None:
        stages = num_upsamplings(resolution, smallest=8, family="dcgan")
        widths = [width * 2**stage for stage in range(stages + 1)]
        layers: list[nn.Module] = [spectral_norm(_initialize(Conv2d(channels, width, 3, padding=1)))]
        for narrow, wide in pairwise(widths):
            layers += [LeakyReLU(0.2), spectral_norm(_initialize(Conv2d(narrow, wide, 4, stride=2, padding=1)))]
        linear = spectral_norm(_initialize(nn.Linear(widths[-1] * 16, 1)))
        super().__init__(*layers, LeakyReLU(0.2), nn.Flatten(), linear)


def make(resolution: int, channels: int, latent_dim: int, width: int = 64) -> tuple[DCGANBase, DCGANEnergy]:
    """Build both; see :func:`gebm.networks.make`."""
    return DCGANBase(resolution, channels, latent_dim, width), DCGANEnergy(resolution, channels, width)


def _initialize(layer: nn.Module) -> nn.Module:
    """Draw weights from N(0, 0.02^2), as both DCGAN and SNGAN's ConvNet do."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer
