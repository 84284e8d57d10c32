"""Bases and energies of residual blocks, which several published layouts have."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from gebm.networks.conditional import ClassEmbedding, ConditionalSequential, Projection
from gebm.networks.double_backward import ReLU
from gebm.networks.layers import BatchNorm2d, TanhFloat32, xavier
from gebm.networks.published.blocks import (
    BaseBlock,
    ConditionalBaseBlock,
    EnergyBlock,
    SumPool,
    normalizer,
    sequence,
)
from gebm.networks.published.layout import Sizes

__all__ = ["layers_in_order", "logit_layer", "residual_base", "residual_energy"]


def residual_base(sizes: Sizes, side: int, widths: list[int], *, bilinear: bool, eps: float = 1e-5) -> nn.Module:
    """Build linear to the first grid, a block for each doubling, BN, ReLU, 3x3 to colors, tanh.

    Args:
        sizes: Its sizes; with classes, the blocks are normalized by class.
        side: Pixels on a side of the first grid.
        widths: Channels of each grid.
        bilinear: Whether the grid is doubled by bilinear interpolation, which blocks with classes have not.
        eps: What batch normalization adds to the variance.
    """

    def block(wide: int, narrow: int) -> nn.Module:
        if sizes.num_classes:
            return ConditionalBaseBlock(wide, narrow, sizes.num_classes, eps)
        return BaseBlock(wide, narrow, bilinear, eps)

    blocks = {f"block{k}": block(wide, narrow) for k, (wide, narrow) in enumerate(pairwise(widths), 1)}
    return layers_in_order(
        sizes,
        linear=xavier(nn.Linear(sizes.latent_dim, widths[0] * side**2)),
        grid=nn.Unflatten(1, (widths[0], side, side)),
        **blocks,
        norm=BatchNorm2d(widths[-1], eps=eps),
        relu=nn.ReLU(),
        conv=xavier(nn.Conv2d(widths[-1], sizes.channels, 3, padding=1)),
        tanh=TanhFloat32(),
    )


def residual_energy(
    sizes: Sizes, widths: list[int], halved: int, *, is_wide_inside: bool, eps: float = 1e-12
) -> nn.Module:
    """Build the blocks, ReLU, the sum over the grid, linear to 1, and with classes a projection on theirs.

    Args:
        sizes: Its sizes.
        widths: Channels after each block.
        halved: How many of the blocks, the first ones, halve the grid.
        is_wide_inside: Whether blocks widen in their first convolution, or else in their second.
        eps: Least norm or variance of the normalization.
    """
    blocks = {
        f"block{k + 1}": EnergyBlock(
            narrow,
            wide if is_wide_inside or k == 0 else narrow,
            wide,
            halve=k < halved,
            norm=sizes.norm,
            first=k == 0,
            eps=eps,
        )
        for k, (narrow, wide) in enumerate(pairwise([sizes.channels, *widths]))
    }
    return layers_in_order(sizes, **blocks, relu=ReLU(), pool=SumPool(), linear=logit_layer(sizes, widths[-1], eps))


def logit_layer(sizes: Sizes, features: int, eps: float) -> nn.Module:
    """Build the last layer of an energy: linear to 1, and with classes the projection on their embeddings.

    Args:
        sizes: Its sizes.
        features: Features after the sum over the grid.
        eps: Least norm of the normalization.
    """
    normalized = normalizer(sizes.norm, eps)
    linear = normalized(xavier(nn.Linear(features, 1)))
    if not sizes.num_classes:
        return linear
    return Projection(linear, normalized(ClassEmbedding(sizes.num_classes, features)))


def layers_in_order(sizes: Sizes, **layers: nn.Module | None) -> nn.Module:
    """Return layers one after another, which take the classes as well where there are any; ``None`` is left out.

    Example:
        >>> sizes = Sizes(32, channels=3, width=1, num_classes=2)
        >>> type(layers_in_order(sizes, pool=SumPool(), relu=None)).__name__
        'ConditionalSequential'
    """
    plain = sequence(**layers)
    return ConditionalSequential(**dict(plain.named_children())) if sizes.num_classes else plain
