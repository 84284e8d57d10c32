"""Pieces that the image networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Pixels", "num_doublings"]


class Pixels(nn.Module):
    """The hyperbolic tangent that ends a base, in full precision.

    In an autocast region the convolution before it returns bfloat16. Its neighbours of one are 1/256 apart: a tangent
    taken in that format would put a grid into the bright and dark pixels, and the energy would learn the grid.

    Example:
        >>> Pixels()(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return pixels in [-1, 1] of the shape given, float32 or wider."""
        return x.to(torch.promote_types(x.dtype, torch.float32)).tanh()


def num_doublings(resolution: int, smallest: int, family: str) -> int:
    """Return how many doublings lead from a 4x4 grid to the resolution.

    Args:
        resolution: Pixels on a side.
        smallest: The least resolution the family has.
        family: Its name, for the message.

    Returns:
        ``log2(resolution / 4)``.

    Raises:
        ValueError: If the resolution is not a power of two from ``smallest`` to 128.

    Example:
        >>> num_doublings(32, smallest=8, family="dcgan")
        3
    """
    possible = [size for size in (8, 16, 32, 64, 128) if size >= smallest]
    if resolution not in possible:
        raise ValueError(f"{family} has no resolution {resolution}: choose one of {', '.join(map(str, possible))}")
    return resolution.bit_length() - 3
