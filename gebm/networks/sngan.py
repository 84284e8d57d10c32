"""SNGAN (Miyato et al. 2018), the ConvNet and the ResNet, as Arbel, Zhou and Gretton (ICLR 2021) use them at 32x32.

The published layouts end at 32x32 (and 48x48, from a 6x6 grid). At 64 and 128 a stage is added per doubling, at the
4x4 end: the ConvNet's has twice the channels of the stage above, but no more than 16 times the width (1024), which is
where published ResNets of these resolutions stop too; the ResNet's has the width that all its blocks have.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gebm.networks.double_backward import AvgPool2x2, Conv2d, LeakyReLU, ReLU
from gebm.networks.layers import BatchNorm2d, DownsampleConv2d, TanhFloat32, UpsampleConv2d, num_upsamplings, xavier

__all__ = [
    "ConvNetBase",
    "ConvNetEnergy",
    "DownBlock",
    "ResNetBase",
    "ResNetEnergy",
    "UpBlock",
    "make_convnet",
    "make_resnet",
]


class ConvNetBase(nn.Sequential):
    """The ConvNet's base: linear to 512x4x4, transposed 4x4 convolutions 512-256-128-64, 3x3 to colors, tanh.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        width: Channels at the full resolution.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ConvNetBase(32, channels=3, latent_dim=8, width=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, resolution: int, channels: int, latent_dim: int, width: int = 64) -> None:
        widths = _convnet_widths(resolution, width)[::-1]
        layers: list[nn.Module] = [
            _normal(nn.Linear(latent_dim, widths[0] * 16)),
            nn.Unflatten(1, (widths[0], 4, 4)),
            BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for wide, narrow in pairwise(widths):
            upsampling = _normal(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
            layers += [upsampling, BatchNorm2d(narrow), nn.ReLU()]
        super().__init__(*layers, _normal(nn.Conv2d(width, channels, 3, padding=1)), TanhFloat32())


class ConvNetEnergy(nn.Sequential):
    """The ConvNet's energy: 3x3 and 4x4 stride-2 convolutions in turn, 64-128-128-256-256-512-512, linear to 1.

    Every layer is spectrally normalized; LeakyReLU(0.1) between.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        width: Channels at the full resolution.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ConvNetEnergy(32, channels=3, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    def __init__(self, resolution: int, channels: int, width: int = 64) -> None:
        widths = _convnet_widths(resolution, width)
        layers: list[nn.Module] = [spectral_norm(_normal(Conv2d(channels, width, 3, padding=1))), LeakyReLU(0.1)]
        for narrow, wide in pairwise(widths):
            layers += [
                spectral_norm(_normal(Conv2d(narrow, wide, 4, stride=2, padding=1))),
                LeakyReLU(0.1),
                spectral_norm(_normal(Conv2d(wide, wide, 3, padding=1))),
                LeakyReLU(0.1),
            ]
        super().__init__(*layers, nn.Flatten(), spectral_norm(_normal(nn.Linear(widths[-1] * 16, 1))))


class UpBlock(nn.Module):
    """A residual block of the base that doubles the grid: BN, ReLU, up, 3x3, BN, ReLU, 3x3; shortcut 1x1, up.

    Args:
        width: Channels in and out.

    Example:
        >>> import torch
        >>> UpBlock(4)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 4, 16, 16])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            BatchNorm2d(width),
            nn.ReLU(),
            xavier(UpsampleConv2d(width, width)),
            BatchNorm2d(width),
            nn.ReLU(),
            xavier(nn.Conv2d(width, width, 3, padding=1)),
        )
        # A 1x1 convolution commutes with repetition, and costs a quarter before it.
        self.shortcut = nn.Sequential(xavier(nn.Conv2d(width, width, 1), math.sqrt(2)), nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, width, 2H, 2W)."""
        return self.residual(x) + self.shortcut(x)


class DownBlock(nn.Module):
    """A residual block of the energy: ReLU, 3x3, ReLU, 3x3, spectrally normalized, and half the grid if so asked.

    Args:
        channels: Channels in.
        width: Channels out.
        halve: Whether to halve the grid by averaging. A block that neither halves nor widens has the identity as its
            shortcut, otherwise a 1x1 convolution.
        first: Whether ``x`` is an image, of which a ReLU would throw the dark half away.

    Example:
        >>> import torch
        >>> DownBlock(3, 4, halve=True, first=True)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(self, channels: int, width: int, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *[] if first else [ReLU()],
            spectral_norm(xavier(Conv2d(channels, width, 3, padding=1))),
            ReLU(),
            spectral_norm(xavier(DownsampleConv2d(width, width) if halve else Conv2d(width, width, 3, padding=1))),
        )
        self.shortcut = (
            spectral_norm(xavier(Conv2d(channels, width, 1), math.sqrt(2)))
            if halve or channels != width
            else nn.Identity()
        )
        self.pool = AvgPool2x2() if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H, W), or half of H and W."""
        # A 1x1 convolution commutes with averaging, and costs a quarter after it.
        return self.residual(x) + self.shortcut(self.pool(x))


class ResNetBase(nn.Sequential):
    """The ResNet's base: linear to 128x4x4, up-sampling blocks of 128, BN, ReLU, 3x3 to colors, tanh.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        width: Channels of every block.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ResNetBase(32, channels=3, latent_dim=8, width=4)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, resolution: int, channels: int, latent_dim: int, width: int = 128) -> None:
        stages = num_upsamplings(resolution, smallest=32, family="sngan_resnet")
        super().__init__(
            xavier(nn.Linear(latent_dim, width * 16)),
            nn.Unflatten(1, (width, 4, 4)),
            *[UpBlock(width) for _ in range(stages)],
            BatchNorm2d(width),
            nn.ReLU(),
            xavier(nn.Conv2d(width, channels, 3, padding=1)),
            TanhFloat32(),
        )


