"""Steps that are replayed: they are the plain ones, or are not replayed, and a message reports it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gebm.replay import Replays, Step, compiled, recording
from gebm.replay import replays as module
from gebm.replay.agreement import DRAWS
from gebm.replay.compiled import Call
from gebm.replay.tape import Tape, draw_to
from tests.helpers import operator_graph


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Replay operators without Python, as a GPU does, and take the graphs that are to be compiled as they are."""
    monkeypatch.setattr(recording, "capture", operator_graph.capture)
    monkeypatch.setattr(compiled, "compile_graph", lambda graph: graph)


# Modes of CUDA graphs and of compilation, and what it is called.
WAYS = {
    "cuda_graphs": ("true", "false", "replayed as a CUDA graph"),
    "compiled": ("false", "true", "compiled"),
    "compiled_cuda_graphs": ("true", "true", "compiled and replayed as a CUDA graph"),
}


class Walk:
    """A walk of a state through a network, with noise and a rate, and ways to break its recording."""

    def __init__(self, broken: str = ""):
        torch.manual_seed(0)
        self.network, self.state, self.broken, self.count = nn.Linear(300, 300), torch.zeros(300), broken, 0
        self.outside = torch.zeros(300)

    def move(self, x: Tensor, rate: Tensor | float, noise: Tensor) -> list[Tensor]:
        drift = self.network(x).detach()
        self.state += rate * drift + 0.1 * noise
        return [drift.norm()]

    def static(self, inputs: Sequence[Tensor], tape: Tape, call: Call) -> list[Tensor]:
        return call(None, self.piece, inputs, tape)

    def piece(self, inputs: Sequence[Tensor], tape: Tape) -> list[Tensor]:
        x, rate = inputs
        noise = draw_to("cpu", tape, lambda generator: torch.randn(300, generator=generator))
        if self.broken == "leaves the noise out":
            noise = torch.zeros(300)
        if self.broken == "reads a number that changes":
            rate = float(rate)
        if self.broken == "draws by itself":
            noise = torch.randn(300)
        if self.broken == "draws once more":
            draw_to("cpu", tape, lambda generator: torch.randn(300, generator=generator))
        if self.broken == "changes what is no state":
            torch._foreach_add_([self.outside], 1)
        if self.broken == "raises":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        if self.broken == "a little off":
            rate = rate * 1.001
        if self.broken == "takes data":
            x = nn.Parameter(x * 1, requires_grad=False)
        return self.move(x, rate, noise)

    def step(self, x: Tensor, rate: float, generator: torch.Generator) -> Step:
        def plain() -> list[Tensor]:
            return self.move(x, rate, torch.randn(300, generator=generator))

        return Step(plain, self.static, [x, torch.tensor(rate)], generator)

    def go(self, replays: Replays, steps: int = 8, rate: float = 0.5) -> list[float]:
        generator, data = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        results = []
        replays.refresh()
        for number in range(steps):
            x = torch.randn(300, generator=data)
            (result,) = replays.take("step", self.step(x, rate / (1 + number), generator))
            results.append(float(result))
        return results


def replays_of(walk: Walk, mode: str = "true", compiled: str = "false") -> Replays:
    return Replays("steps", mode, compiled, lambda: {"state": walk.state})


@pytest.mark.parametrize("way", WAYS)
def test_replays_are_the_plain_steps_with_other_inputs_numbers_and_rates(way):
    plain, replayed = Walk(), Walk()
    expected = plain.go(replays_of(plain, "false"))
    mode, is_compiled, how = WAYS[way]
    replays = replays_of(replayed, mode, is_compiled)
    results = replayed.go(replays)
    assert replays.replayed == 6
    assert replays.path == way
    assert [line.split(":")[0] for line in replays.lines] == [f"steps are {how}"]
    torch.testing.assert_close(torch.tensor(results), torch.tensor(expected))
    torch.testing.assert_close(replayed.state, plain.state)


BROKEN = {
    "leaves the noise out": "a replay is off by",
    "a little off": "a replay is off by",
    "draws once more": "a replay draws another number of random numbers",
    "draws by itself": "randn draws random numbers that are not on the tape",
    "changes what is no state": "_foreach_add_ changes a tensor that is no part of the state",
    "raises": "RuntimeError: operation not permitted when stream is capturing",
}


def assert_refused(broken: str, mode: str, compiled: str, reasons: list[str]) -> None:
    plain, walk = Walk(), Walk(broken)
    expected = plain.go(replays_of(plain, "false"))
    replays = replays_of(walk, mode, compiled)
    assert walk.go(replays) == expected
    assert torch.equal(walk.state, plain.state)
    assert (replays.replayed, replays.path, len(replays.lines)) == (0, "plain", len(reasons))
    for line, reason in zip(replays.lines, reasons, strict=True):
        assert line.startswith(f"steps are not {reason}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_refused_with_a_line_and_leaves_the_plain_steps_bit_for_bit(broken, way):
    mode, compiled, _ = WAYS[way]
    wanted = {"compiled": compiled, "replayed": mode}
    assert_refused(broken, mode, compiled, [f"{w}: {BROKEN[broken]}" for w, m in wanted.items() if m == "true"])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("reads a number that changes", "the host reads a number of the state"),
        ("takes data", "it makes a parameter of a tensor, or takes its data, which is no operator"),
    ],
)
def test_what_is_no_operator_is_not_compiled(broken, reason):
    assert_refused(broken, "false", "true", [f"compiled: {reason}"])


