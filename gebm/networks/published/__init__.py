"""Trained generators and discriminators of published layouts, as a base and an energy.

The energy is minus the discriminator's logit: of a discriminator at its optimum under the logistic loss, that is minus
the log-density of the data relative to the base (Che et al., NeurIPS 2020), which is what an energy is to a GEBM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast

from torch import Tensor, nn

from gebm.networks.conventions import LATENTS, adapt
from gebm.networks.published.blocks import Norm, SigmoidFloat32
from gebm.networks.published.layouts import LAYOUTS, Layout, Shapes, Sizes
from gebm.networks.weights import Half, Reading
from gebm.registry import Limits

__all__ = ["LAYOUTS", "Layout", "Sizes", "make", "read"]

_LayoutName = Annotated[str, Limits(choices=tuple(LAYOUTS))]
_NORMS = ("spectral", "batch", "none")

# Names of the tensors of a layer in a file, and in a module of torch's present spectral normalization.
_PARAMETRIZED = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}
# Names by which a layer's normalization depends on a class.
_CLASS_CONDITIONAL = (".gain.weight", ".embed.weight", "embedding.weight", "l_y.weight")


def make(
    resolution: int,
    channels: int,
    latent_dim: int,
    width: int | None = None,
    energy: str | None = None,
    layout: _LayoutName = "mimicry",
    base_width: Annotated[int | None, Limits(gt=0)] = None,
    energy_layout: Annotated[str | None, Limits(choices=tuple(LAYOUTS))] = None,
    energy_width: Annotated[int | None, Limits(gt=0)] = None,
    energy_norm: Annotated[str, Limits(choices=_NORMS)] = "spectral",
    latents: Annotated[str, Limits(choices=tuple(LATENTS))] = "normal",
    output: Annotated[str, Limits(choices=("tanh", "sigmoid"))] = "tanh",
) -> tuple[nn.Module, nn.Module]:
    """Build a base and an energy that take weights of a published layout; see :func:`gebm.networks.make`.

    Args:
        resolution: Pixels on a side, one of the layout's.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        width: Width of an energy of another family.
        energy: Another family, whose energy replaces the layout's own.
        layout: Layout of the generator; weights say which.
        base_width: Its width: ngf or g_conv_dim (default: as published, or as the weights have it).
        energy_layout: Layout of the discriminator (default: that of the generator).
        energy_width: Its width: ndf or d_conv_dim (default: as published, or as the weights have it).
        energy_norm: Normalization of the discriminator: of the weights, of the batch, or none.
        latents: Latents that the generator was trained with, where they were not standard normal.
        output: What the generator ends in: tanh, or sigmoid for a pair whose images are in [0, 1].

    Raises:
        ValueError: If the layout has no such resolution.
    """
    names = layout, energy_layout or layout
    for name in names if energy is None else names[:1]:
        if resolution not in LAYOUTS[name].widths:
            sizes = ", ".join(map(str, LAYOUTS[name].widths))
            raise ValueError(f"{name} has no resolution {resolution}: choose one of {sizes}")
    width_of_base = base_width or LAYOUTS[layout].widths[resolution][0]
    base = LAYOUTS[layout].base(Sizes(resolution, channels, width_of_base, latent_dim))
    is_unit = output == "sigmoid"
    if is_unit:
        base.tanh = SigmoidFloat32()
    pixels = (0.0, 1.0) if is_unit else (-1.0, 1.0)
    if energy is not None:
        # That one is trained on images in [-1, 1].
        base, _ = adapt(base, nn.Identity(), latents, pixels)
        return base, _energy_of_family(energy, resolution, channels, latent_dim, width)
    if width is not None:
        raise ValueError(f"width={width}: a published layout has a base_width and an energy_width")
    chosen = LAYOUTS[names[1]]
    width_of_energy = energy_width or chosen.widths[resolution][1]
    sizes_of_energy = Sizes(resolution, channels, width_of_energy, norm=cast(Norm, energy_norm))
    return adapt(base, chosen.energy(sizes_of_energy), latents, pixels)


def _energy_of_family(name: str, resolution: int, channels: int, latent_dim: int, width: int | None) -> nn.Module:
    # The registry of families has this one.
    from gebm import networks

    families = [
        family
        for family in networks.NAMES.having("tasks", "images")
        if family != "imported" and not networks.is_conditional(family)
    ]
    if name not in families:
        raise ValueError(f"energy={name}: choose the energy of one of {', '.join(families)}")
    return networks.make(name, resolution=resolution, channels=channels, latent_dim=latent_dim, width=width)[1]


def read(half: Half, tensors: Mapping[str, Tensor]) -> Reading:
    """Read the tensors of a generator or a discriminator of a published layout.

    Args:
        half: ``"base"`` for a generator, ``"energy"`` for a discriminator, whose logit changes its sign.
        tensors: Tensors by the names that they were published under.

    Raises:
        ValueError: They are of no layout here.
    """
    names = {_published_name(name): name for name in tensors}
    shapes = {_plain_weight(name): tuple(tensors[old].shape) for name, old in names.items()}
    name, sizes = _recognize(half, shapes)
    layout = LAYOUTS[name]
    if conditional := [names[key] for key in names if key.endswith(_CLASS_CONDITIONAL)]:
        raise ValueError(f"class-conditional ({conditional[0]}), and only unconditional ones are read")
    layers = (layout.base_layers if half == "base" else layout.energy_layers)(sizes)
    logit = list(layers)[-1] if half == "energy" else None
    state, called, left = {}, {new: old for old, new in layers.items()}, []
    for key, old in names.items():
        layer, _, leaf = key.rpartition(".")
        if layer not in layers:
            left.append(old)
            continue
        name_here = f"{layers[layer]}.{_PARAMETRIZED.get(leaf, leaf)}"
        # With its sign, the left singular vector changes its own: the norm is what it was.
        negated = layer == logit and leaf in ("weight", "weight_orig", "weight_u", "bias")
        state[name_here], called[name_here] = (-tensors[old] if negated else tensors[old]), old
    unused = tuple(old for old in left if half == "energy" and _published_name(old).startswith(layout.unused))
    if len(unused) < len(left):
        other = next(old for old in left if old not in unused)
        raise ValueError(f"with {other}, which {name} has not")
    return Reading(state, _settings(half, name, sizes), _sizes(half, sizes), called, unused, _kind(half, name, sizes))


def _recognize(half: Half, shapes: Shapes) -> tuple[str, Sizes]:
    """Return the layout that a file is of, and its sizes."""
    for name, layout in LAYOUTS.items():
        sizes = (layout.base_sizes if half == "base" else layout.energy_sizes)(shapes)
        if sizes is not None:
            return name, sizes
    raise ValueError(f"of no layout of {', '.join(LAYOUTS)}")


def _published_name(name: str) -> str:
    """Return the name of a tensor without what torch's wrappers add, as it was called when layouts were published."""
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    for old, new in _PARAMETRIZED.items():
        if name.endswith(f".{new}"):
            return f"{name.removesuffix(new)}{old}"
    return name


def _plain_weight(name: str) -> str:
    return name.removesuffix("_orig") if name.endswith(".weight_orig") else name


def _settings(half: Half, layout: str, sizes: Sizes) -> dict[str, object]:
    if half == "base":
        return {"layout": layout, "base_width": sizes.width}
    return {"energy_layout": layout, "energy_width": sizes.width, "energy_norm": sizes.norm}


def _sizes(half: Half, sizes: Sizes) -> dict[str, int]:
    both = {"resolution": sizes.resolution, "channels": sizes.channels}
    return both | ({"latent_dim": sizes.latent_dim} if half == "base" else {})


def _kind(half: Half, layout: str, sizes: Sizes) -> str:
    what = "generator" if half == "base" else "discriminator"
    return f"a {what} of {layout}, {sizes.resolution}x{sizes.resolution}, width {sizes.width}"