class ResNetEnergy(nn.Sequential):
    """The ResNet's energy: two down-sampling blocks of 128, two plain ones, ReLU, global average, linear to 1.

    Args:
        resolution: Pixels on a side: 32, 64 or 128; each doubling adds a down-sampling block.
        channels: Color channels.
        width: Channels of every block.

    Raises:
        ValueError: If there is no such resolution.

    Example:
        >>> import torch
        >>> ResNetEnergy(32, channels=3, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    def __init__(self, resolution: int, channels: int, width: int = 128) -> None:
        halvings = num_upsamplings(resolution, smallest=32, family="sngan_resnet") - 1
        super().__init__(
            DownBlock(channels, width, halve=True, first=True),
            *[DownBlock(width, width, halve=True) for _ in range(halvings - 1)],
            *[DownBlock(width, width, halve=False) for _ in range(2)],
            ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            spectral_norm(xavier(nn.Linear(width, 1))),
        )


def make_convnet(resolution: int, channels: int, latent_dim: int, width: int = 64) -> tuple[ConvNetBase, ConvNetEnergy]:
    """Build the ConvNet's base and energy; see :func:`gebm.networks.make`."""
    return ConvNetBase(resolution, channels, latent_dim, width), ConvNetEnergy(resolution, channels, width)


def make_resnet(resolution: int, channels: int, latent_dim: int, width: int = 128) -> tuple[ResNetBase, ResNetEnergy]:
    """Build the ResNet's base and energy; see :func:`gebm.networks.make`."""
    return ResNetBase(resolution, channels, latent_dim, width), ResNetEnergy(resolution, channels, width)


def _convnet_widths(resolution: int, width: int) -> list[int]:
    """Return the channels at each grid, from the full resolution down to 4x4."""
    stages = num_upsamplings(resolution, smallest=32, family="sngan_convnet")
    return [width * min(2**stage, 16) for stage in range(stages + 1)]


def _normal(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """Draw weights from N(0, 0.02^2)."""
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
