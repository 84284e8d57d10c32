"""What several processes that train one model have to agree on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

__all__ = ["joined", "process", "same_everywhere", "share"]


def process() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Draw for all processes and keep this one's rows, so that what is drawn does not depend on how many there are.

    Args:
        n: Rows that this process takes; the others take as many.
        draw: Makes so many rows, the same on every process.

    Returns:
        Rows (n, ...).

    Example:
        >>> share(3, torch.arange)
        tensor([0, 1, 2])
    """
    rank, world_size = process()
    return draw(world_size * n)[rank * n : (rank + 1) * n]


def joined(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks."""
    _, world_size = process()
    if world_size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def same_everywhere(module: nn.Module) -> nn.Module:
    """Give every process the first one's weights and buffers."""
    _, world_size = process()
    if world_size > 1:
        for tensor in module.state_dict().values():  # these share the modules' storage
            distributed.broadcast(tensor, src=0)
    return module
