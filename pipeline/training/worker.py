"""Worker of a trial: its rank, its device, and what it shares with the others."""

from __future__ import annotations

from dataclasses import dataclass

import ray.train
import ray.train.torch
import torch

__all__ = ["Worker"]


@dataclass(frozen=True)
class Worker:
    """One of a trial's workers.

    Attributes:
        rank: This worker, from 0.
        world_size: Number of workers.
        device: Where it trains.
    """

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls) -> Worker:
        """Return the worker that Ray Train runs this process as."""
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that saves, and decides for all."""
        return self.rank == 0

    def from_first(self, value: float) -> float:
        """Return the first worker's value on all of them; all have to call it."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return shared.item()

    def copy_from_first(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor with the first worker's, in place; all have to call it."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=0)
