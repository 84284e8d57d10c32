"""Weights in the layouts of torch_mimicry and StudioGAN, small, and what their generators and discriminators compute.

Written from the shapes, names and formulas that were published, in functions of named tensors, and without anything of
this project's networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

MIMICRY_BASES = {
    32: (4, lambda w: [w, w, w, w]),
    48: (6, lambda w: [w, w >> 1, w >> 2, w >> 3]),
    64: (4, lambda w: [w, w >> 1, w >> 2, w >> 3, w >> 4]),
    128: (4, lambda w: [w, w, w >> 1, w >> 2, w >> 3, w >> 4]),
}
MIMICRY_ENERGIES = {
    32: (lambda w: [w, w, w, w], (True, True, False, False), "l5"),
    48: (lambda w: [w >> 4, w >> 3, w >> 2, w >> 1, w], (True, True, True, True, False), "l5"),
    64: (lambda w: [w >> 4, w >> 3, w >> 2, w >> 1, w], (True,) * 5, "l6"),
    128: (lambda w: [w >> 4, w >> 3, w >> 2, w >> 1, w, w], (True,) * 5 + (False,), "l7"),
}
STUDIOGAN_BASES = {32: [4, 4, 4, 4], 64: [16, 8, 4, 2, 1]}
STUDIOGAN_ENERGIES = {
    32: ([2, 2, 2, 2], (True, True, False, False)),
    64: ([1, 2, 4, 8, 16], (True, True, True, True, False)),
}


class Maker:
    """Makes the tensors of one network.

    Args:
        seed: Seed of the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def layer(self, name: str, out: int, *inside: int, normalized: bool = False, transposed: bool = False) -> None:
        shape = (inside[0], out, *inside[1:]) if transposed else (out, *inside)
        weight = self.normal(*shape) / (weight_fan(shape) ** 0.5)
        self.state[f"{name}.bias"] = 0.1 * self.normal(out)
        self.weight(name, weight, normalized)

    def weight(self, name: str, weight: Tensor, normalized: bool) -> None:
        if not normalized:
            self.state[f"{name}.weight"] = weight
            return
        matrix = weight.flatten(1)
        u = F.normalize(self.normal(matrix.shape[0]), dim=0)
        # Not the singular vectors, but on the way: what is stored has to be what is used.
        v = F.normalize(matrix.T @ u, dim=0)
        u = F.normalize(matrix @ v, dim=0)
        self.state |= {f"{name}.weight_orig": weight, f"{name}.weight_u": u, f"{name}.weight_v": v}

    def norm(self, name: str, channels: int) -> None:
        self.state |= {
            f"{name}.weight": 1 + 0.2 * self.normal(channels),
            f"{name}.bias": 0.2 * self.normal(channels),
            f"{name}.running_mean": 0.3 * self.normal(channels),
            f"{name}.running_var": 0.5 + torch.rand(channels, generator=self.generator),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }

    def norm_of_classes(self, name: str, channels: int, num_classes: int) -> None:
        """Batch normalization whose gain and bias are linear in the class, or the plain one without classes."""
        self.norm(name if not num_classes else f"{name}.bn", channels)
        if num_classes:
            del self.state[f"{name}.bn.weight"], self.state[f"{name}.bn.bias"]
            self.state |= {
                f"{name}.{leaf}.weight": 0.3 * self.normal(channels, num_classes) for leaf in ("gain", "bias")
            }


def weight_fan(shape: tuple[int, ...]) -> int:
    return max(1, int(torch.tensor(shape[1:]).prod()))


def mimicry_generator(resolution: int, width: int = 16, latent_dim: int = 6, seed: int = 0) -> State:
    """Make the weights of torch_mimicry's ``SNGANGenerator`` or ``DCGANGenerator``."""
    side, widths = MIMICRY_BASES[resolution]
    channels, make = widths(width), Maker(seed)
    make.layer("l1", side * side * channels[0], latent_dim)
    for k, (inside, outside) in enumerate(pairwise(channels), start=2):
        make.norm(f"block{k}.b1", inside)
        make.norm(f"block{k}.b2", outside)
        make.layer(f"block{k}.c1", outside, inside, 3, 3)
        make.layer(f"block{k}.c2", outside, outside, 3, 3)
        make.layer(f"block{k}.c_sc", outside, inside, 1, 1)
    last = len(channels) + 1
    make.norm(f"b{last}", channels[-1])
    make.layer(f"c{last}", 3, channels[-1], 3, 3)
    return make.state


