"""Retry of chains in batches of half the size, on running out of memory.

A chain is the same whatever runs next to it, so the size of a batch decides only memory and time. How much memory
chains take depends on the networks, the sampler and what else is on the device, and only the device knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from pipeline.runtime.errors import UserError

__all__ = ["halve_batch_on_oom", "is_out_of_memory"]

# Libraries of CUDA have memory of their own, and say in their own words that there is none left; so does the CPU.
_OUT_OF_MEMORY = re.compile(r"out of memory|\w+_STATUS_(\w+_)?ALLOC\w*_FAILED|DefaultCPUAllocator: (can't|not enough)")

_Result = TypeVar("_Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the machine, has no memory left.

    Args:
        error: What was raised.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
        True
        >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def halve_batch_on_oom(
    work: Callable[[int, Callable[[int], None]], _Result],
    num_chains: int,
    batch_size: int,
    *,
    advance: Callable[[int], None],
    notify: Callable[[str], None],
) -> _Result:
    """Run chains in batches, and again from the first one in batches of half the size until they fit.

    From the first, and not from the one that did not fit: so the result is what the smaller size would have given
    from the start, to the last bit. It costs little, for the first batch is the largest.

    Args:
        work: Called with the size of a batch and with a callback for the chain-steps done since its last call; runs
            all the chains. It can be called again, being a function of the size; it must not wait for other workers,
            for each has a size of its own.
        num_chains: Number of chains in all.
        batch_size: Number of chains at once, if they fit.
        advance: Called with the chain-steps done since the last call; those that were in vain are subtracted.
        notify: Called with a one-line message if a smaller size was needed.

    Returns:
        The result of ``work``.

    Raises:
        UserError: Not even one chain fits.

    Example:
        >>> def work(size, advance):
        ...     if size > 30:
        ...         raise torch.OutOfMemoryError
        ...     return size
        >>> halve_batch_on_oom(work, 1000, 500, advance=lambda steps: None, notify=lambda line: print(line[:42]))
        500 chains at once do not fit the device's
        15
    """
    # Half of a batch larger than the number of chains may be the same number as before.
    requested = size = min(batch_size, num_chains)
    while True:
        done: list[int] = []

        def counted(steps: int, *, done: list[int] = done) -> None:
            done.append(steps)
            advance(steps)

        try:
            result = work(size, counted)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UserError(
                    "not even one chain fits the device's memory: lower model.width or train.batch_size, end what else "
                    "runs on the device, or take one with more memory"
                ) from None
        # Only out here is the exception gone, whose frames hold the very tensors that were too many.
        advance(-sum(done))
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if size < requested:
        notify(
            f"{requested} chains at once do not fit the device's memory, {size} do: set evaluation.batch_size={size}"
        )
    return result
