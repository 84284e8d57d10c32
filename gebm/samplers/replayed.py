"""Steps of chains that are replayed: a block of them, noise and restarts included, recorded as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gebm.replay import Replays, Step
from gebm.replay.compiled import Call
from gebm.replay.tape import Tape
from gebm.samplers.base import Kernel, Potential, Prior
from gebm.samplers.runner import StepResult, plain_steps, take_step

__all__ = ["BLOCK", "ReplayedSteps", "SharedPotential"]

BLOCK = 10
"""Steps of a block."""


@runtime_checkable
class SharedPotential(Protocol):
    """Potential with a key, by which chains of other batches share its recordings."""

    def __call__(self, z: Tensor) -> Tensor:
        """Map (N, D) to (N,)."""
        ...

    @property
    def key(self) -> Hashable:
        """All that its values depend on except latents and :attr:`tensors`."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors that its values depend on, with a row for each chain."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> Potential:
        """Return the same function of other tensors."""
        ...


class ReplayedSteps:
    """Way to take the steps of :func:`gebm.samplers.run` in blocks that are recorded once and replayed.

    A block is a function of the chains' state and of its keys, so that all batches of the same number of chains share a
    recording. Its results are those of its steps one by one. Steps after the last whole block are taken one by one, and
    so are those of a kernel whose steps depend on their number, unless it has a method ``step_kind``, which returns all
    that a step depends on of its number.

    Kernel, potential and prior must not change while their recordings are used: the model must not be trained, and an
    attribute that is set in between is not seen.

    Args:
        cuda_graphs: Whether blocks are replayed, one of :data:`gebm.replay.MODES`.
        precision: Precision of the networks, by which a replay is judged; see :mod:`gebm.precision`.
        compiled: Whether their steps are compiled, one of :data:`gebm.replay.MODES`.

    Attributes:
        replays: The recordings, and messages on them.

    Example:
        >>> from gebm import samplers
        >>> kernel, potential, z0 = samplers.MALA(0.5), lambda z: z.square().sum(1) / 2, torch.zeros(4, 2)
        >>> steps = ReplayedSteps("true")
        >>> generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        >>> one = samplers.run(kernel, potential, z0, 45, generator=generators[0])
        >>> two = samplers.run(kernel, potential, z0, 45, generator=generators[1], steps=steps)
        >>> torch.equal(one.z, two.z), steps.replays.replayed
        (True, 2)
    """

    def __init__(self, cuda_graphs: str = "auto", precision: str = "float32", compiled: str = "false") -> None:
        self.replays = Replays("steps of chains", cuda_graphs, compiled, precision=precision)
        self._info_types: dict[Hashable, type] = {}

    def __call__(
        self,
        kernel: Kernel[Any],
        potential: Potential,
        prior: Prior | None,
        state: Any,
        num_steps: int,
        generator: torch.Generator | None,
    ) -> Iterator[StepResult]:
        """Take steps; see :func:`gebm.samplers.runner.plain_steps`."""
        blocks = num_steps // BLOCK if self._are_replayed(kernel, potential, prior, state.z.device) else 0
        for _ in range(blocks):
            for result in self._take_block(kernel, potential, prior, state, generator):
                state = result.state
                yield result
        yield from plain_steps(kernel, potential, prior, state, num_steps - BLOCK * blocks, generator)

    def _are_replayed(
        self, kernel: Kernel[Any], potential: Potential, prior: Prior | None, device: torch.device
    ) -> bool:
        """Return whether blocks are to be replayed, whose recordings are stored by kernel, potential and prior."""
        if not self.replays.is_wanted_on(device):
            return False
        try:
            hash((kernel, prior, potential.key if isinstance(potential, SharedPotential) else potential))
        except TypeError as error:
            self.replays.refuse("unhashable", f"{error}; make it a frozen dataclass, for example")
            return False
        return True

    def _take_block(
        self, kernel: Kernel[Any], potential: Potential, prior: Prior | None, state: Any, generator: Any
    ) -> Iterator[StepResult]:
        names, first = [name for name in state._asdict() if name != "step"], int(state.step)
        counters = [torch.tensor(first + index) for index in range(BLOCK + 1)]
        shared = potential if isinstance(potential, SharedPotential) else None
        inputs = [*(getattr(state, name) for name in names), *(shared.tensors if shared else ())]
        step_kind: Callable[[int], Hashable] | None = getattr(kernel, "step_kind", None)
        kinds = [step_kind(first + index) for index in range(BLOCK)] if step_kind else [None] * BLOCK
        kind = (
            type(state),
            kernel,
            prior,
            shared.key if shared else potential,
            tuple(kinds),
            *((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs),
        )

        def entries(result: StepResult) -> list[Tensor]:
            self._info_types[kind] = type(result.info)
            return [*(getattr(result.state, name) for name in names), *result.info, result.diverged]

        def plain() -> list[Tensor]:
            return _stacked(map(entries, plain_steps(kernel, potential, prior, state, BLOCK, generator)))

        def take_one(tensors: Sequence[Tensor], tape: Tape, index: int) -> list[Tensor]:
            own = shared.with_tensors(tensors[len(names) :]) if shared else potential
            before = type(state)(**dict(zip(names, tensors, strict=False)), step=counters[index])
            return entries(take_step(kernel, own, prior, before, tape, looks=False))

        def static(inputs: Sequence[Tensor], tape: Tape, call: Call) -> list[Tensor]:
            results, tensors = [], list(inputs)
            for index in range(BLOCK):
                results.append(call(kinds[index], partial(take_one, index=index), tensors, tape))
                tensors[: len(names)] = results[-1][: len(names)]
            return _stacked(results)

        fixed = counters if step_kind is None else ()
        tensors = self.replays.take(kind, Step(plain, static, inputs, generator, fixed))
        states, infos, diverged = tensors[: len(names)], tensors[len(names) : -1], tensors[-1]
        for index in range(BLOCK):
            after = type(state)(**{n: t[index] for n, t in zip(names, states, strict=True)}, step=counters[index + 1])
            yield StepResult(after, self._info_types[kind](*(t[index] for t in infos)), diverged[index])


def _stacked(results: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Return the entries of the results of a block's steps, each stacked over the steps (BLOCK, ...)."""
    return [torch.stack(entries) for entries in zip(*results, strict=True)]