def run_mimicry_generator(state: State, z: Tensor, resolution: int) -> Tensor:
    side, widths = MIMICRY_BASES[resolution]
    count = len(widths(16)) - 1

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    x = linear(state, "l1", z)
    x = x.view(len(z), -1, side, side)
    for k in range(2, count + 2):
        h = F.relu(batch_norm(state, f"block{k}.b1", x))
        h = conv(state, f"block{k}.c1", up(h), padding=1)
        h = conv(state, f"block{k}.c2", F.relu(batch_norm(state, f"block{k}.b2", h)), padding=1)
        x = h + conv(state, f"block{k}.c_sc", up(x))
    x = F.relu(batch_norm(state, f"b{count + 2}", x))
    return torch.tanh(conv(state, f"c{count + 2}", x, padding=1))


def mimicry_discriminator(resolution: int, width: int = 16, normalized: bool = True, seed: int = 1) -> State:
    """Make the weights of torch_mimicry's ``SNGANDiscriminator``, or of its ``DCGANDiscriminator``."""
    widths, halved, last = MIMICRY_ENERGIES[resolution]
    channels, make = [3, *widths(width)], Maker(seed)
    for k, (inside, outside) in enumerate(pairwise(channels), start=1):
        hidden = outside if k == 1 else inside
        make.layer(f"block{k}.c1", hidden, inside, 3, 3, normalized=normalized)
        make.layer(f"block{k}.c2", outside, hidden, 3, 3, normalized=normalized)
        if halved[k - 1] or inside != outside:
            make.layer(f"block{k}.c_sc", outside, inside, 1, 1, normalized=normalized)
    make.layer(last, 1, channels[-1], normalized=normalized)
    return make.state


def run_mimicry_discriminator(state: State, x: Tensor, resolution: int) -> Tensor:
    _, halved, last = MIMICRY_ENERGIES[resolution]
    for k, halve in enumerate(halved, start=1):
        if k > 1:
            # In place: the shortcut reads x after it.
            x = F.relu(x)
        h = conv(state, f"block{k}.c1", x, padding=1)
        h = conv(state, f"block{k}.c2", F.relu(h), padding=1)
        h = F.avg_pool2d(h, 2) if halve else h
        if k == 1:
            shortcut = conv(state, "block1.c_sc", F.avg_pool2d(x, 2))
        elif f"block{k}.c_sc.bias" in state:
            shortcut = conv(state, f"block{k}.c_sc", x)
            shortcut = F.avg_pool2d(shortcut, 2) if halve else shortcut
        else:
            shortcut = x
        x = h + shortcut
    return linear(state, last, F.relu(x).sum((2, 3)))


def studiogan_generator(
    resolution: int, width: int = 4, latent_dim: int = 6, seed: int = 0, num_classes: int = 0
) -> State:
    """Make the weights of StudioGAN's ``resnet.Generator``, with batch norm by class where there are classes."""
    channels, make = [multiple * width for multiple in STUDIOGAN_BASES[resolution]], Maker(seed)
    make.layer("linear0", 16 * channels[0], latent_dim)
    for k, (inside, outside) in enumerate(pairwise(channels)):
        make.norm_of_classes(f"blocks.{k}.0.bn1", inside, num_classes)
        make.norm_of_classes(f"blocks.{k}.0.bn2", outside, num_classes)
        make.layer(f"blocks.{k}.0.conv2d0", outside, inside, 1, 1)
        make.layer(f"blocks.{k}.0.conv2d1", outside, inside, 3, 3)
        make.layer(f"blocks.{k}.0.conv2d2", outside, outside, 3, 3)
    make.norm("bn4", channels[-1])
    make.layer("conv2d5", 3, channels[-1], 3, 3)
    return make.state


def run_studiogan_generator(state: State, z: Tensor, labels: Tensor | None = None) -> Tensor:
    x = linear(state, "linear0", z).view(len(z), -1, 4, 4)
    for block in blocks_of(state, "conv2d1"):
        h = F.relu(norm_by_class(state, f"{block}.bn1", x, labels))
        h = conv(state, f"{block}.conv2d1", F.interpolate(h, scale_factor=2, mode="nearest"), padding=1)
        h = conv(state, f"{block}.conv2d2", F.relu(norm_by_class(state, f"{block}.bn2", h, labels)), padding=1)
        x = h + conv(state, f"{block}.conv2d0", F.interpolate(x, scale_factor=2, mode="nearest"))
    return torch.tanh(conv(state, "conv2d5", F.relu(batch_norm(state, "bn4", x, 1e-4)), padding=1))


def studiogan_discriminator(
    resolution: int, width: int = 4, norm: str = "spectral", seed: int = 1, num_classes: int = 0
) -> State:
    """Make the weights of StudioGAN's ``resnet.Discriminator``, with a projection where there are classes."""
    multiples, halved = STUDIOGAN_ENERGIES[resolution]
    channels, make = [3, *(multiple * width for multiple in multiples)], Maker(seed)
    normalized = norm == "spectral"
    for k, (inside, outside) in enumerate(pairwise(channels)):
        block = f"blocks.{k}.0"
        has_shortcut = halved[k] or inside != outside
        if has_shortcut:
            make.layer(f"{block}.conv2d0", outside, inside, 1, 1, normalized=normalized)
        make.layer(f"{block}.conv2d1", outside, inside, 3, 3, normalized=normalized)
        make.layer(f"{block}.conv2d2", outside, outside, 3, 3, normalized=normalized)
        if norm == "batch":
            if has_shortcut:
                make.norm(f"{block}.bn0", inside)
            make.norm(f"{block}.bn1", outside if k == 0 else inside)
            if k:
                make.norm(f"{block}.bn2", outside)
    make.layer("linear1", 1, channels[-1], normalized=normalized)
    if num_classes:
        make.weight("embedding", make.normal(num_classes, channels[-1]), normalized)
    return make.state


def run_studiogan_discriminator(state: State, x: Tensor, resolution: int, labels: Tensor | None = None) -> Tensor:
    halved = STUDIOGAN_ENERGIES[resolution][1]
    for k, block in enumerate(blocks_of(state, "conv2d1")):
        of_batch = f"{block}.bn1.weight" in state
        if k == 0:
            h = conv(state, f"{block}.conv2d1", x, padding=1)
            h = batch_norm(state, f"{block}.bn1", h, 1e-4) if of_batch else h
        else:
            if of_batch:
                h = F.relu(batch_norm(state, f"{block}.bn1", x, 1e-4))
            else:
                # In place: the shortcut reads x after it.
                h = x = F.relu(x)
            h = conv(state, f"{block}.conv2d1", h, padding=1)
            h = batch_norm(state, f"{block}.bn2", h, 1e-4) if of_batch else h
        h = conv(state, f"{block}.conv2d2", F.relu(h), padding=1)
        h = F.avg_pool2d(h, 2) if halved[k] else h
        if f"{block}.conv2d0.bias" in state:
            x = F.avg_pool2d(x, 2) if k == 0 else x
            x = batch_norm(state, f"{block}.bn0", x, 1e-4) if of_batch else x
            x = conv(state, f"{block}.conv2d0", x)
            x = F.avg_pool2d(x, 2) if halved[k] and k else x
        x = h + x
    return logit(state, F.relu(x).sum((2, 3)), labels)


def deep_conv_generator(width: int = 4, latent_dim: int = 6, seed: int = 0, num_classes: int = 0) -> State:
    """Make the weights of StudioGAN's ``deep_conv.Generator``; published ones have a width of 64."""
    channels, make = [8 * width, 4 * width, 2 * width, width], Maker(seed)
    make.layer("linear0", 16 * channels[0], latent_dim)
    for k, (inside, outside) in enumerate(pairwise(channels)):
        make.layer(f"blocks.{k}.0.deconv0", outside, inside, 4, 4, transposed=True)
        make.norm_of_classes(f"blocks.{k}.0.bn0", outside, num_classes)
    make.layer("conv4", 3, channels[-1], 3, 3)
    return make.state


