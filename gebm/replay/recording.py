"""Recordings of steps, which are pure functions of static tensors: captured as a CUDA graph on a GPU, and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gebm.replay.compiled import Call, CompiledPieces, Compiler, call_plainly
from gebm.replay.tape import Tape
from gebm.replay.watch import Refused, Watch

__all__ = ["Recording", "Step", "capture"]


class Step:
    """A step, as it is taken plainly and as a function that can be recorded.

    Args:
        plain: Takes the step and returns its results.
        static: The step as a pure function of its inputs, of a tape, and of the state. It calls what may be compiled by
            its third argument; see :mod:`gebm.replay.compiled`.
        inputs: The inputs (the same number, of the same shapes, in all steps of a kind).
        generator: Source of the random numbers of both.
        fixed: Tensors whose value ``static`` must not read on the host.
    """

    def __init__(
        self,
        plain: Callable[[], Sequence[Tensor]],
        static: Callable[[Sequence[Tensor], Tape, Call], Sequence[Tensor]],
        inputs: Sequence[Tensor],
        generator: torch.Generator | None,
        fixed: Sequence[Tensor] = (),
    ) -> None:
        self.plain, self.static = plain, static
        self.inputs, self.fixed = list(inputs), list(fixed)
        self.generator = torch.default_generator if generator is None else generator


def capture(
    run: Callable[[], Sequence[Tensor]], device: torch.device, pool: Any
) -> tuple[Sequence[Tensor], Callable[[], None] | None]:
    """Capture what a function launches on a device, without computing it.

    Args:
        run: The function, which has run before.
        device: Where it computes.
        pool: Handle of the memory pool that it computes in.

    Returns:
        Its results, and a function that launches it again; None on a device that has no graphs.
    """
    if device.type != "cuda":
        return (), None
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        results = tuple(run())
    return results, graph.replay


class Recording:
    """A recorded step.

    Args:
        step: The step, which has been taken before.
        state: Tensors that it changes, by name.
        graph: Whether to capture a CUDA graph, on a device that has them.
        pool: Handle of the memory pool that graphs compute in.
        compiler: Compiles its pieces; None to leave them as they are.

    Attributes:
        is_graph: Whether a replay launches a CUDA graph.
        is_compiled: Whether its pieces are compiled.

    Raises:
        Refused: If the step cannot be recorded.
    """

    def __init__(
        self, step: Step, state: Mapping[str, Tensor], *, graph: bool, pool: Any, compiler: Compiler | None
    ) -> None:
        device = step.inputs[0].device
        self._inputs = [tensor.detach().clone() for tensor in step.inputs]
        self._tape, self._static = Tape(step.generator), step.static
        self._call: Call = call_plainly
        self.is_compiled = compiler is not None
        with _on_side_stream(device), torch.autograd.set_multithreading_enabled(False):
            self._run()
            self._tape.close()
            with Watch([*state.values(), *self._inputs], step.fixed) as watch:
                self._run()
            if compiler is not None:
                if watch.reads:
                    raise Refused("the host reads a number of the state")
                self._call = CompiledPieces(compiler)
                self._run()
            self._outputs, self._launch = capture(self._run, device, pool) if graph else ((), None)
        self.is_graph = self._launch is not None
        # A replay reads them at their addresses.
        self._kept = watch.kept
        self._addresses = {name: tensor.data_ptr() for name, tensor in state.items()}

    def _run(self) -> list[Tensor]:
        self._tape.rewind()
        return list(self._static(self._inputs, self._tape, self._call))

    def is_in_place(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the state is still at its addresses."""
        return all(name in state and state[name].data_ptr() == address for name, address in self._addresses.items())

    def replay(self, inputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Take the step with other inputs and other random numbers."""
        for static, tensor in zip(self._inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        self._tape.refill(generator)
        if self._launch is None:
            return self._run()
        self._launch()
        # The next replay overwrites the graph's own.
        return [tensor.clone() for tensor in self._outputs]


@contextlib.contextmanager
def _on_side_stream(device: torch.device) -> Iterator[None]:
    """Compute on another stream in the block, which a capture requires, and return to this one after any error."""
    if device.type != "cuda":
        yield
        return
    present, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        yield
    present.wait_stream(stream)
