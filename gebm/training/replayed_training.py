"""Energy steps and base steps that are recorded once and replayed; see :mod:`gebm.replay`.

An alternation is replayed in three pieces: the folding of the base, one energy step, taken as often as the alternation
has them, and one base step. So a warm-up of a hundred energy steps, the final phase of the energy and an ordinary
alternation share recordings. Kinds of energy steps differ in whether a penalty is due, and in shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from gebm.distributed import rank_and_world_size
from gebm.objectives.losses import EnergyTerms
from gebm.objectives.penalties import Penalty
from gebm.replay import Replays, Step
from gebm.replay.compiled import Call, Piece
from gebm.replay.tape import Tape

__all__ = ["ReplayedTraining"]


class ReplayedTraining:
    """The steps of a trainer, replayed where replays agree and are faster.

    Args:
        cuda_graphs: Whether steps are replayed as they are, one of :data:`gebm.replay.MODES`.
        compiled: Whether they are replayed compiled, likewise.
        precision: Precision of the networks.
        modules: All that is trained or averaged, by name.
        optimizers: The optimizers, by the names of a trainer's arguments.
        fold_base: Returns a folded copy of the base that is sampled, or that base itself.
        chains: Returns the positions of persistent chains, which energy steps change in place.

    Attributes:
        replays: The recordings, and messages on them.
    """

    def __init__(
        self,
        cuda_graphs: str,
        compiled: str,
        precision: str,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        fold_base: Callable[[], nn.Module],
        chains: Callable[[], Tensor | None],
    ) -> None:
        self.replays = Replays("training steps", cuda_graphs, compiled, self._state, precision)
        self._modules, self._optimizers = dict(modules), dict(optimizers)
        self._fold_base, self._chains, self._plainly = fold_base, chains, False
        # Kinds name penalties by their identities, which must not be given to others.
        self._penalties: dict[int, Penalty] = {}

    def is_wanted_on(self, device: torch.device) -> bool:
        """Return whether steps are to be replayed, which needs one process, and optimizers that read their rates."""
        if not self.replays.is_wanted_on(device):
            return False
        if rank_and_world_size()[1] > 1:
            self.replays.refuse("processes", "several processes train together")
            return False
        others = [type(optimizer).__name__ for optimizer in self._optimizers.values() if not _reads_rates(optimizer)]
        if others:
            self.replays.refuse("optimizers", f"{others[0]} reads no learning rate from a tensor: use gebm.adam")
        return not others

    @contextlib.contextmanager
    def plainly(self) -> Iterator[None]:
        """Take the steps in the block without replays, so that their operators can be counted."""
        self._plainly = True
        try:
            yield
        finally:
            self._plainly = False

    def source(self) -> nn.Module:
        """Return the base folded as it is now: one module, whose weights are computed anew in place."""
        source = self._modules.get("source")
        if source is None:
            source = self._fold_base()
            if not any(source is part for module in self._modules.values() for part in module.modules()):
                self._modules["source"] = source
            return source

        def refresh() -> list[Tensor]:
            _copy_into(source, self._fold_base())
            return []

        anchor = next(self._modules["model"].parameters()).new_zeros(())
        # Not compiled: its layers are made of tensors, which is no operator.
        self._take("fold", refresh, lambda inputs, tape, call: refresh(), [anchor], torch.Generator())
        return source

    def energy_step(
        self,
        update: Callable[[Tensor, torch.Generator], EnergyTerms],
        x_data: Tensor,
        generator: torch.Generator,
        *,
        penalty: Penalty,
        energy_step: int,
    ) -> EnergyTerms:
        """Take an energy step.

        Args:
            update: Takes it, of data and of a generator, without any counting.
            x_data: Data (N, ...).
            generator: Source of every random number.
            penalty: The regularizer that it has.
            energy_step: Energy steps done before.

        Returns:
            Its terms, without a graph.
        """
        rates = _Rates(self._optimizers["energy_optimizer"], x_data.device)
        # Drawn for one point from nowhere, to see whether it is due.
        due = penalty.draw(1, torch.Generator(), energy_step) is not None
        self._penalties[id(penalty)], chains = penalty, self._chains()
        shape = None if chains is None else chains.shape
        kind = "energy", x_data.shape, x_data.dtype, due, id(penalty), shape

        def results(terms: EnergyTerms) -> list[Tensor]:
            return [term.detach().clone() for term in terms]

        def static(inputs: Sequence[Tensor], tape: Tape) -> list[Tensor]:
            with rates.read_from(inputs[1:]):
                return results(update(inputs[0], tape))

        def plain() -> list[Tensor]:
            return results(update(x_data, generator))

        return EnergyTerms(*self._take(kind, plain, _in_one_piece(static), [x_data, *rates.tensors()], generator))

    def base_step(
        self, update: Callable[[Tensor, float | Tensor], Tensor], inputs: Tensor, average_weight: float
    ) -> Tensor:
        """Take a base step.

        Args:
            update: Takes it, of its inputs and of the average's weight, without any counting.
            inputs: Latents (N, D), or data.
            average_weight: How far the average moves.

        Returns:
            The loss, without a graph.
        """
        rates = _Rates(self._optimizers["base_optimizer"], inputs.device)
        weight = torch.full((), average_weight, dtype=self._average_dtype, device=inputs.device)

        def static(tensors: Sequence[Tensor], tape: Tape) -> list[Tensor]:
            with rates.read_from(tensors[2:]):
                return [update(tensors[0], tensors[1]).clone()]

        def plain() -> list[Tensor]:
            return [update(inputs, average_weight)]

        kind = "base", inputs.shape, inputs.dtype
        (loss,) = self._take(kind, plain, _in_one_piece(static), [inputs, weight, *rates.tensors()], torch.Generator())
        return loss

    @property
    def _average_dtype(self) -> torch.dtype:
        """The type of the average's weights, in which they move."""
        average = self._modules.get("average")
        return torch.float32 if average is None else next(average.parameters()).dtype

    def _take(
        self,
        kind: Hashable,
        plain: Callable[[], list[Tensor]],
        static: Callable[[Sequence[Tensor], Tape, Call], list[Tensor]],
        inputs: list[Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        if self._plainly:
            return plain()
        results = self.replays.take(kind, Step(plain, static, inputs, generator))
        for optimizer in self._optimizers.values():
            # Gradients of a recording are in the graph's memory.
            optimizer.zero_grad(set_to_none=True)
        return results

    def _state(self) -> dict[str, Tensor]:
        """Return all that steps change, by name."""
        state: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            state |= {f"{name}.{key}": tensor for key, tensor in module.named_parameters()}
            state |= {f"{name}.{key}": tensor for key, tensor in module.named_buffers()}
        for part, optimizer in self._optimizers.items():
            for index, entries in enumerate(optimizer.state.values()):
                state |= {f"{part}.{index}.{key}": entry for key, entry in entries.items() if isinstance(entry, Tensor)}
        chains = self._chains()
        return state if chains is None else {**state, "chains": chains}


def _in_one_piece(piece: Piece) -> Callable[[Sequence[Tensor], Tape, Call], list[Tensor]]:
    """Return a step that is compiled as a whole."""
    return lambda inputs, tape, call: call(None, piece, inputs, tape)


def _reads_rates(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can read its learning rates from tensors, as only Adam's fused kernels do."""
    return isinstance(optimizer, Adam) and all(group.get("fused") for group in optimizer.param_groups)


class _Rates:
    """Learning rates of an optimizer as tensors, which a recorded step reads.

    Args:
        optimizer: The optimizer.
        device: Where it computes.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._groups, self._device = optimizer.param_groups, device

    def tensors(self) -> list[Tensor]:
        """Return the rates as tensors, of the type that the fused kernels read."""
        dtype = torch.float32 if self._device.type == "cuda" else torch.float64
        return [torch.full((), float(group["lr"]), dtype=dtype, device=self._device) for group in self._groups]

    @contextlib.contextmanager
    def read_from(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let the optimizer read its rates from tensors in the block."""
        before = [(group["lr"], group["capturable"]) for group in self._groups]
        captures = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        for group, tensor in zip(self._groups, tensors, strict=True):
            group["lr"], group["capturable"] = tensor, captures or group["capturable"]
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(self._groups, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable


@torch.no_grad()
def _copy_into(module: nn.Module, other: nn.Module) -> None:
    """Copy weights and buffers of a module of the same structure."""
    pairs = zip([*module.parameters(), *module.buffers()], [*other.parameters(), *other.buffers()], strict=True)
    for into, tensor in pairs:
        into.copy_(tensor)
