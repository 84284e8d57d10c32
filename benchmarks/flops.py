"""How much arithmetic and how much memory traffic some work has, and how fast a machine could do it at best.

Floating-point operations are those of products and convolutions, by the formulas of torch's own counter, a
multiplication and an addition counting as two. Traffic is every operator's inputs and outputs, read or written once:
what happens if no operator is fused with its neighbor and no cache keeps anything between them. The roofline is taken
operator by operator, for a network alternates between convolutions, bound by arithmetic, and activations, bound by
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Counts", "count"]


class Counts(NamedTuple):
    """What some work consists of.

    Attributes:
        operators: Of each operator that touched memory, its floating-point operations and its bytes.
    """

    operators: tuple[tuple[int, int], ...]

    @property
    def flops(self) -> int:
        """Floating-point operations in all."""
        return sum(flops for flops, _ in self.operators)

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(size for _, size in self.operators)

    def least_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the roofline's time: each operator as long as its arithmetic or its traffic takes at the ceiling."""
        return sum(max(flops / flops_per_second, size / bytes_per_second) for flops, size in self.operators)


def count(work: Callable[[], object]) -> Counts:
    """Run some work once, backward passes included, and count."""
    with _Operators() as operators:
        work()
    return Counts(tuple(operators.found))


class _Operators(TorchDispatchMode):
    """Sees every operator below autograd and autocast.

    The counter itself cannot be run: to distinguish modules it hooks into the graph, and these hooks refuse a gradient
    that is taken with respect to a module's input in the midst of a loss, as the penalty's is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int]] = []
        self._formulas = FlopCounterMode(display=False).flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = func.overloadpacket
        if not (func.is_view or operator is torch.ops.aten.empty):
            flops = self._formulas[operator](*args, **kwargs, out_val=result) if operator in self._formulas else 0
            touched = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.found.append((flops, sum(tensor.numel() * tensor.element_size() for tensor in touched)))
        return result
