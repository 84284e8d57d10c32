"""Seed of torch's random numbers on the CPU, for a block of code that draws them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["cpu_seed"]


@contextlib.contextmanager
def cpu_seed(seed: int) -> Iterator[None]:
    """Seed the CPU's generator in the block, and restore it after; those of GPUs, which are in use, stay as they are.

    Args:
        seed: The seed.

    Example:
        >>> with cpu_seed(0):
        ...     one = torch.rand(())
        >>> with cpu_seed(0):
        ...     bool(one == torch.rand(()))
        True
    """
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which would seed the generators of GPUs as well.
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield
