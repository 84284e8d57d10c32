"""Published layouts of generators and discriminators: their sizes, their modules here, and the names of their fields.

A layout is one that torch_mimicry (Lee and Town, 2020) or StudioGAN (Kang, Shin and Park, 2022) publish weights in:
``mimicry``, the residual networks of the former's SNGAN and DCGAN; ``studiogan_resnet``, those of the latter's SNGAN;
and ``studiogan_deep_conv``, the convolutions of its DCGAN. Widths are theirs: the channels that its ``ngf`` and
``ndf``, or ``g_conv_dim`` and ``d_conv_dim``, are. Any of their sizes may be smaller or larger than was published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeGuard, cast

from torch import nn

from gebm.networks.double_backward import Conv2d, ReLU
from gebm.networks.layers import BatchNorm2d, TanhFloat32, xavier
from gebm.networks.published.blocks import (
    BaseBlock,
    EnergyBlock,
    FixedBatchNorm2d,
    Norm,
    SumPool,
    normalizer,
    sequence,
)

__all__ = ["LAYOUTS", "Layout", "Shapes", "Sizes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a file's tensors by their names."""

_Part = Fraction


@dataclass(frozen=True)
class Sizes:
    """Sizes of a base or of an energy of a layout.

    Args:
        resolution: Pixels on a side.
        channels: Color channels.
        width: Channels that the layout's are multiples of.
        latent_dim: Latent dimension of a base.
        norm: Normalization of an energy.
    """

    resolution: int
    channels: int
    width: int
    latent_dim: int = 0
    norm: Norm = "spectral"


@dataclass(frozen=True)
class Layout:
    """A layout: how to recognize it, what to build, and how its layers are called.

    Args:
        widths: Published widths of its base and of its energy by resolution; :meth:`published_width` has the others.
        base_sizes: Sizes of a generator by the shapes of a file; ``None`` if it is not of this layout.
        energy_sizes: The same of a discriminator.
        base: Builds the base.
        energy: Builds the energy, whose sign is that of minus the discriminator's logit.
        base_layers: Published names of the layers of a base to those of its module here.
        energy_layers: The same of an energy; the last is the one whose output is the logit.
        unused: Beginnings of the names of a discriminator's layers on which its logit does not depend.
    """

    widths: Mapping[int, tuple[int, int]]
    base_sizes: Callable[[Shapes], Sizes | None]
    energy_sizes: Callable[[Shapes], Sizes | None]
    base: Callable[[Sizes], nn.Sequential]
    energy: Callable[[Sizes], nn.Sequential]
    base_layers: Callable[[Sizes], dict[str, str]]
    energy_layers: Callable[[Sizes], dict[str, str]]
    unused: tuple[str, ...] = ()


