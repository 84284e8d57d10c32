"""The driver that runs every kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol

import torch
from torch import Tensor

from gebm.inputs import as_count, require_generator, require_methods
from gebm.precision import unless_chosen
from gebm.replay.tape import Tape
from gebm.samplers.base import Info, Kernel, Potential, Prior, Restarting, State, StateT, finite_rows, require_prior
from gebm.samplers.philox import RESTART, draw_key, normal

__all__ = [
    "Chain",
    "NonFiniteStart",
    "StepResult",
    "Steps",
    "finite_chains",
    "plain_steps",
    "restart",
    "run",
    "take_step",
]

# Entries of a state whose values at an infinite, flat potential need no kernel.
_PLAIN_ENTRIES = {"z", "potential", "gradient", "chain", "step"}


class NonFiniteStart(ValueError):
    """Chains that cannot start, because the position, the potential or its gradient is not finite there."""


class Chain(NamedTuple, Generic[StateT]):
    """Result of a run.

    Attributes:
        z: Last positions (N, D).
        state: Last state; pass it back to ``run`` to continue.
        infos: The kernel's infos with all their entries stacked over the steps of this run, (num_steps, N, ...);
            ``None`` if the run had no steps. Their type is the kernel's own.
        divergences: In how many of this run's steps a chain met a number that is not finite (N,), int64. A Metropolis
            kernel rejected these proposals; a chain of another kernel was lost, and restarted if ``run`` had a prior.
    """

    z: Tensor
    state: StateT
    infos: Any
    divergences: Tensor


class StepResult(NamedTuple, Generic[StateT]):
    """Result of one step.

    Attributes:
        state: The state after it, in which chains that were lost have restarted.
        info: The kernel's measurements.
        diverged: Which chains met a number that is not finite (N,), bool.
    """

    state: StateT
    info: Any
    diverged: Tensor


class Steps(Protocol):
    """A way to take the steps of a run."""

    def __call__(
        self,
        kernel: Kernel[StateT],
        potential: Potential,
        prior: Prior | None,
        state: StateT,
        num_steps: int,
        generator: torch.Generator | None,
    ) -> Iterator[StepResult[StateT]]:
        """Yield the results of ``num_steps`` steps from a state on."""
        ...


def plain_steps(
    kernel: Kernel[StateT],
    potential: Potential,
    prior: Prior | None,
    state: StateT,
    num_steps: int,
    generator: torch.Generator | None,
) -> Iterator[StepResult[StateT]]:
    """Take steps one after the other.

    Args:
        kernel: The sampler.
        potential: Maps (N, D) to (N,).
        prior: Where lost chains restart; None leaves them as they are.
        state: The state of N chains.
        num_steps: Number of steps.
        generator: Source of all randomness.

    Yields:
        The result of each step.
    """
    # On the CPU a look at what was lost is free. A GPU's host has queued many steps by then, and would wait for all of
    # them: there the draws of a prior are made in vain, unless a network makes them, which takes longer than the wait.
    # A recorded step is the same whatever was lost.
    looks = state.z.device.type == "cpu" or getattr(prior, "is_network", False)
    looks = looks and not isinstance(generator, Tape)
    for _ in range(num_steps):
        result = take_step(kernel, potential, prior, state, generator, looks=looks)
        state = result.state
        yield result


@unless_chosen()
@torch.no_grad()
def run(
    kernel: Kernel[StateT],
    potential: Potential,
    z0: Tensor | None,
    num_steps: int,
    *,
    generator: torch.Generator | None = None,
    every: int | None = None,
    callback: Callable[[int, StateT], None] | None = None,
    state: StateT | None = None,
    prior: Prior | None = None,
    first_chain: int = 0,
    steps: Steps = plain_steps,
) -> Chain[StateT]:
    """Run N chains side by side for a number of steps.

    A chain can be cut anywhere: ``run`` with the state of an earlier run and the same generator continues it bit for
    bit, schedules and callbacks included, since the state knows how many steps it has taken. Of the past only the
    infos are kept, a few numbers per chain and step; positions on the way go to the callback.

    A set of chains can be cut as well: a chain's noise depends on the generator and on the chain's number only. Parts
    of a set that are run one after the other, each with ``first_chain`` and with a generator in the same state, give
    what the set gives as a whole, as far as the potential of a row does not depend on the others.

    Args:
        kernel: The sampler, such as ``UnadjustedLangevin(step_size=1e-2)``.
        potential: Maps (N, D) to (N,).
        z0: Starting positions (N, D); not used, and may be None, where ``state`` is given.
        num_steps: Number of steps, at least 0.
        generator: Source of all randomness, on any device; torch's default one for the CPU if None.
        every: Call ``callback`` whenever the chain's number of steps is a multiple of this.
        callback: Called as ``callback(step, state)`` with the chain's number of steps so far; also after the last step.
        state: State to resume from.
        prior: Where a chain restarts that has become infinite or not a number; None leaves such a chain as it is. It
            takes a second key of the generator in each step, diverged or not. No step waits for a GPU, unless the prior
            has an ``is_network`` that is true: then the host looks at the state.
        first_chain: Number of the first chain; not used where ``state`` is given, which knows its chains.
        steps: How steps are taken: one by one, or by a :class:`gebm.samplers.ReplayedSteps` that several runs share.

    Returns:
        The last positions, the last state, the infos of this run's steps and the number of divergences.

    Raises:
        TypeError: If an argument is of another kind, or the state is another kernel's.
        ValueError: If ``num_steps``, ``every`` or ``first_chain`` is out of range, there is neither ``z0`` nor
            ``state``, or chains start where potential or gradient is not finite: any of them, or with ``prior`` all;
            chains on a GPU that have a prior start anywhere.

    Example:
        >>> import torch
        >>> from gebm import samplers
        >>> potential = lambda z: z.square().sum(1) / 2
        >>> chain = samplers.run(samplers.MALA(0.5), potential, torch.zeros(4, 2), 10)
        >>> chain.z.shape, chain.infos.potential.shape, int(chain.state.step)
        (torch.Size([4, 2]), torch.Size([10, 4]), 10)
        >>> int(samplers.run(samplers.MALA(0.5), potential, None, 5, state=chain.state).state.step)
        15

        Chains 2 and 3 without the others:

        >>> whole, part = (torch.Generator().manual_seed(0) for _ in range(2))
        >>> whole = samplers.run(samplers.MALA(0.5), potential, torch.zeros(4, 2), 10, generator=whole)
        >>> part = samplers.run(samplers.MALA(0.5), potential, torch.zeros(2, 2), 10, generator=part, first_chain=2)
        >>> torch.equal(whole.z[2:], part.z)
        True
    """
    require_methods("kernel", kernel, ("init", "step"), "gebm.samplers.MALA(0.1)")
    require_methods("potential", potential, ("__call__",), "model.potential")
    require_generator(generator)
    num_steps = as_count("num_steps", num_steps, minimum=0)
    first_chain = as_count("first_chain", first_chain, minimum=0)
    if every is not None:
        every = as_count("every", every)
    if prior is not None:
        require_prior(prior)
    if state is None:
        if z0 is None:
            raise ValueError("a chain needs a starting position: give z0, or the state to resume from")
        state = kernel.init(z0, potential)
        state = state._replace(chain=state.chain + first_chain)
        if not isinstance(generator, Tape):
            _require_finite_start(state, prior)
    elif not hasattr(state, "_replace") or not hasattr(state, "chain"):
        raise TypeError(f"a chain resumes from its state, Chain.state, not from {type(state).__name__}")
    infos: list[Info] = []
    divergences = torch.zeros_like(state.chain)
    for index, result in enumerate(steps(kernel, potential, prior, state, num_steps, generator)):
        state, info, diverged = result
        infos.append(info)
        divergences += diverged
        if callback is not None:
            step = int(state.step)
            if index == num_steps - 1 or (every is not None and step % every == 0):
                callback(step, state)
    stacked = type(infos[0])(*(torch.stack(entries) for entries in zip(*infos, strict=True))) if infos else None
    return Chain(state.z, state, stacked, divergences)


def take_step(
    kernel: Kernel[StateT],
    potential: Potential,
    prior: Prior | None,
    state: StateT,
    generator: torch.Generator | None,
    *,
    looks: bool,
) -> StepResult[StateT]:
    """Take one step and restart the chains that it lost.

    Args:
        kernel: The sampler.
        potential: Maps (N, D) to (N,).
        prior: Where lost chains restart; None leaves them as they are.
        state: The state of N chains.
        generator: Source of all randomness.
        looks: Whether the host looks if any chain is lost, and otherwise draws nothing from the prior.

    Returns:
        The result.

    Raises:
        TypeError: If the state is another kernel's.
    """
    try:
        state, info = kernel.step(state, potential, generator)
    except AttributeError as error:
        # The potential may have raised it as well; a state without what its kernel needs names its own kind.
        if f"'{type(state).__name__}' object" not in str(error):
            raise
        raise TypeError(
            f"a {type(kernel).__name__} cannot continue from a {type(state).__name__}: give a state of its own kind, "
            "or start it at that state's z"
        ) from error
    if prior is None:
        return StepResult(state, info, info.diverged)
    # The key is taken whether it is needed or not: what one chain suffers must not shift the others' noise.
    key, lost = draw_key(generator, state.z.device), ~finite_chains(state)
    if not looks or lost.any():
        state = restart(kernel, prior, state, lost, key)
    return StepResult(state, info, info.diverged | lost)


def finite_chains(state: State) -> Tensor:
    """Return which chains are finite in all that their state holds.

    Args:
        state: The state of N chains.

    Returns:
        Whether they are (N,), bool.

    Example:
        >>> from gebm import samplers
        >>> finite_chains(samplers.MALA(0.1).init(torch.tensor([[1.0], [0.0]]), lambda z: z.sum(1).log()))
        tensor([ True, False])
    """
    return finite_rows(*(entry for entry in state if entry.ndim > 0 and entry.is_floating_point()))


def restart(kernel: Kernel[StateT], prior: Prior, state: StateT, lost: Tensor, key: Tensor) -> StateT:
    """Put chains back to the prior, each to a draw of its own, and leave the others alone.

    Nothing is evaluated: which chains these are may not be known on the host yet, and the potential of all would cost
    as much as a step. A chain restarts as if the potential at its draw were infinite and flat. So an unadjusted kernel
    has no drift in the first step from there, and one that accepts or rejects takes the first finite proposal.

    Args:
        kernel: The sampler.
        prior: Where to restart.
        state: The state of N chains.
        lost: Which to restart (N,), bool.
        key: The key that their draws are computed from.

    Returns:
        The state with those rows as the kernel's ``restart`` makes them, or, if it has none, as its ``init`` would.
        Numbers of chains and of steps are kept.

    Example:
        >>> from gebm import samplers
        >>> from gebm.priors import StandardNormal
        >>> kernel, potential = samplers.MALA(0.1), lambda z: z.square().sum(1) / 2
        >>> state = kernel.init(torch.tensor([[1.0], [float("nan")]]), potential)
        >>> state = restart(kernel, StandardNormal(1), state, ~finite_chains(state), torch.tensor(0))
        >>> float(state.z[0]), state.z.isfinite().all(), state.gradient[1], state.potential[1]
        (1.0, tensor(True), tensor([0.]), tensor(inf))
    """
    noise = normal(key, state.chain, state.z.shape[1], RESTART, dtype=state.z.dtype)
    fresh = _start(kernel, state, prior.from_noise(noise).to(state.z.dtype))
    # An entry without rows, such as the number of steps, is not one chain's.
    replaced = {
        name: torch.where(lost.view(-1, *(1,) * (old.ndim - 1)), getattr(fresh, name), old)
        for name, old in state._asdict().items()
        if old.ndim > 0 and name != "chain"
    }
    return state._replace(**replaced)


def _start(kernel: Kernel[StateT], state: StateT, z: Tensor) -> StateT:
    """Return the state of chains at draws (N, D), of whose potential nothing is known."""
    if isinstance(kernel, Restarting):
        return kernel.restart(state, z)
    if state._asdict().keys() <= _PLAIN_ENTRIES:
        flat = {"z": z, "potential": torch.full_like(state.potential, math.inf)}
        gradient = getattr(state, "gradient", None)
        return state._replace(**flat, **({} if gradient is None else {"gradient": torch.zeros_like(gradient)}))
    return kernel.init(z, _infinite)


def _infinite(z: Tensor) -> Tensor:
    """Return a potential of which nothing is known (N,): infinite, with a gradient of zero."""
    return (0 * z).sum(1) + math.inf


def _require_finite_start(state: State, prior: Prior | None) -> None:
    # Under a prior the first step restarts what is not finite, and what a GPU holds is not waited for.
    if prior is not None and state.z.device.type != "cpu":
        return
    finite = finite_chains(state)
    n, bad = len(finite), int((~finite).sum())
    if bad and (prior is None or bad == n):
        raise NonFiniteStart(
            f"chains start where position, potential and gradient are finite, but {bad} of {n} do not: "
            "check the energy there, or start elsewhere"
        )
