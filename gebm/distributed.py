"""Collective operations of the processes that train one model."""

from __future__ import annotations

from collections.abc import Callable

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
    """Return the rows of all processes, in the order of their ranks."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def broadcast_module(module: nn.Module) -> nn.Module:
    """Give every process the first one's weights and buffers."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        # A state dict's tensors share the module's storage.
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)
    return module
