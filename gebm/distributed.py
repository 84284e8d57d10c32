"""Collective operations of the processes that train one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

__all__ = ["all_gather_rows", "broadcast_module", "draw_local_rows", "rank_and_world_size"]


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def draw_local_rows(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Draw for all processes and keep this one's rows, so that what is drawn does not depend on how many there are.

    Args:
        n: Rows that this process takes; each of the others takes ``n`` too.
        draw: Draws that many rows, the same on every process.

    Returns:
        Rows (n, ...).

    Example:
        >>> draw_local_rows(3, torch.arange)
        tensor([0, 1, 2])
    """
    rank, world_size = rank_and_world_size()
    return draw(world_size * n)[rank * n : (rank + 1) * n]


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks.

    It can be differentiated, any number of times: a process's rows get the sum of the gradients that all processes have
    of them.

    Args:
        rows: Rows (n, ...) of this process; each of the others has ``n`` too.

    Returns:
        Rows (n * processes, ...), the same on every process.

    Example:
        >>> all_gather_rows(torch.arange(3))
        tensor([0, 1, 2])
    """
    _, world_size = rank_and_world_size()
    return rows if world_size == 1 else cast(Tensor, _AllGatherRows.apply(rows))


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        _, world_size = rank_and_world_size()
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        rank, world_size = rank_and_world_size()
        return _AllReduceSum.apply(grad_outputs[0]).chunk(world_size)[rank]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _AllReduceSum.apply(grad_outputs[0])


@torch.no_grad()
def broadcast_module(module: nn.Module) -> nn.Module:
    """Give every process the first one's weights and buffers."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        # A state dict's tensors share the module's storage.
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)
    return module