@pytest.mark.parametrize("mode", ["true", "false"])
def test_a_compilation_that_fails_is_a_line_and_leaves_what_there_is_without_it(mode, monkeypatch):
    def fail(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
        raise RuntimeError("no working C++ compiler\nwas found")

    monkeypatch.setattr(compiled, "compile_graph", fail)
    plain, walk = Walk(), Walk()
    expected = plain.go(replays_of(plain, "false"))
    replays = replays_of(walk, mode, "true")
    torch.testing.assert_close(torch.tensor(walk.go(replays)), torch.tensor(expected))
    assert "steps are not compiled: RuntimeError: no working C++ compiler was found" in replays.lines
    assert replays.path == {"true": "cuda_graphs", "false": "plain"}[mode]
    assert mode == "true" or torch.equal(walk.state, plain.state)


def test_the_faster_of_two_ways_is_used(monkeypatch):
    monkeypatch.setattr(module, "_is_wanted", lambda mode, device: mode != "false")
    taken: list[float] = []
    for plain, listed, graph, path, line in (
        (9.0, 1.0, 2.0, "compiled_cuda_graphs", "steps are compiled and replayed as a CUDA graph: 1e+03 ms instead"),
        (9.0, 2.0, 1.0, "cuda_graphs", "steps are not compiled: a replay is no faster, 2e+03 ms instead of 1e+03 ms"),
        (1.0, 2.0, 3.0, "plain", "steps are not compiled: a replay is no faster, 2e+03 ms instead of 1e+03 ms"),
    ):
        # In the order in which they are taken: the plain step twice, with roundings, and three replays of each way.
        taken[:] = [plain] * 2 + [0.0] * DRAWS + [listed] * 3 + [graph] * 3
        monkeypatch.setattr(module, "_timed", lambda way, device: (list(way()), taken.pop(0)))
        walk = Walk()
        replays = replays_of(walk, "auto", "auto")
        walk.go(replays)
        assert replays.path == path
        assert any(one.startswith(line) for one in replays.lines), replays.lines


def test_a_number_that_python_read_shows_in_a_replay():
    """A test of the helper: without it no test here could see a rate that stays behind."""
    plain, walk = Walk(), Walk("reads a number that changes")
    plain.go(replays_of(plain, "false"))
    walk.go(replays_of(walk))
    assert not torch.allclose(walk.state, plain.state, atol=1e-3)


def test_a_slower_replay_is_used_only_where_it_is_requested(monkeypatch):
    device = torch.device("cpu")
    assert [replays_of(Walk(), mode).is_wanted_on(device) for mode in module.MODES] == [False, True, False]
    assert [replays_of(Walk(), "auto", m).is_wanted_on(device) for m in module.MODES] == [False, True, False]
    monkeypatch.setattr(module.time, "perf_counter", iter(range(1000)).__next__)
    # As on a GPU.
    monkeypatch.setattr(module, "_is_wanted", lambda mode, device: mode != "false")
    walk = Walk()
    replays = replays_of(walk, "auto")
    walk.go(replays)
    assert replays.replayed == 0
    assert replays.lines[0].startswith("steps are not replayed: a replay is no faster, 1e+03 ms instead of 1e+03 ms")


def test_a_state_that_has_moved_is_recorded_anew():
    plain, walk = Walk(), Walk()
    replays = replays_of(walk)
    for one, ways in ((plain, replays_of(plain, "false")), (walk, replays)):
        one.go(ways, 4)
        one.state = one.state.clone()
        one.go(ways, 4)
    assert (replays.replayed, len(replays.lines)) == (2 + 3, 1)
    torch.testing.assert_close(walk.state, plain.state)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="steps are replayed 'on': choose one of auto, true, false"):
        Replays("steps", "on")
    with pytest.raises(ValueError, match="steps are compiled 'on': choose one of auto, true, false"):
        Replays("steps", "auto", "on")


SHAPES = st.lists(st.sampled_from([(), (3,), (2, 2)]), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(shapes=SHAPES, seed=st.integers(0, 2**40))
def test_a_tape_holds_what_the_generator_would_have_given_request_by_request(shapes, seed):
    def draw_all(generator: torch.Generator) -> list[Tensor]:
        return [draw_to("cpu", generator, lambda g, s=shape: torch.rand(s, generator=g)) for shape in shapes]

    tape = Tape(torch.Generator().manual_seed(seed))
    recorded = [tensor.clone() for tensor in draw_all(tape)]
    tape.close()
    for source, got in ((seed, recorded), (seed, draw_all(tape))):
        assert all(map(torch.equal, got, draw_all(torch.Generator().manual_seed(source))))
    source, other = (torch.Generator().manual_seed(seed + 1) for _ in range(2))
    tape.refill(source)
    assert all(map(torch.equal, draw_all(tape), draw_all(other)))
    assert torch.equal(source.get_state(), other.get_state())
    with pytest.raises(RuntimeError, match="more random numbers"):
        draw_to("cpu", tape, lambda g: torch.rand(1, generator=g))
