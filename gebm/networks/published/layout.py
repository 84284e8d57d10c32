"""What a published layout is: its sizes, how a file of it is recognized, and where its tensors go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeGuard

from torch import nn

from gebm.networks.published.blocks import Norm

__all__ = ["HalfLayout", "Layout", "LayerTarget", "Shapes", "Sizes", "count_layers", "has_dims", "norm_of"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a file's tensors by their names."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a base or of an energy of a layout.

    Args:
        resolution: Pixels on a side.
        channels: Color channels.
        width: Channels that the layout's are multiples of.
        latent_dim: Latent dimension of a base.
        norm: Normalization of an energy.
        num_classes: Number of classes; 0 of networks without.
    """

    resolution: int
    channels: int
    width: int
    latent_dim: int = 0
    norm: Norm = "spectral"
    num_classes: int = 0


@dataclass(frozen=True)
class LayerTarget:
    """Where the tensors of a published layer go, and what they are there.

    Args:
        layer: Name of the layer in the module here.
        kind: ``"same"`` for tensors that are as they were; ``"logit"`` of the layer whose output is the logit, which
            changes its sign; ``"gain"`` of a scale that one is added to; ``"embedding"`` of one that adds to the logit,
            whose matrix (K, F) is (F, K) here.
    """

    layer: str
    kind: Literal["same", "logit", "gain", "embedding"] = "same"


@dataclass(frozen=True)
class HalfLayout:
    """Generators or discriminators of a layout.

    Args:
        sizes: Sizes of one by the shapes of a file; ``None`` if it is not of this layout.
        build: Builds the base; or the energy, whose sign is that of minus the discriminator's logit.
        layers: Published names of its layers, and their targets.
        unused: Beginnings of the names of layers on which a logit does not depend.
    """

    sizes: Callable[[Shapes], Sizes | None]
    build: Callable[[Sizes], nn.Module]
    layers: Callable[[Sizes], dict[str, LayerTarget]]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A layout: how to recognize its files, what to build, and how its layers are called.

    Args:
        widths: Published widths of its base and of its energy, by resolution.
        base: Its generators.
        energy: Its discriminators.
        has_classes: Whether there are class-conditional ones, with batch norm by class and a projection.
    """

    widths: Mapping[int, tuple[int, int]]
    base: HalfLayout
    energy: HalfLayout
    has_classes: bool = False


def count_layers(shapes: Shapes, layer: str, start: int) -> int:
    """Return how many layers of consecutive numbers there are.

    Example:
        >>> count_layers({"c1.weight": (1,), "c2.weight": (1,), "c4.weight": (1,)}, "c{}", start=1)
        2
    """
    count = 0
    while f"{layer.format(start + count)}.weight" in shapes:
        count += 1
    return count


def has_dims(shape: tuple[int, ...] | None, dims: int) -> TypeGuard[tuple[int, ...]]:
    """Return whether there is a shape, of this number of dimensions, none of which is zero.

    Example:
        >>> has_dims((3, 2), 2), has_dims((3, 0), 2), has_dims(None, 2)
        (True, False, False)
    """
    return shape is not None and len(shape) == dims and min(shape) > 0


def norm_of(shapes: Shapes, conv: str, norm: str) -> Norm:
    """Return the normalization of a discriminator by the names of a convolution and of a batch normalization.

    Example:
        >>> norm_of({"c.weight": (1,), "c.weight_u": (1,)}, "c", "b"), norm_of({"c.weight": (1,)}, "c", "b")
        ('spectral', 'none')
    """
    if f"{conv}.weight_u" in shapes:
        return "spectral"
    return "batch" if f"{norm}.running_mean" in shapes else "none"
