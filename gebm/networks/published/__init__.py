"""Trained generators and discriminators of published layouts, as a base and an energy.

The energy is minus the discriminator's logit: of a discriminator at its optimum under the logistic loss, that is minus
the log-density of the data relative to the base (Che et al., NeurIPS 2020), which is what an energy is to a GEBM. With
classes, the logit is that of an image and its class, and so is the energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, cast

from torch import Tensor, nn

from gebm.networks.conditional import ConditionalBase, ConditionalEnergy
from gebm.networks.conventions import LATENTS, adapt
from gebm.networks.published.blocks import Norm, SigmoidFloat32
from gebm.networks.published.layout import HalfLayout, LayerTarget, Layout, Shapes, Sizes
from gebm.networks.published.layouts import LAYOUTS
from gebm.networks.weights import Half, Reading
from gebm.registry import Limits

__all__ = ["LAYOUTS", "Layout", "LayerTarget", "Sizes", "make", "make_conditional", "read", "read_conditional"]

_WITH_CLASSES = tuple(name for name, layout in LAYOUTS.items() if layout.has_classes)
_LayoutName = Annotated[str, Limits(choices=tuple(LAYOUTS))]
_LayoutWithClasses = Annotated[str, Limits(choices=_WITH_CLASSES)]
_Width = Annotated[int | None, Limits(gt=0)]
_NormName = Annotated[str, Limits(choices=("spectral", "batch", "none"))]

# Names of the tensors of a layer in a file, and in a module of torch's present spectral normalization.
_PARAMETRIZED = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}
# With its sign, the left singular vector changes its own: the norm is what it was.
_NEGATED = ("weight", "weight_orig", "weight_u", "bias")
# Of the transposed matrix the singular vectors are each other.
_TRANSPOSED = {"weight_u": "weight_v", "weight_v": "weight_u"}
# Names by which a layer's normalization depends on a class.
_CLASS_CONDITIONAL = (".gain.weight", ".embed.weight", "embedding.weight", "l_y.weight")
# Layer of a discriminator whose embeddings are compared with its features, and are no part of its logit.
_CONTRASTIVE = "linear2."


def make(
    resolution: int,
    channels: int,
    latent_dim: int,
    width: int | None = None,
    energy: str | None = None,
    layout: _LayoutName = "mimicry",
    base_width: _Width = None,
    energy_layout: Annotated[str | None, Limits(choices=tuple(LAYOUTS))] = None,
    energy_width: _Width = None,
    energy_norm: _NormName = "spectral",
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
    sizes = Sizes(resolution, channels, 0, latent_dim, cast(Norm, energy_norm))
    base = _build("base", layout, sizes, base_width)
    is_unit = output == "sigmoid"
    if is_unit:
        base.tanh = SigmoidFloat32()
    pixels = (0.0, 1.0) if is_unit else (-1.0, 1.0)
    if energy is not None:
        # That one is trained on images in [-1, 1].
        base, _ = adapt(base, nn.Identity(), latents, pixels)
        return base, _energy_of_family(energy, sizes, width)
    _refuse_width(width)
    return adapt(base, _build("energy", energy_layout or layout, sizes, energy_width), latents, pixels)


def make_conditional(
    resolution: int,
    channels: int,
    latent_dim: int,
    num_classes: int,
    width: int | None = None,
    energy: str | None = None,
    layout: _LayoutWithClasses = "studiogan_resnet",
    base_width: _Width = None,
    energy_layout: Annotated[str | None, Limits(choices=_WITH_CLASSES)] = None,
    energy_width: _Width = None,
    energy_norm: _NormName = "spectral",
) -> tuple[nn.Module, nn.Module]:
    """Build a base and an energy that take class-conditional weights; see :func:`gebm.networks.make`.

    Args:
        resolution: Pixels on a side, one of the layout's.
        channels: Color channels.
        latent_dim: Latent dimension ``D``.
        num_classes: Number of classes ``K``.
        width: Width of an energy of another family.
        energy: Another family of classes, whose energy replaces the layout's own.
        layout: Layout of the generator; weights say which.
        base_width: Its width: g_conv_dim (default: as published, or as the weights have it).
        energy_layout: Layout of the discriminator (default: that of the generator).
        energy_width: Its width: d_conv_dim (default: as published, or as the weights have it).
        energy_norm: Normalization of the discriminator: of the weights, of the batch, or none.

    Raises:
        ValueError: If the layout has no such resolution.
    """
    sizes = Sizes(resolution, channels, 0, latent_dim, cast(Norm, energy_norm), num_classes)
    base = ConditionalBase(_build("base", layout, sizes, base_width), latent_dim, num_classes)
    if energy is not None:
        return base, _energy_of_family(energy, sizes, width)
    _refuse_width(width)
    return base, ConditionalEnergy(_build("energy", energy_layout or layout, sizes, energy_width), num_classes)


def _build(half: Half, name: str, sizes: Sizes, width: int | None) -> nn.Module:
    """Build a half of a layout, in its published width unless another is given."""
    layout = LAYOUTS[name]
    if sizes.resolution not in layout.widths:
        known = ", ".join(map(str, layout.widths))
        raise ValueError(f"{name} has no resolution {sizes.resolution}: choose one of {known}")
    published = layout.widths[sizes.resolution][half == "energy"]
    return _half(layout, half).build(replace(sizes, width=width or published))


def _refuse_width(width: int | None) -> None:
    if width is not None:
        raise ValueError(f"width={width}: a published layout has a base_width and an energy_width")


def _energy_of_family(name: str, sizes: Sizes, width: int | None) -> nn.Module:
    # The registry of families has these.
    from gebm import networks

    num_classes = sizes.num_classes or None
    families = networks.energies_for(with_classes=num_classes is not None)
    if name not in families:
        raise ValueError(f"energy={name}: choose the energy of one of {', '.join(families)}")
    return networks.make(
        name,
        resolution=sizes.resolution,
        channels=sizes.channels,
        latent_dim=sizes.latent_dim,
        width=width,
        num_classes=num_classes,
    )[1]


def _half(layout: Layout, half: Half) -> HalfLayout:
    return layout.base if half == "base" else layout.energy


def read(half: Half, tensors: Mapping[str, Tensor]) -> Reading:
    """Read the tensors of a generator or a discriminator of a published layout, without classes.

    Args:
        half: ``"base"`` for a generator, ``"energy"`` for a discriminator, whose logit changes its sign.
        tensors: Tensors by the names that they were published under.

    Raises:
        ValueError: They are of no layout here.
    """
    layout, sizes = _recognize(half, tensors)
    if conditional := [name for name in tensors if _published_name(name).endswith(_CLASS_CONDITIONAL)]:
        more = f"and networks=imported_conditional reads those of {', '.join(_WITH_CLASSES)}"
        raise ValueError(f"class-conditional ({conditional[0]}), {more}")
    return _read_layout(half, layout, sizes, tensors)


def read_conditional(half: Half, tensors: Mapping[str, Tensor]) -> Reading:
    """Read the tensors of a class-conditional generator or discriminator of a published layout.

    Args:
        half: ``"base"`` for a generator with batch norm by class, ``"energy"`` for a discriminator with a projection
            on embeddings of the classes, whose logit changes its sign.
        tensors: Tensors by the names that they were published under.

    Raises:
        ValueError: They are of no layout here that has classes.
    """
    layout, sizes = _recognize(half, tensors)
    if not LAYOUTS[layout].has_classes:
        raise ValueError(f"of {layout}, of which no class-conditional ones are read")
    if not sizes.num_classes:
        lacking = "batch norm by class" if half == "base" else "a projection on classes"
        raise ValueError(f"without {lacking}, and networks=imported reads such as have no classes")
    if compared := [name for name in tensors if _published_name(name).startswith(_CONTRASTIVE)]:
        raise ValueError(f"with {compared[0]}: embeddings of classes that are no part of its logit")
    return _read_layout(half, layout, sizes, tensors)


def _recognize(half: Half, tensors: Mapping[str, Tensor]) -> tuple[str, Sizes]:
    """Return the layout that a file is of, and its sizes."""
    shapes: Shapes = {_plain_weight(_published_name(name)): tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, layout in LAYOUTS.items():
        sizes = _half(layout, half).sizes(shapes)
        if sizes is not None:
            return name, sizes
    raise ValueError(f"of no layout of {', '.join(LAYOUTS)}")


def _read_layout(half: Half, layout: str, sizes: Sizes, tensors: Mapping[str, Tensor]) -> Reading:
    # Networks of classes are inside of what takes images and classes apart.
    prefix = "network." if sizes.num_classes else ""
    known = _half(LAYOUTS[layout], half)
    targets = known.layers(sizes)
    state, left = {}, []
    called = {f"{prefix}{target.layer}": layer for layer, target in targets.items()}
    for name, tensor in tensors.items():
        layer, _, leaf = _published_name(name).rpartition(".")
        if layer not in targets:
            left.append(name)
            continue
        name_here, tensor_here = _placed(targets[layer], leaf, tensor)
        state[f"{prefix}{name_here}"], called[f"{prefix}{name_here}"] = tensor_here, name
    unused = tuple(name for name in left if _published_name(name).startswith(known.unused))
    if len(unused) < len(left):
        other = next(name for name in left if name not in unused)
        raise ValueError(f"with {other}, which {layout} has not")
    return Reading(
        state, _settings(half, layout, sizes), _sizes(half, sizes), called, unused, _kind(half, layout, sizes)
    )


def _placed(target: LayerTarget, leaf: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Return the name and the value that a tensor of a published layer has in the module here."""
    # Of no other tensors: what a weight should be and is not, is left to the caller, who compares it with the module's.
    is_number = tensor.is_floating_point()
    if is_number and target.kind == "gain":
        tensor = tensor + 1
    if is_number and target.kind in ("logit", "embedding") and leaf in _NEGATED:
        tensor = -tensor
    if target.kind == "embedding":
        tensor, leaf = tensor.transpose(0, -1).contiguous(), _TRANSPOSED.get(leaf, leaf)
    return f"{target.layer}.{_PARAMETRIZED.get(leaf, leaf)}", tensor


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
    of_half = {"latent_dim": sizes.latent_dim} if half == "base" else {}
    of_classes = {"num_classes": sizes.num_classes} if sizes.num_classes else {}
    return {"resolution": sizes.resolution, "channels": sizes.channels, **of_half, **of_classes}


def _kind(half: Half, layout: str, sizes: Sizes) -> str:
    what = "generator" if half == "base" else "discriminator"
    classes = f", {sizes.num_classes} classes" if sizes.num_classes else ""
    return f"a {what} of {layout}, {sizes.resolution}x{sizes.resolution}, width {sizes.width}{classes}"
