"""A CUDA graph on the CPU: operators are recorded with the tensors they were called with, and replayed without Python.

A replay computes the same operators again, each from the memory of its operands into that of its result. Whatever
Python decided, or read, while the graph was recorded stays as it was: as on a GPU, a number that should have changed
between two replays does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperatorGraph", "capture"]


class OperatorGraph(TorchDispatchMode):
    """The operators of a block, which :meth:`replay` computes again on the memory that their operands had."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, *pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}, result))))
        return result

    def replay(self) -> None:
        """Compute all operators again, in place."""
        with torch.no_grad():
            for func, args, kwargs, old in self._calls:
                # A view shows what its base has become.
                if func.is_view:
                    continue
                new = func(*args, **kwargs)
                for into, tensor in zip(pytree.tree_leaves(old), pytree.tree_leaves(new), strict=True):
                    if isinstance(into, Tensor) and into.data_ptr() != tensor.data_ptr():
                        into.detach().copy_(tensor)


def capture(
    run: Callable[[], Sequence[Tensor]], device: torch.device, pool: Any
) -> tuple[Sequence[Tensor], Callable[[], None]]:
    """Replacement of :func:`gebm.replay.recording.capture`; unlike a capture on a GPU, it computes."""
    graph = OperatorGraph()
    with graph:
        results = tuple(run())
    return results, graph.replay
