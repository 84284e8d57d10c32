"""Layers and residual blocks of published generators and discriminators, as bases and energies."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gebm.networks.conditional import ClassLayer, ConditionalBatchNorm2d, ConditionalSequential
from gebm.networks.double_backward import AvgPool2x2, Conv2d, ReLU
from gebm.networks.layers import BatchNorm2d, DownsampleConv2d, UpsampleConv2d, xavier

__all__ = [
    "BaseBlock",
    "BilinearUpsample2x",
    "ConditionalBaseBlock",
    "EnergyBlock",
    "FixedBatchNorm2d",
    "Norm",
    "SigmoidFloat32",
    "SumPool",
    "normalizer",
    "sequence",
]

Norm = Literal["spectral", "batch", "none"]
"""Normalization of an energy's layers."""


class BilinearUpsample2x(nn.Module):
    """Twice the grid by bilinear interpolation, in operations whose gradient is the same each time, on a GPU as well.

    Example:
        >>> x = torch.randn(1, 2, 3, 5)
        >>> literal = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        >>> torch.allclose(BilinearUpsample2x()(x), literal, atol=1e-6)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        for axis in (2, 3):
            before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
            after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, x.shape[axis] - 1, 1)], axis)
            # Each of the two new pixels that replace one has a quarter of the neighbor on its side.
            x = torch.stack([torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)], axis + 1).flatten(axis, axis + 1)
        return x


class SigmoidFloat32(nn.Module):
    """The logistic function that ends a base whose pixels are in [0, 1], in full precision.

    Example:
        >>> SigmoidFloat32()(torch.zeros(1, dtype=torch.bfloat16))
        tensor([0.5000])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return pixels in [0, 1] of the shape given, float32 or wider."""
        return x.to(torch.promote_types(x.dtype, torch.float32)).sigmoid()


class SumPool(nn.Module):
    """The sum over the grid.

    Example:
        >>> SumPool()(torch.ones(1, 2, 3, 3))
        tensor([[9., 9.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C)."""
        return x.sum((2, 3))


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization by the statistics that it came with, in training as well.

    An energy is a function of one sample, whatever batch that is in. So a discriminator that was trained with batch
    normalization keeps the mean and the variance of its training; scale and shift are trained on.

    Example:
        >>> layer, x = FixedBatchNorm2d(2), torch.randn(3, 2, 4, 4)
        >>> torch.equal(layer.train()(x), layer.eval()(x))
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize images (N, C, H, W)."""
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class BaseBlock(nn.Module):
    """A residual block of a base that doubles the grid: BN, ReLU, up, 3x3, BN, ReLU, 3x3; shortcut 1x1, up.

    Args:
        channels: Channels in.
        width: Channels out.
        bilinear: Whether the grid is doubled by bilinear interpolation, or else by repetition.
        eps: What batch normalization adds to the variance.

    Example:
        >>> BaseBlock(4, 2, bilinear=True)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 2, 16, 16])
    """

    def __init__(self, channels: int, width: int, bilinear: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.residual = sequence(**_residual(channels, width, bilinear, lambda count: BatchNorm2d(count, eps=eps)))
        self.shortcut = _shortcut(channels, width, bilinear)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, 2H, 2W)."""
        return self.residual(x) + self.shortcut(x)


class ConditionalBaseBlock(ClassLayer):
    """The block of :class:`BaseBlock` with batch normalization by class, which doubles the grid by repetition.

    Args:
        channels: Channels in.
        width: Channels out.
        num_classes: ``K``.
        eps: What batch normalization adds to the variance.

    Example:
        >>> ConditionalBaseBlock(4, 2, num_classes=3)(torch.zeros(2, 4, 8, 8), torch.eye(3)[:2]).shape
        torch.Size([2, 2, 16, 16])
    """

    def __init__(self, channels: int, width: int, num_classes: int, eps: float = 1e-5) -> None:
        super().__init__()
        layers = _residual(channels, width, False, lambda count: ConditionalBatchNorm2d(count, num_classes, eps))
        self.residual = ConditionalSequential(**layers)
        self.shortcut = _shortcut(channels, width, False)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Map (N, channels, H, W) and classes (N, K) to (N, width, 2H, 2W)."""
        return self.residual(x, classes) + self.shortcut(x)


class EnergyBlock(nn.Module):
    """A residual block of an energy: ReLU, 3x3, ReLU, 3x3, and half the grid by averaging if ``halve``.

    The shortcut, too, begins after the first ReLU: in the published implementations that one is in-place, on what
    the shortcut reads after it. With batch normalization before the ReLU it begins before both.

    Args:
        channels: Channels in.
        hidden: Channels between the two convolutions.
        width: Channels out.
        halve: Whether to halve the grid. A block that neither halves nor widens has the identity as its shortcut,
            otherwise a 1x1 convolution.
        first: Whether ``x`` is an image, to which no ReLU is applied.
        norm: Normalization: of the weights, of the batch before each ReLU and in the shortcut, or none.
        eps: Its least norm or variance.

    Example:
        >>> EnergyBlock(3, 4, 4, halve=True, first=True, norm="spectral")(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        width: int,
        halve: bool,
        norm: Norm,
        first: bool = False,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        of_weights, of_batch, gain = normalizer(norm, eps), norm == "batch", math.sqrt(2)
        self.relu = nn.Identity() if first or of_batch else ReLU()
        second = DownsampleConv2d(hidden, width) if halve else Conv2d(hidden, width, 3, padding=1)
        self.residual = sequence(
            norm1=FixedBatchNorm2d(channels, eps) if of_batch and not first else None,
            relu1=ReLU() if of_batch and not first else None,
            conv1=of_weights(xavier(Conv2d(channels, hidden, 3, padding=1), gain)),
            norm2=FixedBatchNorm2d(hidden, eps) if of_batch else None,
            relu2=ReLU(),
            conv2=of_weights(xavier(second, gain)),
        )
        # The means of four pixels and what is linear commute, and the latter costs a quarter after them.
        self.shortcut = (
            sequence(
                pool=AvgPool2x2() if halve else None,
                norm=FixedBatchNorm2d(channels, eps) if of_batch else None,
                conv=of_weights(xavier(Conv2d(channels, width, 1))),
            )
            if halve or channels != width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H, W), or half of H and W."""
        x = self.relu(x)
        return self.residual(x) + self.shortcut(x)


def sequence(**layers: nn.Module | None) -> nn.Sequential:
    """Return layers one after another, with their names; those that are ``None`` are left out.

    Example:
        >>> list(sequence(first=nn.ReLU(), second=None, third=nn.Tanh()).state_dict()), len(sequence(a=nn.ReLU()))
        ([], 1)
    """
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


def normalizer(norm: Norm, eps: float = 1e-12) -> Callable[[nn.Module], nn.Module]:
    """Return the function that normalizes the weight of a layer, or leaves it as it is.

    Args:
        norm: Normalization of the energy.
        eps: Least norm of a vector.
    """
    return (lambda layer: spectral_norm(layer, eps=eps)) if norm == "spectral" else lambda layer: layer


def _residual(channels: int, width: int, bilinear: bool, norm: Callable[[int], nn.Module]) -> dict[str, nn.Module]:
    """Return the layers of a base's block, given what normalizes a number of channels."""
    gain = math.sqrt(2)
    upsampled: dict[str, nn.Module] = {"conv1": xavier(UpsampleConv2d(channels, width), gain)}
    if bilinear:
        upsampled = {"up": BilinearUpsample2x(), "conv1": xavier(nn.Conv2d(channels, width, 3, padding=1), gain)}
    return {
        "norm1": norm(channels),
        "relu1": nn.ReLU(),
        **upsampled,
        "norm2": norm(width),
        "relu2": nn.ReLU(),
        "conv2": xavier(nn.Conv2d(width, width, 3, padding=1), gain),
    }


def _shortcut(channels: int, width: int, bilinear: bool) -> nn.Sequential:
    # A 1x1 convolution commutes with both ways of doubling, and costs a quarter before them.
    return sequence(
        conv=xavier(nn.Conv2d(channels, width, 1)),
        up=BilinearUpsample2x() if bilinear else nn.Upsample(scale_factor=2),
    )
