"""Layers of energies, that a gradient penalty differentiates twice: the same functions as torch's, and what they cost.

A penalty is a function of the gradient of the energy with respect to its input, and its own gradient a second
derivative. Torch's layers spend on it what need not be spent. Their rectifiers and averages hand zeros down, and a
whole backward pass of the network carries them to the bottom: a third of the penalty's arithmetic. Their convolutions
compute the weights' part as a convolution that takes the batch for channels, for which images are laid out anew; the
gradient of a convolution with respect to its weights is what every library has, and fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AvgPool2x2", "Conv2d", "LeakyReLU", "ReLU", "convolve"]


class Conv2d(nn.Conv2d):
    """A convolution, dense and padded with zeros.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Pixels on a side of the kernel.
        stride: Pixels from one output to the next.
        padding: Zeros on each side.

    Example:
        >>> Conv2d(2, 3, 4, stride=2, padding=1)(torch.zeros(1, 2, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W')."""
        return convolve(input, self.weight, self.bias, self.stride[0], int(self.padding[0]))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` does, in an autocast region in its precision.

    Args:
        x: Images (N, in, H, W).
        weight: The kernel (out, in, k, k).
        bias: The bias (out,), or ``None``.
        stride: Pixels from one output to the next.
        padding: Zeros on each side.

    Returns:
        Images (N, out, H', W').

    Example:
        >>> x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> convolve(x, weight, torch.ones(1))
        tensor([[[[5.]]]])
    """
    operands = [x, weight, bias]
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        # Here and not inside: a backward pass runs outside the region, and meets the operands as they are here.
        precision = torch.get_autocast_dtype(kind)
        operands = [t if t is None or t.dtype == torch.float64 else t.to(precision) for t in operands]
    # Of a leaf of the graph torch does not say whether its gradient is wanted; of a view it does.
    operands = [t if t is None else t.view_as(t) for t in operands]
    return _Convolved.apply(*operands, stride, padding)


class _Convolved(torch.autograd.Function):
    """A convolution ``y`` of images ``x`` with a kernel ``w``, and a bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        if gradient is None:
            return None, None, None, None, None
        x, weight = ctx.saved_tensors
        # Without a bias there are only two.
        wanted = (*_wanted(ctx), False)[:3]
        if not torch.is_grad_enabled():
            return *_transposes(gradient, x, weight, ctx.geometry, wanted), None, None
        slots = x, weight, gradient
        return (
            _Derivative.apply(_X, *slots, ctx.geometry) if wanted[_X] else None,
            _Derivative.apply(_WEIGHT, *slots, ctx.geometry) if wanted[_WEIGHT] else None,
            gradient.sum((0, 2, 3)) if wanted[2] else None,
            None,
            None,
        )


_X, _WEIGHT, _Y = range(3)


class _Derivative(torch.autograd.Function):
    """The derivative of ``T(x, w, y) = <convolution of x with w, y>`` with respect to one of the three.

    ``T`` is linear in each, so this is a function of the other two; of the third only the shape is looked at. Its own
    derivatives with respect to those two are again derivatives of ``T``, with its gradient in place of the third.
    """

    @staticmethod
    def forward(ctx: Any, slot: int, x: Tensor, weight: Tensor, y: Tensor, geometry: tuple[int, int]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, y)
        ctx.slot, ctx.geometry = slot, geometry
        if slot == _Y:
            return F.conv2d(x, weight, None, *geometry)
        derivative = _transposes(y, x, weight, geometry, (slot == _X, slot == _WEIGHT, False))[slot]
        assert derivative is not None
        return derivative

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        if gradient is None:
            return None, None, None, None, None
        slots = list(ctx.saved_tensors)
        slots[ctx.slot] = gradient
        wanted = [slot != ctx.slot and is_wanted for slot, is_wanted in enumerate(_wanted(ctx))]
        gradients = [_Derivative.apply(slot, *slots, ctx.geometry) if wanted[slot] else None for slot in range(3)]
        return None, *gradients, None


def _wanted(ctx: Any) -> tuple[bool, ...]:
    """Return for each input whether this backward pass needs its gradient.

    ``needs_input_grad`` says only which could have one: weights can, and a penalty's first pass, that of a gradient
    with respect to ``x``, would compute theirs for nothing.
    """
    nodes = [node for node, _ in ctx.next_functions]
    return tuple(n is not None and (_is_leaf(n) or torch._C._will_engine_execute_node(n)) for n in nodes)


def _is_leaf(node: Any) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _transposes(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: tuple[int, int], wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients with respect to images, kernel and bias, those that are wanted."""
    stride, padding = ((number, number) for number in geometry)
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], stride, padding, (1, 1), False, (0, 0), 1, wanted
    )


class LeakyReLU(nn.LeakyReLU):
    """A leaky rectifier, whose second derivative is zero and costs nothing.

    It keeps its output and not its input, which nothing else needs, so that half of the memory is free.

    Args:
        negative_slope: Slope below zero, zero or more.

    Raises:
        ValueError: If the slope is negative, which the output cannot distinguish from a positive one.

    Example:
        >>> LeakyReLU(0.1)(torch.tensor([-1.0, 2.0]))
        tensor([-0.1000,  2.0000])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not negative_slope >= 0:
            raise ValueError(f"the slope below zero is {negative_slope}: choose zero or more")
        super().__init__(negative_slope)

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to its rectified values."""
        return _Rectified.apply(input, self.negative_slope)


class ReLU(nn.ReLU):
    """A rectifier: :class:`LeakyReLU` with the slope zero.

    Example:
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to its rectified values."""
        return _Rectified.apply(input, 0.0)


class _Rectified(torch.autograd.Function):
    """``x`` above zero and ``slope x`` below: its derivative is a constant of each, and so not differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        y = F.leaky_relu(x, slope) if slope else F.relu(x)
        ctx.save_for_backward(y)
        ctx.slope = slope
        ctx.set_materialize_grads(False)  # from above, too, comes nothing rather than zeros
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, None]:
        (gradient,) = grad_outputs
        return None if gradient is None else _Slope.apply(gradient, *ctx.saved_tensors, ctx.slope), None


class _Slope(torch.autograd.Function):
    """A gradient times the rectifier's slope: linear in the gradient, and its own derivative."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        if slope == 0:  # whatever comes from above, nothing comes from a unit that is off
            return torch.ops.aten.threshold_backward(gradient, y, 0)
        return torch.ops.aten.leaky_relu_backward(gradient, y, slope, True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, None, None]:
        (gradient,) = grad_outputs
        return None if gradient is None else _Slope.apply(gradient, *ctx.saved_tensors, ctx.slope), None, None


class AvgPool2x2(nn.Module):
    """The mean over 2x2 pixels, whose second derivative is zero and costs nothing.

    Example:
        >>> AvgPool2x2()(torch.arange(4.0).reshape(1, 1, 2, 2))
        tensor([[[[1.5000]]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / 2, W / 2).

        Raises:
            ValueError: If a side is odd.
        """
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(f"a grid of {x.shape[-2]} x {x.shape[-1]} pixels has no half: both have to be even")
        return _Halved.apply(x)


class _Halved(torch.autograd.Function):
    """The mean over 2x2 pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor | None:
        (gradient,) = grad_outputs
        return None if gradient is None else _Spread.apply(gradient)


class _Spread(torch.autograd.Function):
    """A quarter to each of 2x2 pixels: the transpose of the mean over them, as that is the transpose of this."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return F.interpolate(gradient, scale_factor=2) / 4

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor | None:
        (gradient,) = grad_outputs
        return None if gradient is None else _Halved.apply(gradient)
