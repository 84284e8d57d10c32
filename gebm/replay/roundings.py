"""Steps whose operators are off by one rounding each, at random: what rounding alone may change of a step.

Two ways to compute the same, with sums in another order or with kernels that are fused, round differently in each of
their operators. So the effect of rounding is measured where it arises: the result of each operator is moved up or down
by one rounding of its type, at random, in all forward and backward passes (Parker, *Monte Carlo arithmetic*, UCLA
1997). A number that is the small difference of large ones, as the gradient of a bias may be, so moves by as much as it
does when these are summed in another order. Roundings of the weights alone would miss that.

A sum of ``n`` numbers rounds more than once. It is made of partial sums, sixteen at least in the registers of any
processor, each of ``n / 16`` numbers in turn, and so is off by about ``(n / 16)^(1/2)`` roundings. The number ``n`` is
that of the largest argument over that of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Roundings"]

# Products of matrices and convolutions, whose operands have ten bits in TF32.
_PRODUCTS = {
    torch.ops.aten.addbmm,
    torch.ops.aten.addmm,
    torch.ops.aten.addmv,
    torch.ops.aten.baddbmm,
    torch.ops.aten.bmm,
    torch.ops.aten.convolution,
    torch.ops.aten.convolution_backward,
    torch.ops.aten.mm,
    torch.ops.aten.mv,
}
_TF32 = 2.0**-10
# Partial sums that a sum is made of at least.
_LANES = 16
# The increment and the first multiplier of SplitMix64, as signed numbers.
_INCREMENT, _MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64


class Roundings(TorchDispatchMode):
    """Dispatch mode in which each floating-point result of an operator is off by one rounding, up or down at random.

    The result of a sum is off by more of them. Backward passes of normalizations are taken apart into their operators,
    as torch's compiler does it.

    Operators that change a tensor in place are left alone: what they change is mostly the state, and how that is stored
    has a bound of its own (:mod:`gebm.replay.agreement`).

    Args:
        precision: A name of :data:`gebm.precision.NAMES`. In tf32 the operands of products are off by one of its
            roundings as well. The types of bfloat16 and float64 speak for themselves.
        seed: Seed of the signs. They are a function of it and of how many came before, and no generator moves.

    Example:
        >>> x = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        >>> with Roundings("float32", seed=0):
        ...     y = x * 1
        >>> off = (y - x) / (x * 2**-23)
        >>> bool((off.abs() < 2).all()), bool(off.mean().abs() < 0.1)
        (True, True)
    """

    def __init__(self, precision: str, seed: int) -> None:
        super().__init__()
        self._is_tf32, self._position = precision == "tf32", seed % 2**14 << 48

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # One operator here, several of a compiled step: a mean over all pixels is rounded before it is taken from each.
        if func._schema.name.endswith("norm_backward") and (parts := decomposition_table.get(func)) is not None:
            with self:
                return parts(*args, **kwargs)
        if self._is_tf32 and func.overloadpacket in _PRODUCTS:
            args = pytree.tree_map_only(Tensor, lambda tensor: self._off(tensor, _TF32), args)
        result = func(*args, **kwargs)
        if func.is_view or func._schema.is_mutable:
            return result
        largest = max((leaf.numel() for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)), default=0)

        def off(tensor: Tensor) -> Tensor:
            terms = largest / max(tensor.numel(), 1)
            unit = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
            return self._off(tensor, unit * max(1.0, (terms / _LANES) ** 0.5))

        return pytree.tree_map_only(Tensor, off, result)

    def _off(self, tensor: Tensor, size: float) -> Tensor:
        # Layers whose weights are replaced are built on no device.
        if not tensor.is_floating_point() or tensor.is_meta:
            return tensor
        first, self._position = self._position, self._position + tensor.numel()
        words = torch.arange(first, self._position, device=tensor.device).mul_(_INCREMENT)
        words = words.bitwise_xor_(words >> 30).mul_(_MULTIPLIER)
        # The highest bit: zero or minus one.
        factors = (words >> 63).to(tensor.dtype).mul_(2 * size).add_(1 + size)
        return tensor * factors.view(tensor.shape)
