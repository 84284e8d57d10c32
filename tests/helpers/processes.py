"""Processes of the tests' own, which start where torch has been imported already."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["run_in_processes"]

# What a process would take seconds to import, once for all of them.
_IMPORTED = ["torch", "pytest", "hypothesis", "gebm.samplers"]


def run_in_processes(function: Callable[..., object], args: tuple[object, ...], count: int) -> None:
    """Call ``function(rank, *args)`` in each of so many processes, and wait for all of them."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    torch.multiprocessing.start_processes(function, args, nprocs=count, start_method="forkserver")
