"""Folding of a model for a chain: fixed weights, folded together as far as algebra goes, in the fastest precision.

A chain evaluates the two networks thousands of times without changing them, and wants no gradient but that of the
latents. So once, before it starts: normalized weights are computed, batch normalization goes into the layer before it,
and the rest is laid out channels last. In float32 that is the same function to rounding.

In bfloat16 the networks' values have eight bits, and a potential from them two to three digits, though its sums are
taken in float32. A Langevin step tolerates that: the rounding of its drift is far below the noise that it adds. An
accept step does not, which compares two potentials of which each is in the hundreds; nor a log-partition, of which a
potential is the exponent; nor a descent without noise. Those stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_weights

from gebm.energies import BoundedEnergy
from gebm.model import GEBM
from gebm.networks.conditional import ClassEmbedding
from gebm.networks.double_backward import AvgPool2x2, Conv2d, LeakyReLU, ReLU
from gebm.networks.layers import BatchNorm2d, DownsampleConv2d, UpsampleConv2d

__all__ = ["folded", "folded_base"]

_LayerT = TypeVar("_LayerT", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


# A copy's weights must not be born in inference mode, where the chain it is for could be called.
@torch.inference_mode(False)
@torch.no_grad()
def folded(model: GEBM, precision: torch.dtype = torch.float32) -> GEBM:
    """Return the model as a chain needs it.

    A copy, that no later training moves. It is for sampling: its networks are in evaluation mode, their parameters are
    outside the graph and no longer those of the layers they came from.

    Args:
        model: The model, on its device.
        precision: Precision of the networks of images: float32, float64, or bfloat16 for kernels without an accept
            step. Those of vectors keep their own.

    Returns:
        The model to sample.

    Raises:
        ValueError: If the precision is another.

    Example:
        >>> from gebm import StandardNormal, networks
        >>> base, energy = networks.make("sngan_resnet", resolution=32, channels=3, latent_dim=8, width=8)
        >>> model = GEBM(base, energy, StandardNormal(8)).eval()
        >>> z = torch.randn(2, 8)
        >>> torch.allclose(folded(model).potential(z), model.potential(z), atol=1e-4)
        True
    """
    if precision not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(f"no sampling in {precision}: choose torch.float32, torch.float64 or torch.bfloat16")
    fixed = copy.deepcopy(model).eval().requires_grad_(False)
    if not _is_of_images(fixed.base):
        return fixed
    fixed.base = _InPrecision(_fold(fixed.base), precision)
    fixed.energy = BoundedEnergy(_InPrecision(_fold(fixed.energy.network), precision), fixed.energy.floor)
    return fixed.eval().requires_grad_(False)


@torch.inference_mode(False)
@torch.no_grad()
def folded_base(base: nn.Module, precision: torch.dtype | None = None) -> nn.Module:
    """Return a base as the draws of energy steps need it, between two steps of its own.

    Args:
        base: Maps latents (N, D) to samples (N, ...), on its device.
        precision: Precision of a network of images (default: that of its weights). Pixels have float32 at least.

    Returns:
        A copy in evaluation mode, folded; the base itself if it is not of images, for there is nothing to fold.

    Example:
        >>> from gebm import networks
        >>> base, _ = networks.make("sngan_resnet", resolution=32, channels=3, latent_dim=8, width=8)
        >>> z = torch.randn(2, 8)
        >>> torch.allclose(folded_base(base)(z), base.eval()(z), atol=1e-5)
        True
    """
    if not _is_of_images(base):
        return base
    # Not by a copy of storages, which a recorded step cannot repeat.
    copies = {id(buffer): buffer.clone() for buffer in base.buffers()}
    return _InPrecision(_fold(copy.deepcopy(base, copies).eval().requires_grad_(False)), precision)


class _InPrecision(nn.Module):
    """A network of images in one precision, channels last."""

    def __init__(self, network: nn.Module, precision: torch.dtype | None) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        layers = [layer for layer in network.modules() if not isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
        # A network without weights is a formula, and one whose weights are still computed computes them in full: they
        # get what they were written for.
        computed = any(parametrize.is_parametrized(layer) for layer in network.modules())
        self.precision = precision if parameters and not computed else None
        # Batch normalization that could not be folded mixes the two precisions, at no cost.
        if self.precision == torch.bfloat16:
            for parameter in parameters:
                parameter.data = parameter.data.to(precision)
        elif self.precision is not None:
            self.network.to(precision)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, ...) to outputs (N, ...), float32 or wider."""
        x = x if self.precision is None else x.to(self.precision)
        y = self.network(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
        return y.to(torch.promote_types(y.dtype, torch.float32))


# What an energy's layer does for its second derivative is done in Python, and a chain has only a first one.
_SIMPLE: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    LeakyReLU: lambda layer: nn.LeakyReLU(layer.negative_slope),
    ReLU: lambda layer: nn.ReLU(),
    AvgPool2x2: lambda layer: nn.AvgPool2d(2),
}


