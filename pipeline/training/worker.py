"""Worker of a trial: its rank, its device, and what it shares with the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import ray.train
import ray.train.torch
import ray.util
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import distributed

# Documented there, and imported there under another name.
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

__all__ = ["Worker", "process_group"]


@contextlib.contextmanager
def process_group(timeout: float) -> Iterator[None]:
    """Have the workers of a trial in one process group of torch, and this process on its own device.

    A single worker needs no group, nor do workers that have one already.

    Args:
        timeout: Seconds that workers wait for one another.
    """
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1 or distributed.is_initialized():
        yield
        return
    address, limit = ray.util.get_node_ip_address(), timedelta(seconds=timeout)
    store = None
    if rank == 0:
        # Port 0 takes one that is free.
        store = TCPStore(address, 0, world_size, is_master=True, timeout=limit, wait_for_workers=False)
    host, port = broadcast_from_rank_zero((address, store.port) if store else ("", 0))
    if store is None:
        store = TCPStore(host, port, world_size, is_master=False, timeout=limit)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    yield
    # Not after an exception: the others may not come, and this process ends.
    distributed.destroy_process_group()


@dataclass(frozen=True)
class Worker:
    """One of a trial's workers.

    Attributes:
        rank: This worker, from 0.
        world_size: Number of workers.
        device: Where it trains.
        is_fresh: Whether its process has had no trial before, nor another attempt at this one.
    """

    rank: int
    world_size: int
    device: torch.device
    is_fresh: bool = field(default=True, repr=False)

    @classmethod
    def current(cls) -> Worker:
        """Return the worker that Ray Train runs this process as."""
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    @classmethod
    def alone(cls, gpus: float, *, is_fresh: bool = True) -> Worker:
        """Return the one worker of a trial, in a process that Ray has given its resources.

        Args:
            gpus: GPUs of the process; below 1, its memory on the GPU that it shares is bounded by that share.
            is_fresh: Whether the process has had no trial before.

        Example:
            >>> Worker.alone(0)
            Worker(rank=0, world_size=1, device=device(type='cpu'))
        """
        # With its index, which torch wants for some of the settings of a device. Ray shows a process its own GPUs only.
        device = torch.device("cuda", 0) if gpus else torch.device("cpu")
        if 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus, device)
        return cls(0, 1, device, is_fresh)

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
