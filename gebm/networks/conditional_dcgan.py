"""DCGAN of classes, by concatenation (Mirza and Osindero 2014).

The base has an embedding of the class after its latent; the energy has one more plane of pixels, a function of the
class alone. Otherwise they are those of :mod:`gebm.networks.dcgan`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from gebm.networks.conditional import ClassEmbedding, ConditionalBase, ConditionalEnergy
from gebm.networks.dcgan import DCGANBase, DCGANEnergy
from gebm.registry import Limits

__all__ = ["ConcatenatingBase", "ConcatenatingEnergy", "make"]


class ConcatenatingBase(nn.Module):
    """A base whose input is the latent and the embedding of the class.

    Args:
        resolution: Pixels on a side: 8, 16, 32, 64 or 128.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        num_classes: ``K``.
        width: Channels at the full resolution, doubled per halving.
        embedding: Numbers of an embedding.

    Example:
        >>> base = ConcatenatingBase(8, channels=1, latent_dim=4, num_classes=3, width=2)
        >>> base(torch.zeros(2, 4), torch.eye(3)[:2]).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self, resolution: int, channels: int, latent_dim: int, num_classes: int, width: int = 64, embedding: int = 16
    ) -> None:
        super().__init__()
        self.embedding = ClassEmbedding(num_classes, embedding)
        self.network = DCGANBase(resolution, channels, latent_dim + embedding, width)

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """Map latents (N, D) and classes (N, K) to images (N, C, H, W)."""
        return self.network(torch.cat([z, self.embedding(classes).to(z.dtype)], 1))


class ConcatenatingEnergy(nn.Module):
    """An energy whose input is the image and a plane of pixels of the class.

    The plane is not normalized: for each class it is a constant, and the energy no steeper in the image by it.

    Args:
        resolution: Pixels on a side: 8, 16, 32, 64 or 128.
        channels: Color channels.
        num_classes: ``K``.
        width: Channels at the full resolution, doubled per halving.

    Example:
        >>> ConcatenatingEnergy(8, channels=1, num_classes=3, width=2)(torch.zeros(2, 1, 8, 8), torch.eye(3)[:2]).shape
        torch.Size([2, 1])
    """

    def __init__(self, resolution: int, channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = ClassEmbedding(num_classes, resolution * resolution)
        self.network = DCGANEnergy(resolution, channels + 1, width)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Map images (N, C, H, W) and classes (N, K) to (N, 1)."""
        plane = self.embedding(classes).to(x.dtype).view(len(x), 1, *x.shape[2:])
        return self.network(torch.cat([x, plane], 1))


def make(
    resolution: int,
    channels: int,
    latent_dim: int,
    num_classes: int,
    width: int = 64,
    embedding: Annotated[int, Limits(gt=0)] = 16,
) -> tuple[ConditionalBase, ConditionalEnergy]:
    """Build both; see :func:`gebm.networks.make`.

    Args:
        resolution: Pixels on a side.
        channels: Color channels.
        latent_dim: Latent dimension.
        num_classes: Number of classes.
        width: Channels at the full resolution.
        embedding: Numbers of the class's embedding that the base has next to the latent.
    """
    base = ConcatenatingBase(resolution, channels, latent_dim, num_classes, width, embedding)
    energy = ConcatenatingEnergy(resolution, channels, num_classes, width)
    return ConditionalBase(base, latent_dim, num_classes), ConditionalEnergy(energy, num_classes)