def _is_of_images(base: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in base.modules())


def _fold(module: nn.Module) -> nn.Module:
    """Return the module with its foldable layers folded, its parameters its own."""
    # What compilation and data parallelism wrap computes the same, and of hooks nobody knows what they do.
    inner = module.module if isinstance(module, DistributedDataParallel) else getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return _fold(inner)
    if _has_hooks(module):
        return module
    if type(module) in _SIMPLE:
        return _SIMPLE[type(module)](module)
    if parametrize.is_parametrized(module, "weight") or type(module) in (Conv2d, DownsampleConv2d, UpsampleConv2d):
        return _plain(module)
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        for name, child in list(module.named_children()):
            setattr(module, name, _fold(child))
        return module
    layers: list[nn.Module] = []
    for layer in map(_fold, module):
        if not (isinstance(layer, BatchNorm2d) and _fold_into(layers, layer)):
            layers.append(layer)
    return nn.Sequential(*layers)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold_into(layers: list[nn.Module], norm: BatchNorm2d) -> bool:
    """Fold batch normalization into the last of the layers before it; return whether that can be done."""
    if not (norm.affine and norm.track_running_stats and layers):
        return False
    before = layers[-1]
    linear = layers[-2] if len(layers) > 1 else None
    if any(map(_has_hooks, (norm, before, *([linear] if linear is not None else [])))):
        return False
    # A subclass may compute something else.
    if isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and type(before) in (nn.Conv2d, nn.ConvTranspose2d):
        layers[-1] = fuse_conv_bn_eval(before, norm, transpose=isinstance(before, nn.ConvTranspose2d))
        return True
    if type(before) is nn.Unflatten and isinstance(linear, nn.Linear) and type(linear) is nn.Linear:
        layers[-2] = _normalize_grid(linear, norm)
        return True
    return False


def _plain(layer: Any) -> nn.Module:
    """Return a layer with the weight that a normalized one has now, or that one of two layers in one is computed with.

    Not by removing the normalization: torch would take it from the class, which the copy shares with the original.
    """
    kind = parametrize.type_before_parametrizations(layer)
    bias = layer.bias is not None
    if kind is DownsampleConv2d:
        plain = _empty(nn.Conv2d, layer.in_channels, layer.out_channels, 4, stride=2, padding=1, bias=bias)
        return _with(plain, layer.strided(), layer.bias)
    if kind is UpsampleConv2d:
        plain = _empty(nn.ConvTranspose2d, layer.in_channels, layer.out_channels, 4, stride=2, padding=1, bias=bias)
        return _with(plain, layer.strided(), layer.bias)
    if kind in (nn.Linear, ClassEmbedding):
        plain = _empty(nn.Linear, layer.in_features, layer.out_features, bias)
    elif kind in (nn.Conv2d, Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        shape = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        plain = _empty(nn.Conv2d, layer.in_channels, layer.out_channels, *shape, bias=bias)
    else:
        return layer
    return _with(plain, layer.weight, layer.bias)


def _normalize_grid(linear: nn.Linear, norm: BatchNorm2d) -> nn.Linear:
    """Return a linear map with the batch normalization of the grid that its outputs are laid out on."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    num_pixels = linear.out_features // norm.num_features
    per_channel = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, variance, weight, bias = (x.repeat_interleave(num_pixels) for x in per_channel)
    fused = fuse_linear_bn_weights(linear.weight, linear.bias, mean, variance, norm.eps, weight, bias)
    # A layer of its own: something else may hold the one before.
    return _with(_empty(nn.Linear, linear.in_features, linear.out_features), *fused)


def _empty(kind: type[_LayerT], *args: Any, **kwargs: Any) -> _LayerT:
    """Build a layer whose weights are not drawn; of its type, which torch does not say."""
    return cast(_LayerT, skip_init(kind, *args, **kwargs))


def _with(layer: _LayerT, weight: Tensor, bias: Tensor | None) -> _LayerT:
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer.eval()
