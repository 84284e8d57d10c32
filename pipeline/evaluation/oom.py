"""Chains are split to fit: where a device has no memory for a batch of them, batches of half the size are run.

A chain is the same whatever runs beside it, so all that the size of a batch decides is memory and time. How much memory
chains take depends on the networks, the sampler and what else is on the device, and the one who knows is the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from pipeline.runtime.errors import UserError

__all__ = ["halve_batch_on_oom"]

_Result = TypeVar("_Result")


def halve_batch_on_oom(
    work: Callable[[int, Callable[[int], None]], _Result],
    num_chains: int,
    batch_size: int,
    *,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> _Result:
    """Run chains in batches, and again from the first of them in batches of half the size until they fit.

    From the first, and not from the one that did not fit: so what is found is what the smaller size would have found
    from the start, to the last bit. It costs little, for the first batch is the largest.

    Args:
        work: Called with the size of a batch and with what it has to call with the chain-steps done since its last
            call; runs all the chains. A function of the size, it can be called again; workers that wait for one
            another in it would wait for ever, for each has a size of its own.
        num_chains: How many there are in all.
        batch_size: How many run at once, if they fit.
        advance: Called with the chain-steps done since the last call; those that were in vain are taken back.
        say: Called with one line if a smaller size was needed.

    Returns:
        What the work returned.

    Raises:
        UserError: Not even one chain fits.

    Example:
        >>> def work(size, advance):
        ...     if size > 30:
        ...         raise torch.OutOfMemoryError
        ...     return size
        >>> halve_batch_on_oom(work, 1000, 500, advance=lambda steps: None, say=lambda line: print(line[:42]))
        500 chains at once do not fit the device's
        15
    """
    asked = size = min(batch_size, num_chains)  # half of more than there are may be as many as before
    while True:
        done: list[int] = []

        def counted(steps: int, *, done: list[int] = done) -> None:
            done.append(steps)
            advance(steps)

        try:
            result = work(size, counted)
            break
        except torch.OutOfMemoryError:
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
    if size < asked:
        say(f"{asked} chains at once do not fit the device's memory, {size} do: set evaluation.batch_size={size}")
    return result
