"""Layers that the image networks share."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebm.distributed import all_gather_rows, rank_and_world_size
from gebm.networks.double_backward import convolve

__all__ = ["BatchNorm2d", "DownsampleConv2d", "TanhFloat32", "UpsampleConv2d", "num_upsamplings", "xavier"]

_LayerT = TypeVar("_LayerT", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes together (Ioffe and Szegedy, ICML 2015).

    With each process's own mean and variance, a batch of 128 on 64 processes would be normalized two images at a time,
    and what a base learns would depend on how many processes train it. In evaluation mode, and in a single process, it
    is torch's own; torch's ``SyncBatchNorm`` runs on a GPU only.

    Example:
        >>> layer = BatchNorm2d(2)
        >>> layer(torch.randn(3, 2, 4, 4)).shape
        torch.Size([3, 2, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize images (N, C, H, W); every process has the same number of them."""
        _, world_size = rank_and_world_size()
        if not self.training or world_size == 1:
            return super().forward(input)
        # Layers without running statistics are not built here.
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        variances, means = torch.var_mean(input.to(self.running_mean.dtype), (0, 2, 3), correction=0)
        # Differentiated through the gather: each process's mean moves the outputs of all.
        moments = all_gather_rows(torch.stack([means, variances])[None])
        mean = moments[:, 0].mean(0)
        variance = (moments[:, 1] + (moments[:, 0] - mean).square()).mean(0)
        with torch.no_grad():
            count = world_size * input.numel() / self.num_features
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        scale = self.weight * scale if self.affine else scale
        shift = self.bias - mean * scale if self.affine else -mean * scale
        return torch.addcmul(shift[:, None, None], input.to(scale.dtype), scale[:, None, None]).to(input.dtype)


class DownsampleConv2d(nn.Conv2d):
    """A 3x3 convolution and the mean over 2x2 pixels after it, as one convolution of 4x4 at every second pixel.

    The mean of four outputs is the output of a kernel that is the mean of four shifts of the 3x3 one: 16 products a
    pixel of the coarse grid instead of 36. The parameters are those of the 3x3 convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.

    Example:
        >>> layer, x = DownsampleConv2d(2, 3), torch.randn(1, 2, 8, 8)
        >>> literal = F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)
        >>> torch.allclose(layer(x), literal, atol=1e-5)
        True
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def strided(self) -> Tensor:
        """Return the kernel (out, in, 4, 4) of the one convolution, whose stride is 2."""
        return _four_shifts(self.weight) / 4

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / 2, W / 2)."""
        return convolve(input, self.strided(), self.bias, stride=2, padding=1)


class UpsampleConv2d(nn.Conv2d):
    """The doubling of the grid by repetition and a 3x3 convolution after it, as one transposed convolution of 4x4.

    A pixel of the coarse grid takes part in 36 products; the weights of those that go to one sum are added up before,
    and 16 are left. The parameters are those of the 3x3 convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.

    Example:
        >>> layer, x = UpsampleConv2d(2, 3), torch.randn(1, 2, 4, 4)
        >>> literal = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)
        >>> torch.allclose(layer(x), literal, atol=1e-5)
        True
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def strided(self) -> Tensor:
        """Return the kernel (in, out, 4, 4) of the one transposed convolution, whose stride is 2."""
        return _four_shifts(self.weight.flip(2, 3)).transpose(0, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, 2 H, 2 W)."""
        return F.conv_transpose2d(input, self.strided(), self.bias, stride=2, padding=1)


def _four_shifts(weight: Tensor) -> Tensor:
    """Return the sum (..., 4, 4) of a kernel (..., 3, 3) at the four corners of a larger one."""
    corners = (F.pad(weight, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1))
    return functools.reduce(torch.add, corners)


class TanhFloat32(nn.Module):
    """The hyperbolic tangent that ends a base, in full precision.

    In an autocast region the convolution before it returns bfloat16. Its neighbors of one are 1/256 apart: a tangent
    taken in that format would put a grid into the bright and dark pixels, and the energy would learn the grid.

    Example:
        >>> TanhFloat32()(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return pixels in [-1, 1] of the shape given, float32 or wider."""
        return x.to(torch.promote_types(x.dtype, torch.float32)).tanh()


def xavier(layer: _LayerT, gain: float = 1.0) -> _LayerT:
    """Draw the weights of a layer uniformly, after Glorot and Bengio (2010), and set its bias to zero.

    Args:
        layer: A convolution or a linear map.
        gain: Factor of the weights.

    Returns:
        The layer.

    Example:
        >>> layer = xavier(nn.Linear(4, 2))
        >>> bool(layer.weight.abs().max() <= 1), layer.bias.tolist()
        (True, [0.0, 0.0])
    """
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def num_upsamplings(resolution: int, smallest: int, family: str) -> int:
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
        >>> num_upsamplings(32, smallest=8, family="dcgan")
        3
    """
    possible = [size for size in (8, 16, 32, 64, 128) if size >= smallest]
    if resolution not in possible:
        raise ValueError(f"{family} has no resolution {resolution}: choose one of {', '.join(map(str, possible))}")
    return resolution.bit_length() - 3
