"""SNGAN ResNet of classes: conditional batch norm in the base, projection in the energy.

Miyato and Koyama, *cGANs with projection discriminator*, ICLR 2018. The layouts are those of
:mod:`gebm.networks.sngan`.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from gebm.networks.conditional import (
    ConditionalBase,
    ConditionalBatchNorm2d,
    ConditionalEnergy,
    normalized_embedding,
)
from gebm.networks.layers import BatchNorm2d, TanhFloat32, UpsampleConv2d, num_upsamplings, xavier
from gebm.networks.sngan import ResNetEnergy

__all__ = ["ConditionalResNetBase", "ConditionalUpBlock", "ProjectionEnergy", "make"]


class ConditionalUpBlock(nn.Module):
    """The residual block of :class:`gebm.networks.sngan.UpBlock`, with batch norm by class.

    Args:
        width: Channels in and out.
        num_classes: ``K``.

    Example:
        >>> import torch
        >>> ConditionalUpBlock(4, num_classes=3)(torch.zeros(2, 4, 8, 8), torch.eye(3)[:2]).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm2d(width, num_classes)
        self.conv1 = xavier(UpsampleConv2d(width, width))
        self.norm2 = ConditionalBatchNorm2d(width, num_classes)
        self.conv2 = xavier(nn.Conv2d(width, width, 3, padding=1))
        # A 1x1 convolution commutes with repetition, and costs a quarter before it.
        self.shortcut = nn.Sequential(xavier(nn.Conv2d(width, width, 1), math.sqrt(2)), nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Map (N, width, H, W) and classes (N, K) to (N, width, 2H, 2W)."""
        h = self.conv1(self.norm1(x, classes).relu())
        return self.conv2(self.norm2(h, classes).relu()) + self.shortcut(x)


class ConditionalResNetBase(nn.Module):
    """The ResNet's base, whose blocks are normalized by class; the last normalization is that of all classes.

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        num_classes: ``K``.
        width: Channels of every block.

    Example:
        >>> import torch
        >>> base = ConditionalResNetBase(32, channels=3, latent_dim=8, num_classes=3, width=4)
        >>> base(torch.zeros(2, 8), torch.eye(3)[:2]).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, resolution: int, channels: int, latent_dim: int, num_classes: int, width: int = 128) -> None:
        super().__init__()
        stages = num_upsamplings(resolution, smallest=32, family="sngan_resnet_conditional")
        self.first = nn.Sequential(xavier(nn.Linear(latent_dim, width * 16)), nn.Unflatten(1, (width, 4, 4)))
        self.blocks = nn.ModuleList([ConditionalUpBlock(width, num_classes) for _ in range(stages)])
        self.last = nn.Sequential(
            BatchNorm2d(width), nn.ReLU(), xavier(nn.Conv2d(width, channels, 3, padding=1)), TanhFloat32()
        )

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """Map latents (N, D) and classes (N, K) to images (N, C, H, W)."""
        h = self.first(z)
        for block in self.blocks:
            h = block(h, classes)
        return self.last(h)


class ProjectionEnergy(nn.Module):
    """The ResNet's energy of an image and its class, ``psi(phi(x)) + <v_y, phi(x)>``: linear in the embedding ``v_y``.

    ``phi`` are the features after the global average, and ``psi`` is linear; both are spectrally normalized, and so is
    the inner product with each embedding (:func:`gebm.networks.conditional.normalized_embedding`).

    Args:
        resolution: Pixels on a side: 32, 64 or 128.
        channels: Color channels.
        num_classes: ``K``.
        width: Channels of every block.

    Example:
        >>> import torch
        >>> ProjectionEnergy(32, channels=3, num_classes=3, width=4)(torch.zeros(2, 3, 32, 32), torch.eye(3)[:2]).shape
        torch.Size([2, 1])
    """

    def __init__(self, resolution: int, channels: int, num_classes: int, width: int = 128) -> None:
        super().__init__()
        *features, self.linear = ResNetEnergy(resolution, channels, width)
        self.features = nn.Sequential(*features)
        self.embedding = normalized_embedding(num_classes, width)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Map images (N, C, H, W) and classes (N, K) to (N, 1)."""
        features = self.features(x)
        projection = (self.embedding(classes) * features).sum(1, keepdim=True)
        return self.linear(features) + projection


def make(
    resolution: int, channels: int, latent_dim: int, num_classes: int, width: int = 128
) -> tuple[ConditionalBase, ConditionalEnergy]:
    """Build both; see :func:`gebm.networks.make`."""
    base = ConditionalResNetBase(resolution, channels, latent_dim, num_classes, width)
    energy = ProjectionEnergy(resolution, channels, num_classes, width)
    return ConditionalBase(base, latent_dim, num_classes), ConditionalEnergy(energy, num_classes)
