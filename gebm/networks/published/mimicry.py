"""The residual networks of torch_mimicry's SNGAN and DCGAN (Lee and Town, 2020): their sizes and names."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from torch import nn

from gebm.networks.published.layout import HalfLayout, LayerTarget, Layout, Shapes, Sizes, count_layers, has_dims
from gebm.networks.published.residual import residual_base, residual_energy

__all__ = ["MIMICRY"]

_Part = Fraction

# Side of the first grid, and the channels of each grid in widths.
_BASES: Mapping[int, tuple[int, tuple[_Part, ...]]] = {
    32: (4, (_Part(1),) * 4),
    48: (6, tuple(_Part(1, 2**k) for k in range(4))),
    64: (4, tuple(_Part(1, 2**k) for k in range(5))),
    128: (4, (_Part(1), *(_Part(1, 2**k) for k in range(5)))),
}
# Channels after each block in widths, how many of the blocks halve the grid, and the number of the last layer.
_ENERGIES: Mapping[int, tuple[tuple[_Part, ...], int, int]] = {
    32: ((_Part(1),) * 4, 2, 5),
    48: (tuple(_Part(1, 2**k) for k in range(4, -1, -1)), 4, 5),
    64: (tuple(_Part(1, 2**k) for k in range(4, -1, -1)), 5, 6),
    128: ((*(_Part(1, 2**k) for k in range(4, -1, -1)), _Part(1)), 5, 7),
}


def _base_sizes(shapes: Shapes) -> Sizes | None:
    count = count_layers(shapes, "block{}.c1", start=2)
    first, linear, last = shapes.get("block2.c1.weight"), shapes.get("l1.weight"), shapes.get(f"c{count + 2}.weight")
    if not (has_dims(first, 4) and has_dims(linear, 2) and has_dims(last, 4)):
        return None
    end = shapes.get(f"block{count + 1}.c1.weight", (0,))[0]
    for resolution, (_, parts) in _BASES.items():
        if len(parts) == count + 1 and first[1] * parts[-1] == end:
            return Sizes(resolution, last[0], first[1], latent_dim=linear[1])
    return None


def _energy_sizes(shapes: Shapes) -> Sizes | None:
    count = count_layers(shapes, "block{}.c1", start=1)
    first = shapes.get("block1.c1.weight")
    for resolution, (parts, _, last) in _ENERGIES.items():
        linear = shapes.get(f"l{last}.weight")
        if has_dims(first, 4) and has_dims(linear, 2) and len(parts) == count:
            is_normalized = "block1.c1.weight_u" in shapes
            return Sizes(resolution, first[1], linear[1], norm="spectral" if is_normalized else "none")
    return None


def _base(sizes: Sizes) -> nn.Module:
    side, parts = _BASES[sizes.resolution]
    return residual_base(sizes, side, _channels(sizes.width, parts), bilinear=True)


def _energy(sizes: Sizes) -> nn.Module:
    parts, halved, _ = _ENERGIES[sizes.resolution]
    return residual_energy(sizes, _channels(sizes.width, parts), halved, is_wide_inside=False)


def _base_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    count = len(_BASES[sizes.resolution][1]) - 1
    names = {"b1": "residual.norm1", "c1": "residual.conv1", "b2": "residual.norm2", "c2": "residual.conv2"}
    names["c_sc"] = "shortcut.conv"
    blocks = {
        f"block{k + 1}.{old}": LayerTarget(f"block{k}.{new}") for k in range(1, count + 1) for old, new in names.items()
    }
    return {
        "l1": LayerTarget("linear"),
        **blocks,
        f"b{count + 2}": LayerTarget("norm"),
        f"c{count + 2}": LayerTarget("conv"),
    }


def _energy_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    parts, _, last = _ENERGIES[sizes.resolution]
    names = {"c1": "residual.conv1", "c2": "residual.conv2", "c_sc": "shortcut.conv"}
    blocks = {
        f"block{k}.{old}": LayerTarget(f"block{k}.{new}")
        for k in range(1, len(parts) + 1)
        for old, new in names.items()
    }
    return {**blocks, f"l{last}": LayerTarget("linear", "logit")}


def _channels(width: int, parts: tuple[_Part, ...]) -> list[int]:
    """Return the channels that are these parts of a width, rounded down as a shift of bits is."""
    return [int(width * part) for part in parts]


MIMICRY = Layout(
    widths={32: (256, 128), 48: (512, 1024), 64: (1024, 1024), 128: (1024, 1024)},
    base=HalfLayout(_base_sizes, _base, _base_layers),
    energy=HalfLayout(_energy_sizes, _energy, _energy_layers),
)
"""The layout; its widths are ``ngf`` and ``ndf``."""