def run_deep_conv_generator(state: State, z: Tensor, labels: Tensor | None = None) -> Tensor:
    x = linear(state, "linear0", z).view(len(z), -1, 4, 4)
    for block in blocks_of(state, "deconv0"):
        x = F.conv_transpose2d(x, state[f"{block}.deconv0.weight"], state[f"{block}.deconv0.bias"], 2, 1)
        x = F.relu(norm_by_class(state, f"{block}.bn0", x, labels))
    return torch.tanh(conv(state, "conv4", x, padding=1))


def deep_conv_discriminator(width: int = 4, norm: str = "batch", seed: int = 1, num_classes: int = 0) -> State:
    """Make the weights of StudioGAN's ``deep_conv.Discriminator``."""
    channels, make = [3, width, 2 * width, 4 * width], Maker(seed)
    normalized = norm == "spectral"
    for k, (inside, outside) in enumerate(pairwise(channels)):
        make.layer(f"blocks.{k}.0.conv0", outside, inside, 3, 3, normalized=normalized)
        make.layer(f"blocks.{k}.0.conv1", outside, outside, 4, 4, normalized=normalized)
        for name in ("bn0", "bn1") if norm == "batch" else ():
            make.norm(f"blocks.{k}.0.{name}", outside)
    make.layer("conv1", 8 * width, 4 * width, 3, 3, normalized=normalized)
    if norm == "batch":
        make.norm("bn1", 8 * width)
    make.layer("linear1", 1, 8 * width, normalized=normalized)
    if num_classes:
        make.weight("embedding", make.normal(num_classes, 8 * width), normalized)
    return make.state


def run_deep_conv_discriminator(state: State, x: Tensor, labels: Tensor | None = None) -> Tensor:
    def normalize(name: str, h: Tensor) -> Tensor:
        return batch_norm(state, name, h, 1e-4) if f"{name}.weight" in state else h

    for block in blocks_of(state, "conv0"):
        x = F.relu(normalize(f"{block}.bn0", conv(state, f"{block}.conv0", x, padding=1)))
        x = F.relu(normalize(f"{block}.bn1", conv(state, f"{block}.conv1", x, stride=2, padding=1)))
    x = F.relu(normalize("bn1", conv(state, "conv1", x, padding=1)))
    return logit(state, x.sum((2, 3)), labels)


def logit(state: State, features: Tensor, labels: Tensor | None) -> Tensor:
    """The linear logit; of an image and its class with the inner product of its features and the embedding."""
    value = linear(state, "linear1", features)
    return value if labels is None else value + (weight_of(state, "embedding")[labels] * features).sum(1, keepdim=True)


def norm_by_class(state: State, name: str, x: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        return batch_norm(state, name, x, 1e-4)
    mean, variance = (state[f"{name}.bn.running_{leaf}"][:, None, None] for leaf in ("mean", "var"))
    gain, bias = (state[f"{name}.{leaf}.weight"].T[labels][:, :, None, None] for leaf in ("gain", "bias"))
    return (x - mean) / (variance + 1e-4).sqrt() * (1 + gain) + bias


def blocks_of(state: State, layer: str) -> Iterator[str]:
    k = 0
    while f"blocks.{k}.0.{layer}.bias" in state:
        yield f"blocks.{k}.0"
        k += 1


def weight_of(state: State, name: str) -> Tensor:
    if f"{name}.weight" in state:
        return state[f"{name}.weight"]
    weight = state[f"{name}.weight_orig"]
    return weight / (state[f"{name}.weight_u"] @ weight.flatten(1) @ state[f"{name}.weight_v"])


def conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, weight_of(state, name), state[f"{name}.bias"], stride, padding)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weight_of(state, name), state[f"{name}.bias"])


def batch_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + eps).sqrt() * weight + bias
