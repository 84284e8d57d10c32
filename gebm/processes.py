"""What several processes that train one model have to agree on."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

__all__ = ["average_buffers", "joined", "process", "same_everywhere"]


def process() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


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


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Average running statistics over processes.

    Each process has updated them from its own part of the batch, and the energy steps that follow run the base with
    them: without this, every process would train the energy against a base of its own.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    _, world_size = process()
    if buffers and world_size > 1:
        joined = torch.cat([buffer.flatten() for buffer in buffers])
        distributed.all_reduce(joined)
        for buffer, mean in zip(
            buffers, (joined / world_size).split([buffer.numel() for buffer in buffers]), strict=True
        ):
            buffer.copy_(mean.view_as(buffer))