# Side of the first grid, and the channels of each grid in widths.
_MIMICRY_BASES: Mapping[int, tuple[int, tuple[_Part, ...]]] = {
    32: (4, (_Part(1),) * 4),
    48: (6, tuple(_Part(1, 2**k) for k in range(4))),
    64: (4, tuple(_Part(1, 2**k) for k in range(5))),
    128: (4, (_Part(1), *(_Part(1, 2**k) for k in range(5)))),
}
# Channels after each block in widths, how many of the blocks halve the grid, and the number of the last layer.
_MIMICRY_ENERGIES: Mapping[int, tuple[tuple[_Part, ...], int, int]] = {
    32: ((_Part(1),) * 4, 2, 5),
    48: (tuple(_Part(1, 2**k) for k in range(4, -1, -1)), 4, 5),
    64: (tuple(_Part(1, 2**k) for k in range(4, -1, -1)), 5, 6),
    128: ((*(_Part(1, 2**k) for k in range(4, -1, -1)), _Part(1)), 5, 7),
}
_STUDIOGAN_BASES: Mapping[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (16, 8, 4, 2, 1),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
_STUDIOGAN_ENERGIES: Mapping[int, tuple[tuple[int, ...], int]] = {
    32: ((2, 2, 2, 2), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
    512: ((1, 1, 2, 4, 8, 8, 16, 16), 7),
}
# What the latter's layers add to a variance, and take for the least norm of a vector.
_STUDIOGAN_VARIANCE, _STUDIOGAN_NORM = 1e-4, 1e-6


def _mimicry_base_sizes(shapes: Shapes) -> Sizes | None:
    count = _count(shapes, "block{}.c1", start=2)
    first, linear, last = shapes.get("block2.c1.weight"), shapes.get("l1.weight"), shapes.get(f"c{count + 2}.weight")
    if not (_is(first, 4) and _is(linear, 2) and _is(last, 4)):
        return None
    end = shapes.get(f"block{count + 1}.c1.weight", (0,))[0]
    for resolution, (_, parts) in _MIMICRY_BASES.items():
        if len(parts) == count + 1 and first[1] * parts[-1] == end:
            return Sizes(resolution, last[0], first[1], latent_dim=linear[1])
    return None


def _mimicry_energy_sizes(shapes: Shapes) -> Sizes | None:
    count = _count(shapes, "block{}.c1", start=1)
    first = shapes.get("block1.c1.weight")
    for resolution, (parts, _, last) in _MIMICRY_ENERGIES.items():
        linear = shapes.get(f"l{last}.weight")
        if _is(first, 4) and _is(linear, 2) and len(parts) == count:
            norm = "spectral" if "block1.c1.weight_u" in shapes else "none"
            return Sizes(resolution, first[1], linear[1], norm=cast(Norm, norm))
    return None


def _mimicry_base(sizes: Sizes) -> nn.Sequential:
    side, parts = _MIMICRY_BASES[sizes.resolution]
    return _residual_base(sizes, side, _channels(sizes.width, parts), bilinear=True)


def _mimicry_energy(sizes: Sizes) -> nn.Sequential:
    parts, halved, _ = _MIMICRY_ENERGIES[sizes.resolution]
    return _residual_energy(sizes, _channels(sizes.width, parts), halved, is_wide_inside=False)


def _mimicry_base_layers(sizes: Sizes) -> dict[str, str]:
    count = len(_MIMICRY_BASES[sizes.resolution][1]) - 1
    names = {"b1": "residual.norm1", "c1": "residual.conv1", "b2": "residual.norm2", "c2": "residual.conv2"}
    names["c_sc"] = "shortcut.conv"
    blocks = {f"block{k + 1}.{old}": f"block{k}.{new}" for k in range(1, count + 1) for old, new in names.items()}
    return {"l1": "linear", **blocks, f"b{count + 2}": "norm", f"c{count + 2}": "conv"}


def _mimicry_energy_layers(sizes: Sizes) -> dict[str, str]:
    parts, _, last = _MIMICRY_ENERGIES[sizes.resolution]
    names = {"c1": "residual.conv1", "c2": "residual.conv2", "c_sc": "shortcut.conv"}
    blocks = {f"block{k}.{old}": f"block{k}.{new}" for k in range(1, len(parts) + 1) for old, new in names.items()}
    return {**blocks, f"l{last}": "linear"}


def _studiogan_base_sizes(shapes: Shapes) -> Sizes | None:
    count = _count(shapes, "blocks.{}.0.conv2d1", start=0)
    linear, first, last = (shapes.get(f"{name}.weight") for name in ("linear0", "blocks.0.0.conv2d1", "conv2d5"))
    for resolution, multiples in _STUDIOGAN_BASES.items():
        if len(multiples) == count + 1 and _is(linear, 2) and _is(first, 4) and _is(last, 4):
            return Sizes(resolution, last[0], first[1] // multiples[0], latent_dim=linear[1])
    return None


def _studiogan_energy_sizes(shapes: Shapes) -> Sizes | None:
    count = _count(shapes, "blocks.{}.0.conv2d1", start=0)
    first, linear = shapes.get("blocks.0.0.conv2d1.weight"), shapes.get("linear1.weight")
    for resolution, (multiples, _) in _STUDIOGAN_ENERGIES.items():
        if len(multiples) == count and _is(first, 4) and _is(linear, 2):
            norm = _norm_of(shapes, "blocks.0.0.conv2d1", "blocks.0.0.bn1")
            return Sizes(resolution, first[1], first[0] // multiples[0], norm=norm)
    return None


def _studiogan_base(sizes: Sizes) -> nn.Sequential:
    widths = [multiple * sizes.width for multiple in _STUDIOGAN_BASES[sizes.resolution]]
    return _residual_base(sizes, 4, widths, bilinear=False, eps=_STUDIOGAN_VARIANCE)


def _studiogan_energy(sizes: Sizes) -> nn.Sequential:
    multiples, halved = _STUDIOGAN_ENERGIES[sizes.resolution]
    eps = _STUDIOGAN_VARIANCE if sizes.norm == "batch" else _STUDIOGAN_NORM
    widths = [multiple * sizes.width for multiple in multiples]
    return _residual_energy(sizes, widths, halved, is_wide_inside=True, eps=eps)


def _studiogan_base_layers(sizes: Sizes) -> dict[str, str]:
    names = {"bn1": "residual.norm1", "conv2d1": "residual.conv1", "bn2": "residual.norm2", "conv2d2": "residual.conv2"}
    names["conv2d0"] = "shortcut.conv"
    blocks = {
        f"blocks.{k}.0.{old}": f"block{k + 1}.{new}"
        for k in range(len(_STUDIOGAN_BASES[sizes.resolution]) - 1)
        for old, new in names.items()
    }
    return {"linear0": "linear", **blocks, "bn4": "norm", "conv2d5": "conv"}


def _studiogan_energy_layers(sizes: Sizes) -> dict[str, str]:
    convolutions = {"conv2d0": "shortcut.conv", "conv2d1": "residual.conv1", "conv2d2": "residual.conv2"}
    norms = {"bn0": "shortcut.norm", "bn1": "residual.norm1", "bn2": "residual.norm2"}
    # The first block has one normalization less, and counts from the second.
    first = {"bn0": "shortcut.norm", "bn1": "residual.norm2"}
    blocks = {
        f"blocks.{k}.0.{old}": f"block{k + 1}.{new}"
        for k in range(len(_STUDIOGAN_ENERGIES[sizes.resolution][0]))
        for old, new in (convolutions | (norms if k else first)).items()
    }
    return {**blocks, "linear1": "linear"}


def _deep_conv_base_sizes(shapes: Shapes) -> Sizes | None:
    linear, first, last = (shapes.get(f"{name}.weight") for name in ("linear0", "blocks.0.0.deconv0", "conv4"))
    if not (_is(linear, 2) and _is(first, 4) and _is(last, 4)):
        return None
    return Sizes(32, last[0], first[0] // 8, latent_dim=linear[1])


def _deep_conv_energy_sizes(shapes: Shapes) -> Sizes | None:
    first, linear = shapes.get("blocks.0.0.conv0.weight"), shapes.get("linear1.weight")
    if not (_is(first, 4) and _is(linear, 2)):
        return None
    norm = _norm_of(shapes, "blocks.0.0.conv0", "blocks.0.0.bn0")
    return Sizes(32, first[1], first[0], norm=norm)


def _deep_conv_base(sizes: Sizes) -> nn.Sequential:
    widths = [sizes.width * multiple for multiple in (8, 4, 2, 1)]
    layers: dict[str, nn.Module] = {}
    for k, (wide, narrow) in enumerate(pairwise(widths), start=1):
        layers[f"conv{k}"] = xavier(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
        layers |= {f"norm{k}": BatchNorm2d(narrow, eps=_STUDIOGAN_VARIANCE), f"relu{k}": nn.ReLU()}
    return sequence(
        linear=xavier(nn.Linear(sizes.latent_dim, widths[0] * 16)),
        grid=nn.Unflatten(1, (widths[0], 4, 4)),
        **layers,
        conv=xavier(nn.Conv2d(widths[-1], sizes.channels, 3, padding=1)),
        tanh=TanhFloat32(),
    )


def _deep_conv_energy(sizes: Sizes) -> nn.Sequential:
    of_batch = sizes.norm == "batch"
    of_weights = normalizer(sizes.norm, _STUDIOGAN_NORM)
    widths = [sizes.channels, *(sizes.width * multiple for multiple in (1, 2, 4))]
    layers: dict[str, nn.Module | None] = {}

    def add(name: str, conv: Conv2d) -> None:
        layers[f"conv{name}"] = of_weights(xavier(conv))
        layers[f"norm{name}"] = FixedBatchNorm2d(conv.out_channels, _STUDIOGAN_VARIANCE) if of_batch else None
        layers[f"relu{name}"] = ReLU()

    for k, (narrow, wide) in enumerate(pairwise(widths), start=1):
        add(f"{k}", Conv2d(narrow, wide, 3, padding=1))
        add(f"{k}_down", Conv2d(wide, wide, 4, stride=2, padding=1))
    add("4", Conv2d(widths[-1], widths[-1] * 2, 3, padding=1))
    return sequence(**layers, pool=SumPool(), linear=of_weights(xavier(nn.Linear(widths[-1] * 2, 1))))


def _deep_conv_base_layers(sizes: Sizes) -> dict[str, str]:
    blocks = {f"blocks.{k}.0.{old}": f"{new}{k + 1}" for k in range(3) for old, new in _DEEP_CONV.items()}
    return {"linear0": "linear", **blocks, "conv4": "conv"}


_DEEP_CONV = {"deconv0": "conv", "bn0": "norm"}


def _deep_conv_energy_layers(sizes: Sizes) -> dict[str, str]:
    names = {"conv0": "conv{}", "bn0": "norm{}", "conv1": "conv{}_down", "bn1": "norm{}_down"}
    blocks = {f"blocks.{k}.0.{old}": new.format(k + 1) for k in range(3) for old, new in names.items()}
    return {**blocks, "conv1": "conv4", "bn1": "norm4", "linear1": "linear"}


def _residual_base(sizes: Sizes, side: int, widths: list[int], *, bilinear: bool, eps: float = 1e-5) -> nn.Sequential:
    """Build linear to the first grid, a block for each doubling, BN, ReLU, 3x3 to colors, tanh."""
    blocks = {
        f"block{k}": BaseBlock(wide, narrow, bilinear, eps) for k, (wide, narrow) in enumerate(pairwise(widths), 1)
    }
    return sequence(
        linear=xavier(nn.Linear(sizes.latent_dim, widths[0] * side**2)),
        grid=nn.Unflatten(1, (widths[0], side, side)),
        **blocks,
        norm=BatchNorm2d(widths[-1], eps=eps),
        relu=nn.ReLU(),
        conv=xavier(nn.Conv2d(widths[-1], sizes.channels, 3, padding=1)),
        tanh=TanhFloat32(),
    )


def _residual_energy(
    sizes: Sizes, widths: list[int], halved: int, *, is_wide_inside: bool, eps: float = 1e-12
) -> nn.Sequential:
    """Build the blocks, ReLU, the sum over the grid, linear to 1."""
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
    linear = normalizer(sizes.norm, eps)(xavier(nn.Linear(widths[-1], 1)))
    return sequence(**blocks, relu=ReLU(), pool=SumPool(), linear=linear)


def _channels(width: int, parts: tuple[_Part, ...]) -> list[int]:
    """Return the channels that are these parts of a width, rounded down as a shift of bits is."""
    return [int(width * part) for part in parts]


def _count(shapes: Shapes, layer: str, start: int) -> int:
    """Return how many layers of consecutive numbers there are."""
    count = 0
    while f"{layer.format(start + count)}.weight" in shapes:
        count += 1
    return count


def _is(shape: tuple[int, ...] | None, dims: int) -> TypeGuard[tuple[int, ...]]:
    """Return whether there is a shape, of this number of dimensions, none of which is zero."""
    return shape is not None and len(shape) == dims and min(shape) > 0


def _norm_of(shapes: Shapes, conv: str, norm: str) -> Norm:
    if f"{conv}.weight_u" in shapes:
        return "spectral"
    return "batch" if f"{norm}.running_mean" in shapes else "none"


LAYOUTS: Mapping[str, Layout] = {
    "mimicry": Layout(
        {32: (256, 128), 48: (512, 1024), 64: (1024, 1024), 128: (1024, 1024)},
        _mimicry_base_sizes,
        _mimicry_energy_sizes,
        _mimicry_base,
        _mimicry_energy,
        _mimicry_base_layers,
        _mimicry_energy_layers,
    ),
    "studiogan_resnet": Layout(
        dict.fromkeys(_STUDIOGAN_BASES, (64, 64)),
        _studiogan_base_sizes,
        _studiogan_energy_sizes,
        _studiogan_base,
        _studiogan_energy,
        _studiogan_base_layers,
        _studiogan_energy_layers,
        ("linear2.", "linear_mi.", "info_"),
    ),
    "studiogan_deep_conv": Layout(
        {32: (64, 64)},
        _deep_conv_base_sizes,
        _deep_conv_energy_sizes,
        _deep_conv_base,
        _deep_conv_energy,
        _deep_conv_base_layers,
        _deep_conv_energy_layers,
        ("linear2.", "linear_mi.", "info_"),
    ),
}
"""The layouts by their names."""
