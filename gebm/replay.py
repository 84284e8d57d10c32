"""Steps that are recorded once and replayed: on a GPU a CUDA graph, which launches all their kernels at once.

A recorded step is a pure function of static tensors: inputs that are copied into them, random numbers on a tape
(:mod:`gebm.tape`), and a state that is changed in place. Each kind of step is taken without a replay when it first
occurs, which is called plainly here. The second time it is taken both plainly and as a replay, from the same state.
Later steps are replayed only if both results agree within the precision (:mod:`gebm.agreement`) and the replay is
faster; all others are taken plainly. A one-line message reports which it is, and why. The checked step itself keeps the
results of the plain one.

On any device but a CUDA GPU a replay calls the function again, on the same static tensors.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gebm.agreement import Agreement, compare
from gebm.tape import Tape

__all__ = ["MODES", "Replays", "Step"]

MODES = ("auto", "true", "false")
"""Whether steps are replayed: where that is faster, wherever it agrees, or never."""

_READS = {"_local_scalar_dense", "equal", "is_nonzero"}


class Step:
    """A step, as it is taken plainly and as a function that can be recorded.

    Args:
        plain: Takes the step and returns its results.
        rounded: The same, with the networks off by one rounding.
        static: The step as a pure function of its inputs, of a generator, and of the state.
        inputs: The inputs (the same number, of the same shapes, in all steps of a kind).
        generator: Source of the random numbers of all three.
        fixed: Tensors whose value ``static`` must not read on the host.
    """

    def __init__(
        self,
        plain: Callable[[], Sequence[Tensor]],
        rounded: Callable[[], Sequence[Tensor]],
        static: Callable[[Sequence[Tensor], torch.Generator], Sequence[Tensor]],
        inputs: Sequence[Tensor],
        generator: torch.Generator | None,
        fixed: Sequence[Tensor] = (),
    ) -> None:
        self.plain, self.rounded, self.static = plain, rounded, static
        self.inputs, self.fixed = list(inputs), list(fixed)
        self.generator = torch.default_generator if generator is None else generator


class _Refused(Exception):
    """Why a step cannot be recorded."""


class _Watch(TorchDispatchMode):
    """Dispatch mode that collects the tensors from outside that a function reads, and refuses what no replay repeats.

    Args:
        state: Tensors that the function may change.
        fixed: Tensors whose value it must not read on the host.

    Attributes:
        kept: The tensors that were read, by their storage; a CUDA graph needs them alive.
    """

    def __init__(self, state: Sequence[Tensor], fixed: Sequence[Tensor]) -> None:
        super().__init__()
        self.kept: dict[int, Any] = {}
        self._made: dict[int, Any] = {}
        self._may_change = {_storage(tensor) for tensor in state}
        self._fixed = {_storage(tensor) for tensor in fixed}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Layers whose weights are replaced are built on no device.
        if torch.Tag.nondeterministic_seeded in func.tags and not any(tensor.is_meta for tensor in tensors):
            raise _Refused(f"{name} draws random numbers that are not on the tape")
        arguments = func._schema.arguments
        given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
        for argument, value in given:
            changes = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in pytree.tree_leaves(value):
                if not isinstance(tensor, Tensor) or (key := _storage(tensor)) in self._made:
                    continue
                if changes and key not in self._may_change:
                    raise _Refused(f"{name} changes a tensor that is no part of the state")
                if name in _READS and key in self._fixed:
                    raise _Refused("it depends on the number of the step, and has no step_kind")
                self.kept[key] = tensor
        result = func(*args, **kwargs)
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := _storage(tensor)) not in self.kept:
                # Without its memory: no other storage gets the same number while this one is known.
                self._made[key] = StorageWeakRef(tensor.untyped_storage())
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


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


class _Recorded:
    """A recorded step."""

    def __init__(self, step: Step, state: Mapping[str, Tensor], pool: Any) -> None:
        device = step.inputs[0].device
        self._inputs = [tensor.detach().clone() for tensor in step.inputs]
        self._tape, self._static = Tape(step.generator), step.static
        with _on_side_stream(device), torch.autograd.set_multithreading_enabled(False):
            self._run()
            self._tape.close()
            with _Watch([*state.values(), *self._inputs], step.fixed) as watch:
                self._run()
            self._outputs, self._launch = capture(self._run, device, pool)
        # A replay reads them at their addresses.
        self._kept = watch.kept
        self._addresses = {name: tensor.data_ptr() for name, tensor in state.items()}

    def _run(self) -> list[Tensor]:
        self._tape.rewind()
        return list(self._static(self._inputs, self._tape))

    @property
    def is_graph(self) -> bool:
        """Whether a replay launches a graph."""
        return self._launch is not None

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


class Replays:
    """Steps of one computation, each kind of them replayed where replays agree and are faster.

    Args:
        name: Name of the steps in messages: a plural.
        mode: One of ``MODES``. "auto" is "false" on another device than a GPU.
        state: Returns the tensors that steps change, by name (default: steps change none).

    Attributes:
        lines: One-line messages that report whether steps are replayed, and why.
        replayed: Number of steps that were replayed.

    Raises:
        ValueError: If there is no such mode.

    Example:
        >>> total = torch.zeros(())
        >>> def add(inputs, generator):
        ...     return [total.add_(inputs[0].sum()).clone()]
        >>> replays = Replays("sums", "true", lambda: {"total": total})
        >>> for _ in range(4):
        ...     x = torch.ones(2)
        ...     plain = lambda: add([x], None)
        ...     (result,) = replays.take("sum", Step(plain, plain, add, [x], None))
        >>> float(result), replays.replayed, replays.lines[0][:30]
        (8.0, 2, 'sums are replayed on static te')
    """

    def __init__(self, name: str, mode: str = "auto", state: Callable[[], Mapping[str, Tensor]] = lambda: {}) -> None:
        if mode not in MODES:
            raise ValueError(f"steps are replayed {mode!r}: choose one of {', '.join(MODES)}")
        self._name, self._mode, self._state = name, mode, state
        self._kinds: dict[Hashable, _Recorded] = {}
        # Names of the state that a step of a kind leaves behind. Those of an optimizer appear with its first step.
        self._names: dict[Hashable, set[str]] = {}
        self._refused: set[Hashable] = set()
        # Kinds whose state was seen to be at its addresses.
        self._in_place: set[Hashable] = set()
        self._pool: Any = None
        self.lines: list[str] = []
        self.replayed = 0

    def is_wanted_on(self, device: torch.device) -> bool:
        """Return whether the mode requests replays on a device."""
        return self._mode == "true" or (self._mode == "auto" and device.type == "cuda")

    @property
    def path(self) -> str:
        """How steps were taken so far, as reports have it: ``plain``, ``static`` or ``cuda_graphs``."""
        graphs = any(recorded.is_graph for recorded in self._kinds.values())
        return "plain" if not self.replayed else "cuda_graphs" if graphs else "static"

    def refresh(self) -> None:
        """Compare the addresses of the state again; to be called where its tensors may have been replaced."""
        self._in_place.clear()

    def refuse(self, kind: Hashable, reason: str) -> None:
        """Take steps of a kind plainly from here on, and report why."""
        self._refused.add(kind)
        self._kinds.pop(kind, None)
        line = f"{self._name} are not replayed: {reason}"
        if line not in self.lines:
            self.lines.append(line)

    def take(self, kind: Hashable, step: Step) -> list[Tensor]:
        """Take a step.

        Args:
            kind: All that its arithmetic depends on except inputs, random numbers and the state.
            step: The step.

        Returns:
            Its results.
        """
        if kind in self._refused:
            return list(step.plain())
        recorded = self._kinds.get(kind)
        if recorded is not None and (kind in self._in_place or recorded.is_in_place(self._state())):
            self._in_place.add(kind)
            self.replayed += 1
            return recorded.replay(step.inputs, step.generator)
        state = self._state()
        names = self._names.get(kind)
        if names is None or not names <= state.keys():
            results = list(step.plain())
            self._names[kind] = set(self._state())
            return results
        return self._check(kind, step, state)

    def _check(self, kind: Hashable, step: Step, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Take a step plainly and as a replay, and return the plain results; keep the recording if it is good."""
        device = step.inputs[0].device
        before, random = _copies(state), step.generator.get_state()
        try:
            return self._take_both_ways(kind, step, state, before, random)
        except Exception as error:
            reason = _one_line(error)
        # Out here the exception is gone, whose frames hold tensors.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        self.refuse(kind, reason)
        _restore(state, before)
        step.generator.set_state(random)
        return list(step.plain())

    def _take_both_ways(
        self, kind: Hashable, step: Step, state: Mapping[str, Tensor], before: Mapping[str, Tensor], random: Tensor
    ) -> list[Tensor]:
        """Check a step, as :meth:`_check` does, which handles the errors."""

        def attempt(way: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], dict[str, Tensor], float]:
            _restore(state, before)
            step.generator.set_state(random)
            results, seconds = _timed(way, step.inputs[0].device)
            named = {f"result {index}": tensor.detach() for index, tensor in enumerate(results)}
            return results, _copies(state) | named, seconds

        def replay() -> list[Tensor]:
            return recorded.replay(step.inputs, step.generator)

        _, rounded, rounded_seconds = attempt(step.rounded)
        results, plain, seconds = attempt(step.plain)
        end = step.generator.get_state()
        recorded = self._record(step, state)
        _, replayed, replay_seconds = attempt(replay)
        if not torch.equal(step.generator.get_state(), end):
            raise _Refused("a replay draws another number of random numbers")
        # Copies of the state are as large as the model and its optimizers: no more of them than are compared.
        replay_seconds = min(replay_seconds, *(attempt(replay)[2] for _ in range(2)))
        agreement = compare(plain, replayed, rounded, before)
        self._judge(kind, recorded, agreement, replay_seconds, min(seconds, rounded_seconds))
        _restore(state, plain)
        step.generator.set_state(end)
        return results

    def _record(self, step: Step, state: Mapping[str, Tensor]) -> _Recorded:
        if step.inputs[0].device.type == "cuda" and self._pool is None:
            # Results leave a graph's memory at once, so that all graphs may compute in the same.
            self._pool = torch.cuda.graph_pool_handle()
        return _Recorded(step, state, self._pool)

    def _judge(
        self, kind: Hashable, recorded: _Recorded, agreement: Agreement, replay_seconds: float, seconds: float
    ) -> None:
        """Keep a recording, or refuse it, and report why."""
        times = f"{1000 * replay_seconds:.3g} ms instead of {1000 * seconds:.3g} ms"
        apart = f"off by {agreement.difference:.1e} of a step in {agreement.worst}, {agreement.bound:.1e} allowed"
        if not agreement.agrees:
            self.refuse(kind, f"a replay is {apart}")
        elif self._mode == "auto" and replay_seconds >= seconds:
            self.refuse(kind, f"a replay is no faster, {times}")
        else:
            self._kinds[kind] = recorded
            how = "as a CUDA graph" if recorded.is_graph else "on static tensors"
            # One message is enough for all kinds that are replayed.
            if not any(line.startswith(f"{self._name} are replayed") for line in self.lines):
                self.lines.append(f"{self._name} are replayed {how}: {times}, {apart}")


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def _restore(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        tensor.copy_(values[name])


def _timed(way: Callable[[], Sequence[Tensor]], device: torch.device) -> tuple[list[Tensor], float]:
    """Return the results of a function, and the seconds that it takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    results = list(way())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return results, time.perf_counter() - started


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


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, _Refused) else f"{type(error).__name__}: {text}"
