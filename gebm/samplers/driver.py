"""The one driver that runs every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.samplers.kernel import Info, Kernel, Potential, State, require_count

__all__ = ["Chain", "run"]


class Chain(NamedTuple):
    """What a run leaves behind.

    Attributes:
        z: Last positions (N, D).
        state: Last state; pass it back to `run` to go on.
        infos: The kernel's infos with all their entries stacked over the steps of this run, (num_steps, N); None if
            the run had no steps.
    """

    z: Tensor
    state: State
    infos: Info | None


@torch.no_grad()
def run(
    kernel: Kernel,
    potential: Potential,
    z0: Tensor | None,
    num_steps: int,
    *,
    generator: torch.Generator | None = None,
    every: int | None = None,
    callback: Callable[[int, State], None] | None = None,
    state: State | None = None,
) -> Chain:
    """Runs N chains side by side for a number of steps.

    A chain can be cut anywhere: `run` with the state of an earlier run and the same generator continues it bit for
    bit, schedules and callbacks included, since the state knows how many steps it has taken. Of the past only the
    infos are kept, a few numbers per chain and step; positions on the way go to the callback.

    Args:
        kernel: The sampler, such as `UnadjustedLangevin(step_size=1e-2)`.
        potential: Maps (N, D) to (N,).
        z0: Starting positions (N, D); not used, and may be None, where `state` is given.
        num_steps: Number of steps, at least 0.
        generator: Source of all randomness, on any device; torch's default one if None.
        every: Call `callback` whenever the chain's number of steps is a multiple of this.
        callback: Called as `callback(step, state)` with the chain's number of steps so far; also after the last step.
        state: State to resume from.

    Returns:
        The last positions, the last state and the infos of this run's steps.

    Raises:
        ValueError: If `num_steps` or `every` is out of range, or there is neither `z0` nor `state`.

    Example:
        >>> import torch
        >>> from gebm import samplers
        >>> potential = lambda z: z.square().sum(1) / 2
        >>> chain = samplers.run(samplers.MALA(0.5), potential, torch.zeros(4, 2), 10)
        >>> chain.z.shape, chain.infos.potential.shape, int(chain.state.step)
        (torch.Size([4, 2]), torch.Size([10, 4]), 10)
        >>> int(samplers.run(samplers.MALA(0.5), potential, None, 5, state=chain.state).state.step)
        15
    """
    require_count("num_steps", num_steps, minimum=0)
    if every is not None:
        require_count("every", every)
    if state is None:
        if z0 is None:
            raise ValueError("a chain needs a place to start: give z0, or the state to resume from")
        state = kernel.init(z0, potential)

    infos: list[Info] = []
    for index in range(num_steps):
        state, info = kernel.step(state, potential, generator)
        infos.append(info)
        if callback is not None:
            step = int(state.step)
            if index == num_steps - 1 or (every is not None and step % every == 0):
                callback(step, state)
    stacked = type(infos[0])(*(torch.stack(entries) for entries in zip(*infos, strict=True))) if infos else None
    return Chain(state.z, state, stacked)
