"""StudioGAN's residual networks and its convolutions (Kang, Shin and Park, 2022), with classes and without.

With classes, the generator is batch-normalized by class, by a gain that one is added to and a bias, and the
discriminator's logit has the inner product of its features with an embedding of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import nn

from gebm.networks.conditional import ConditionalBatchNorm2d
from gebm.networks.double_backward import Conv2d, ReLU
from gebm.networks.layers import BatchNorm2d, TanhFloat32, xavier
from gebm.networks.published.blocks import FixedBatchNorm2d, SumPool, normalizer
from gebm.networks.published.layout import (
    HalfLayout,
    LayerTarget,
    Layout,
    Shapes,
    Sizes,
    count_layers,
    has_dims,
    norm_of,
)
from gebm.networks.published.residual import layers_in_order, logit_layer, residual_base, residual_energy

__all__ = ["STUDIOGAN_DEEP_CONV", "STUDIOGAN_RESNET"]

# Channels of each grid in widths.
_BASES: Mapping[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (16, 8, 4, 2, 1),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
# Channels after each block in widths, and how many of the blocks halve the grid.
_ENERGIES: Mapping[int, tuple[tuple[int, ...], int]] = {
    32: ((2, 2, 2, 2), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
    512: ((1, 1, 2, 4, 8, 8, 16, 16), 7),
}
# What its layers add to a variance, and take for the least norm of a vector.
_VARIANCE, _NORM = 1e-4, 1e-6
# Layers of tasks other than the logit: classifiers of images, and of codes.
_UNUSED = ("linear2.", "linear_mi.", "embedding_mi.", "info_")


def _residual_base_sizes(shapes: Shapes) -> Sizes | None:
    count = count_layers(shapes, "blocks.{}.0.conv2d1", start=0)
    linear, first, last = (shapes.get(f"{name}.weight") for name in ("linear0", "blocks.0.0.conv2d1", "conv2d5"))
    for resolution, multiples in _BASES.items():
        if len(multiples) == count + 1 and has_dims(linear, 2) and has_dims(first, 4) and has_dims(last, 4):
            width, classes = first[1] // multiples[0], _classes_of_base(shapes, "bn1")
            return Sizes(resolution, last[0], width, latent_dim=linear[1], num_classes=classes)
    return None


def _residual_energy_sizes(shapes: Shapes) -> Sizes | None:
    count = count_layers(shapes, "blocks.{}.0.conv2d1", start=0)
    first, linear = shapes.get("blocks.0.0.conv2d1.weight"), shapes.get("linear1.weight")
    for resolution, (multiples, _) in _ENERGIES.items():
        if len(multiples) == count and has_dims(first, 4) and has_dims(linear, 2):
            norm, classes = norm_of(shapes, "blocks.0.0.conv2d1", "blocks.0.0.bn1"), _classes_of_energy(shapes)
            return Sizes(resolution, first[1], first[0] // multiples[0], norm=norm, num_classes=classes)
    return None


def _residual_base(sizes: Sizes) -> nn.Module:
    widths = [multiple * sizes.width for multiple in _BASES[sizes.resolution]]
    return residual_base(sizes, 4, widths, bilinear=False, eps=_VARIANCE)


def _residual_energy(sizes: Sizes) -> nn.Module:
    multiples, halved = _ENERGIES[sizes.resolution]
    eps = _VARIANCE if sizes.norm == "batch" else _NORM
    widths = [multiple * sizes.width for multiple in multiples]
    return residual_energy(sizes, widths, halved, is_wide_inside=True, eps=eps)


def _residual_base_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    names = {"conv2d0": "shortcut.conv", "conv2d1": "residual.conv1", "conv2d2": "residual.conv2"}
    targets: dict[str, LayerTarget] = {}
    for k in range(len(_BASES[sizes.resolution]) - 1):
        old, new = f"blocks.{k}.0", f"block{k + 1}"
        targets |= {f"{old}.{name}": LayerTarget(f"{new}.{here}") for name, here in names.items()}
        targets |= _norm_layers(sizes, f"{old}.bn1", f"{new}.residual.norm1")
        targets |= _norm_layers(sizes, f"{old}.bn2", f"{new}.residual.norm2")
    return {"linear0": LayerTarget("linear"), **targets, "bn4": LayerTarget("norm"), "conv2d5": LayerTarget("conv")}


def _residual_energy_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    convolutions = {"conv2d0": "shortcut.conv", "conv2d1": "residual.conv1", "conv2d2": "residual.conv2"}
    norms = {"bn0": "shortcut.norm", "bn1": "residual.norm1", "bn2": "residual.norm2"}
    # The first block has one normalization less, and counts from the second.
    first = {"bn0": "shortcut.norm", "bn1": "residual.norm2"}
    blocks = {
        f"blocks.{k}.0.{old}": LayerTarget(f"block{k + 1}.{new}")
        for k in range(len(_ENERGIES[sizes.resolution][0]))
        for old, new in (convolutions | (norms if k else first)).items()
    }
    return {**blocks, **_logit_layers(sizes)}


def _deep_conv_base_sizes(shapes: Shapes) -> Sizes | None:
    linear, first, last = (shapes.get(f"{name}.weight") for name in ("linear0", "blocks.0.0.deconv0", "conv4"))
    if not (has_dims(linear, 2) and has_dims(first, 4) and has_dims(last, 4)):
        return None
    classes = _classes_of_base(shapes, "bn0")
    return Sizes(32, last[0], first[0] // 8, latent_dim=linear[1], num_classes=classes)


def _deep_conv_energy_sizes(shapes: Shapes) -> Sizes | None:
    first, linear = shapes.get("blocks.0.0.conv0.weight"), shapes.get("linear1.weight")
    if not (has_dims(first, 4) and has_dims(linear, 2)):
        return None
    norm = norm_of(shapes, "blocks.0.0.conv0", "blocks.0.0.bn0")
    return Sizes(32, first[1], first[0], norm=norm, num_classes=_classes_of_energy(shapes))


def _deep_conv_base(sizes: Sizes) -> nn.Module:
    widths = [sizes.width * multiple for multiple in (8, 4, 2, 1)]
    layers: dict[str, nn.Module] = {}
    for k, (wide, narrow) in enumerate(pairwise(widths), start=1):
        layers[f"conv{k}"] = xavier(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
        by_class = ConditionalBatchNorm2d(narrow, sizes.num_classes, _VARIANCE) if sizes.num_classes else None
        layers |= {f"norm{k}": by_class or BatchNorm2d(narrow, eps=_VARIANCE), f"relu{k}": nn.ReLU()}
    return layers_in_order(
        sizes,
        linear=xavier(nn.Linear(sizes.latent_dim, widths[0] * 16)),
        grid=nn.Unflatten(1, (widths[0], 4, 4)),
        **layers,
        conv=xavier(nn.Conv2d(widths[-1], sizes.channels, 3, padding=1)),
        tanh=TanhFloat32(),
    )


def _deep_conv_energy(sizes: Sizes) -> nn.Module:
    of_batch, of_weights = sizes.norm == "batch", normalizer(sizes.norm, _NORM)
    widths = [sizes.channels, *(sizes.width * multiple for multiple in (1, 2, 4))]
    layers: dict[str, nn.Module | None] = {}

    def add(name: str, conv: Conv2d) -> None:
        layers[f"conv{name}"] = of_weights(xavier(conv))
        layers[f"norm{name}"] = FixedBatchNorm2d(conv.out_channels, _VARIANCE) if of_batch else None
        layers[f"relu{name}"] = ReLU()

    for k, (narrow, wide) in enumerate(pairwise(widths), start=1):
        add(f"{k}", Conv2d(narrow, wide, 3, padding=1))
        add(f"{k}_down", Conv2d(wide, wide, 4, stride=2, padding=1))
    features = widths[-1] * 2
    add("4", Conv2d(widths[-1], features, 3, padding=1))
    return layers_in_order(sizes, **layers, pool=SumPool(), linear=logit_layer(sizes, features, _NORM))


def _deep_conv_base_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    targets: dict[str, LayerTarget] = {}
    for k in range(3):
        targets[f"blocks.{k}.0.deconv0"] = LayerTarget(f"conv{k + 1}")
        targets |= _norm_layers(sizes, f"blocks.{k}.0.bn0", f"norm{k + 1}")
    return {"linear0": LayerTarget("linear"), **targets, "conv4": LayerTarget("conv")}


def _deep_conv_energy_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    names = {"conv0": "conv{}", "bn0": "norm{}", "conv1": "conv{}_down", "bn1": "norm{}_down"}
    blocks = {f"blocks.{k}.0.{old}": LayerTarget(new.format(k + 1)) for k in range(3) for old, new in names.items()}
    return {**blocks, "conv1": LayerTarget("conv4"), "bn1": LayerTarget("norm4"), **_logit_layers(sizes)}


def _classes_of_base(shapes: Shapes, norm: str) -> int:
    """Return the number of classes of a generator by the gains of the first normalization of its blocks, or 0."""
    gain = shapes.get(f"blocks.0.0.{norm}.gain.weight")
    return gain[1] if has_dims(gain, 2) else 0


def _classes_of_energy(shapes: Shapes) -> int:
    """Return the number of classes of a discriminator by their embeddings, or 0."""
    embedding = shapes.get("embedding.weight")
    return embedding[0] if has_dims(embedding, 2) else 0


def _norm_layers(sizes: Sizes, name: str, target: str) -> dict[str, LayerTarget]:
    """Return the layers of a batch normalization of a generator, which is three layers where it is by class."""
    if not sizes.num_classes:
        return {name: LayerTarget(target)}
    return {
        f"{name}.bn": LayerTarget(f"{target}.norm"),
        f"{name}.gain": LayerTarget(f"{target}.scale", "gain"),
        f"{name}.bias": LayerTarget(f"{target}.shift"),
    }


def _logit_layers(sizes: Sizes) -> dict[str, LayerTarget]:
    if not sizes.num_classes:
        return {"linear1": LayerTarget("linear", "logit")}
    return {"linear1": LayerTarget("linear.linear", "logit"), "embedding": LayerTarget("linear.embedding", "embedding")}


STUDIOGAN_RESNET = Layout(
    widths=dict.fromkeys(_BASES, (64, 64)),
    base=HalfLayout(_residual_base_sizes, _residual_base, _residual_base_layers),
    energy=HalfLayout(_residual_energy_sizes, _residual_energy, _residual_energy_layers, _UNUSED),
    has_classes=True,
)
"""The residual networks of its SNGAN; the widths are ``g_conv_dim`` and ``d_conv_dim``."""

STUDIOGAN_DEEP_CONV = Layout(
    widths={32: (64, 64)},
    base=HalfLayout(_deep_conv_base_sizes, _deep_conv_base, _deep_conv_base_layers),
    energy=HalfLayout(_deep_conv_energy_sizes, _deep_conv_energy, _deep_conv_energy_layers, _UNUSED),
    has_classes=True,
)
"""The convolutions of its DCGAN, which are published in a width of 64."""
