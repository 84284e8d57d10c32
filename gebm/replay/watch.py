"""What a function reads from outside and computes, and what keeps it from being recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Refused", "Watch"]

_READS = {"_local_scalar_dense", "equal", "is_nonzero"}


class Refused(Exception):
    """Why a step cannot be recorded."""


class Watch(TorchDispatchMode):
    """Dispatch mode that collects the tensors from outside that a function reads, and refuses what no replay repeats.

    Args:
        state: Tensors that the function may change; any if None.
        fixed: Tensors whose value it must not read on the host (default: none).

    Attributes:
        kept: The tensors that were read, by their storage; a CUDA graph needs them alive.
        reads: Whether the host reads numbers of the state.
    """

    def __init__(self, state: Sequence[Tensor] | None = None, fixed: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.kept: dict[int, Any] = {}
        self.reads = False
        self._made: dict[int, Any] = {}
        self._may_change = None if state is None else {_storage(tensor) for tensor in state}
        self._fixed = {_storage(tensor) for tensor in fixed}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Layers whose weights are replaced are built on no device.
        if torch.Tag.nondeterministic_seeded in func.tags and not any(tensor.is_meta for tensor in tensors):
            raise Refused(f"{name} draws random numbers that are not on the tape")
        arguments = func._schema.arguments
        given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        for argument, value in given:
            changes = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in pytree.tree_leaves(value):
                if not isinstance(tensor, Tensor) or (key := _storage(tensor)) in self._made:
                    continue
                if changes and self._may_change is not None and key not in self._may_change:
                    raise Refused(f"{name} changes a tensor that is no part of the state")
                if name in _READS and key in self._fixed:
                    raise Refused("it depends on the number of the step, and has no step_kind")
                self.reads |= name in _READS and key in (self._may_change or ())
                self.kept[key] = tensor
        result = func(*args, **kwargs)
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := _storage(tensor)) not in self.kept:
                # Without its memory: no other storage gets the same number while this one is known.
                self._made[key] = StorageWeakRef(tensor.untyped_storage())
        return result

    def has_made(self, tensor: Tensor) -> bool:
        """Return whether the function computed a tensor, or what it is a view of."""
        return _storage(tensor) in self._made


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
