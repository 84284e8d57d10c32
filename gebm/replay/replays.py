"""Steps that are recorded once and replayed: on a GPU as a CUDA graph, which launches all their kernels at once.

A recorded step is a pure function of static tensors: inputs that are copied into them, random numbers on a tape
(:mod:`gebm.replay.tape`), and a state that is changed in place. It may be compiled as well
(:mod:`gebm.replay.compiled`). Each kind of step is taken without a replay when it first occurs, which is called plainly
here. The second time it is taken plainly and as a replay, of each way to replay it, from the same state. Later steps
are replayed in the fastest way whose results agree with the plain ones within what rounding changes
(:mod:`gebm.replay.agreement`), if that is faster; all others are taken plainly. A one-line message reports which it is,
and why. The checked step itself keeps the results of the plain one.

On any device but a CUDA GPU a replay calls the function again, on the same static tensors.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gebm.replay.agreement import DRAWS, Agreement, compare, spread
from gebm.replay.compiled import Compiler
from gebm.replay.recording import Recording, Step
from gebm.replay.roundings import Roundings
from gebm.replay.watch import Refused

__all__ = ["MODES", "Replays", "Step"]

MODES = ("auto", "true", "false")
"""Whether steps are replayed, or compiled: where that is faster, wherever it agrees, or never."""

_Result = TypeVar("_Result")


class _Checked(NamedTuple):
    """A way to replay a step that agrees with the plain one."""

    recording: Recording
    agreement: Agreement
    seconds: float

    @property
    def apart(self) -> str:
        agreement = self.agreement
        return f"off by {agreement.difference:.1e} of a step in {agreement.worst}, {agreement.bound:.1e} allowed"


class Replays:
    """Steps of one computation, each kind of them replayed where replays agree and are faster.

    Args:
        name: Name of the steps in messages: a plural.
        cuda_graphs: Whether steps are replayed as they are, one of ``MODES``. "auto" is "false" on another device than
            a GPU.
        compiled: Whether steps are replayed compiled; likewise. "true" prefers it to other replays.
        state: Returns the tensors that steps change, by name (default: steps change none).
        precision: Precision of the networks, by which a replay is judged; see :mod:`gebm.precision`.

    Attributes:
        lines: One-line messages that report whether steps are replayed, and why.
        replayed: Number of steps that were replayed.

    Raises:
        ValueError: If there is no such mode.

    Example:
        >>> total = torch.zeros(())
        >>> def add(inputs, *_):
        ...     return [total.add_(inputs[0].sum()).clone()]
        >>> replays = Replays("sums", "true", state=lambda: {"total": total})
        >>> for _ in range(4):
        ...     x = torch.ones(2)
        ...     plain = lambda: add([x])
        ...     (result,) = replays.take("sum", Step(plain, add, [x], None))
        >>> float(result), replays.replayed, replays.lines[0][:30]
        (8.0, 2, 'sums are replayed on static te')
    """

    def __init__(
        self,
        name: str,
        cuda_graphs: str = "auto",
        compiled: str = "false",
        state: Callable[[], Mapping[str, Tensor]] = lambda: {},
        precision: str = "float32",
    ) -> None:
        for mode, what in ((cuda_graphs, "replayed"), (compiled, "compiled")):
            if mode not in MODES:
                raise ValueError(f"steps are {what} {mode!r}: choose one of {', '.join(MODES)}")
        self._name, self._cuda_graphs, self._compiled, self._state = name, cuda_graphs, compiled, state
        self._precision = precision
        self._kinds: dict[Hashable, Recording] = {}
        # Names of the state that a step of a kind leaves behind. Those of an optimizer appear with its first step.
        self._names: dict[Hashable, set[str]] = {}
        self._refused: set[Hashable] = set()
        # Kinds whose state was seen to be at its addresses.
        self._in_place: set[Hashable] = set()
        self._pool: Any = None
        self._compiler = Compiler()
        self.lines: list[str] = []
        self.replayed = 0

    def is_wanted_on(self, device: torch.device) -> bool:
        """Return whether the modes request replays on a device."""
        return _is_wanted(self._cuda_graphs, device) or _is_wanted(self._compiled, device)

    @property
    def path(self) -> str:
        """How steps were taken so far, as reports have it.

        ``plain``; of replayed steps ``static``, or what any of them was: ``compiled``, ``cuda_graphs``, or
        ``compiled_cuda_graphs``.
        """
        recordings = self._kinds.values()
        kinds = {
            "compiled": any(recording.is_compiled for recording in recordings),
            "cuda_graphs": any(recording.is_graph for recording in recordings),
        }
        return "_".join(name for name, is_used in kinds.items() if is_used) or "static" if self.replayed else "plain"

    def refresh(self) -> None:
        """Compare the addresses of the state again; to be called where its tensors may have been replaced."""
        self._in_place.clear()

    def refuse(self, kind: Hashable, reason: str) -> None:
        """Take steps of a kind plainly from here on, and report why."""
        self._refused.add(kind)
        self._kinds.pop(kind, None)
        self._report(f"{self._name} are not replayed: {reason}")

    def _report(self, line: str) -> None:
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
        recording = self._kinds.get(kind)
        if recording is not None and (kind in self._in_place or recording.is_in_place(self._state())):
            self._in_place.add(kind)
            self.replayed += 1
            return recording.replay(step.inputs, step.generator)
        state = self._state()
        names = self._names.get(kind)
        if names is None or not names <= state.keys():
            results = list(step.plain())
            self._names[kind] = set(self._state())
            return results
        return self._check(kind, step, state)

    def _check(self, kind: Hashable, step: Step, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Take a step plainly and as replays, and return the plain results; keep a recording if it is good."""
        before, random = _copies(state), step.generator.get_state()
        results = _result_or_reason(lambda: self._take_all_ways(kind, step, state, before, random))
        if not isinstance(results, str):
            return results
        _free_memory(step.inputs[0].device)
        self.refuse(kind, results)
        _restore(state, before)
        step.generator.set_state(random)
        return list(step.plain())

    def _take_all_ways(
        self, kind: Hashable, step: Step, state: Mapping[str, Tensor], before: Mapping[str, Tensor], random: Tensor
    ) -> list[Tensor]:
        """Check a step, as :meth:`_check` does, which handles the errors."""
        device = step.inputs[0].device

        def attempt(way: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], dict[str, Tensor], float]:
            _restore(state, before)
            step.generator.set_state(random)
            results, seconds = _timed(way, device)
            named = {f"result {index}": tensor.detach() for index, tensor in enumerate(results)}
            return results, _copies(state) | named, seconds

        def record(is_compiled: bool) -> _Checked:
            recording = self._record(step, state, is_compiled)

            def replay() -> list[Tensor]:
                return recording.replay(step.inputs, step.generator)

            _, replayed, seconds = attempt(replay)
            if not torch.equal(step.generator.get_state(), end):
                raise Refused("a replay draws another number of random numbers")
            # Copies of the state are as large as the model and its optimizers: no more of them than are compared.
            seconds = min(seconds, *(attempt(replay)[2] for _ in range(2)))
            checked = _Checked(recording, compare(plain, replayed, apart, before), seconds)
            if not checked.agreement.agrees:
                raise Refused(f"a replay is {checked.apart}")
            return checked

        def rounded(seed: int) -> Sequence[Tensor]:
            # In this thread, where the mode is.
            with torch.autograd.set_multithreading_enabled(False), Roundings(self._precision, seed):
                return step.plain()

        first_seconds = attempt(step.plain)[2]
        results, plain, seconds = attempt(step.plain)
        end = step.generator.get_state()
        apart = spread(plain, (attempt(functools.partial(rounded, seed))[1] for seed in range(DRAWS)))
        outcomes: dict[bool, _Checked | str] = {}
        for is_compiled in self._ways(device):
            outcome = outcomes[is_compiled] = _result_or_reason(functools.partial(record, is_compiled))
            if isinstance(outcome, str):
                _free_memory(device)
            elif is_compiled and self._compiled == "true":
                break
        self._choose(kind, outcomes, min(first_seconds, seconds))
        _restore(state, plain)
        step.generator.set_state(end)
        return results

    def _ways(self, device: torch.device) -> list[bool]:
        """Return whether steps are compiled in each way to replay them, the one that is preferred first."""
        wanted = {True: self._compiled, False: self._cuda_graphs}
        return [is_compiled for is_compiled, mode in wanted.items() if _is_wanted(mode, device)]

    def _record(self, step: Step, state: Mapping[str, Tensor], is_compiled: bool) -> Recording:
        device = step.inputs[0].device
        graph = _is_wanted(self._cuda_graphs, device)
        if graph and device.type == "cuda" and self._pool is None:
            # Results leave a graph's memory at once, so that all graphs may compute in the same.
            self._pool = torch.cuda.graph_pool_handle()
        compiler = self._compiler if is_compiled else None
        return Recording(step, state, graph=graph, pool=self._pool, compiler=compiler)

    def _choose(self, kind: Hashable, outcomes: Mapping[bool, _Checked | str], seconds: float) -> None:
        """Keep the best way that agrees with the plain step, or none, and report why."""
        agreeing = [outcome for outcome in outcomes.values() if isinstance(outcome, _Checked)]
        best = min(agreeing, key=lambda checked: checked.seconds, default=None)
        is_required = self._cuda_graphs == "true" or (
            self._compiled == "true" and isinstance(outcomes.get(True), _Checked)
        )
        if best is not None and (is_required or best.seconds < seconds):
            self._kinds[kind] = best.recording
            how = f"{self._name} are {_describe(best.recording)}"
            # One message is enough for all kinds that are replayed alike.
            if not any(line.startswith(f"{how}: ") for line in self.lines):
                self.lines.append(f"{how}: {_times(best.seconds, seconds)}, {best.apart}")
            seconds = best.seconds
            unused = {} if best.recording.is_compiled else {way: outcomes[way] for way in outcomes if way}
        else:
            self._refused.add(kind)
            self._kinds.pop(kind, None)
            unused = outcomes
        for is_compiled, outcome in unused.items():
            slower = "" if isinstance(outcome, str) else f"a replay is no faster, {_times(outcome.seconds, seconds)}"
            what = "compiled" if is_compiled else "replayed"
            self._report(f"{self._name} are not {what}: {slower or outcome}")


def _is_wanted(mode: str, device: torch.device) -> bool:
    return mode == "true" or (mode == "auto" and device.type == "cuda")


def _describe(recording: Recording) -> str:
    if not recording.is_compiled:
        return "replayed as a CUDA graph" if recording.is_graph else "replayed on static tensors"
    return "compiled and replayed as a CUDA graph" if recording.is_graph else "compiled"


def _times(one: float, other: float) -> str:
    return f"{1000 * one:.3g} ms instead of {1000 * other:.3g} ms"


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


def _result_or_reason(function: Callable[[], _Result]) -> _Result | str:
    """Return the result of a function, or its error as a one-line message, so that no frame of it holds tensors."""
    try:
        return function()
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


def _free_memory(device: torch.device) -> None:
    """Return to a GPU what no tensor needs any more."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
