"""Compilation of recorded steps: all operators of a step, backward passes and optimizer included, as one graph.

Torch does not differentiate a compiled network twice, as a penalty requires. So the step is compiled, not its networks:
its operators are listed while it runs (``make_fx``), and those of its backward passes are plain operators like all
others. The graph computes the same numbers bit for bit, and ``torch.compile`` makes fewer and larger kernels of it.

What a graph reads from outside, weights and the state of optimizers for example, is passed to it in each call. So a
step whose state has moved needs no other compilation. Torch keeps compiled code in a cache of its own, for later runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module

from gebm.replay.tape import Tape
from gebm.replay.watch import Refused, Watch

__all__ = ["Call", "CompiledPieces", "Compiler", "call_plainly", "compile_graph", "trace"]

Piece = Callable[[Sequence[Tensor], Tape], Sequence[Tensor]]
"""A part of a recorded step: a function of tensors and of random numbers."""

Call = Callable[[Hashable, Piece, Sequence[Tensor], Tape], list[Tensor]]
"""Way to call a piece, given a key of all that it depends on except its arguments."""

_ADAM = (torch.ops.aten._fused_adam_, torch.ops.aten._fused_adamw_)
# Fewer operators than this are not worth a compilation.
_FEW = 24
# Graphs that are compiled at most: of a few kinds of steps, in a few shapes.
_MOST = 32


def call_plainly(key: Hashable, piece: Piece, tensors: Sequence[Tensor], tape: Tape) -> list[Tensor]:
    """Call a piece as it is."""
    return list(piece(tensors, tape))


def trace(function: Callable[[], Sequence[Tensor]]) -> tuple[fx.GraphModule, list[Tensor]]:
    """List the operators of a function while it computes.

    Args:
        function: Returns tensors that are outside of any autograd graph. It may change tensors from outside in place.

    Returns:
        A graph that maps tensors to the results of the function, and the tensors from outside that it was called with.

    Raises:
        RuntimeError: If the function reads a number of a tensor that it has computed.
        Refused: If it does something else that is no operator.

    Example:
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> graph, outside = trace(lambda: torch.autograd.grad(weight.square() / 2, weight))
        >>> outside[0] is weight, *graph(torch.tensor(5.0))
        (True, tensor(5.))
    """
    watch = Watch()

    def watched() -> list[Tensor]:
        with watch:
            return list(function())

    module = make_fx(watched)()
    graph, outside = module.graph, list[Tensor]()
    for node in reversed(graph.nodes):
        # Names of steps for a profiler.
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "profiler":
            graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:
            # A compiler may lay a result out in another way than it was laid out here, and then it is no view.
            node.target = torch.ops.aten.reshape.default
    inputs: dict[int, fx.Node] = {}
    first = next(iter(graph.nodes))
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            raise Refused(f"{node.target} is no tensor, but {type(tensor).__name__}")
        if watch.has_made(tensor):
            raise Refused("it makes a parameter of a tensor, or takes its data, which is no operator")
        if id(tensor) not in inputs:
            with graph.inserting_before(first):
                inputs[id(tensor)] = graph.placeholder(f"outside_{len(outside)}")
            outside.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
    for node in graph.find_nodes(op="get_attr"):
        graph.erase_node(node)
    return fx.GraphModule(torch.nn.Module(), graph), outside


def compile_graph(graph: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """Return a graph as a function that torch compiles when it is first called.

    Adam's fused kernels stay as they are, for torch's compiler does not know them.

    Args:
        graph: A graph of plain operators.
    """
    number, parts = 0, {}
    for node in graph.graph.nodes:
        is_adam = getattr(node.target, "overloadpacket", None) in _ADAM
        number += is_adam
        parts[node] = number
        number += is_adam
    split = split_module(graph, torch.nn.Module(), parts.__getitem__, keep_original_order=True)
    for name, part in list(split.named_children()):
        assert isinstance(part, fx.GraphModule)
        if sum(node.op == "call_function" for node in part.graph.nodes) >= _FEW:
            setattr(split, name, torch.compile(part, fullgraph=True, dynamic=False))
    return split


class Compiler:
    """Compiled graphs, each of them compiled once.

    Raises:
        Refused: At more graphs than a computation has kinds of steps.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, graph: fx.GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """Return a graph as a compiled function of tensors like these."""
        key = graph.code, tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)
        if key not in self._graphs:
            if len(self._graphs) == _MOST:
                raise Refused(f"there are more than {_MOST} kinds of them")
            self._graphs[key] = compile_graph(graph)
        return self._graphs[key]


class _CompiledPiece:
    """A piece whose operators were listed, as a function of its tensors and of the tape's next numbers."""

    def __init__(self, piece: Piece, tensors: Sequence[Tensor], tape: Tape, compiler: Compiler) -> None:
        start = tape.position
        graph, outside = trace(lambda: piece(tensors, tape))
        self._num_requests = tape.position - start
        tape.position = start
        arguments = [*tensors, *tape.take_next(self._num_requests)]
        positions = {id(tensor): position for position, tensor in enumerate(arguments)}
        self._sources: list[int | Tensor] = [positions.get(id(tensor), tensor.detach()) for tensor in outside]
        self._compiled = compiler(graph, outside)
        tape.position = start

    def __call__(self, tensors: Sequence[Tensor], tape: Tape) -> list[Tensor]:
        arguments = [*tensors, *tape.take_next(self._num_requests)]
        given = [source if isinstance(source, Tensor) else arguments[source] for source in self._sources]
        # The graph has the conversions of an autocast region as operators.
        with torch.no_grad(), torch.autocast(given[0].device.type, enabled=False):
            return list(self._compiled(*given))


class CompiledPieces:
    """Way to call pieces, each of which is compiled in its first call.

    Args:
        compiler: Compiles them.
    """

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._pieces: dict[Hashable, _CompiledPiece] = {}

    def __call__(self, key: Hashable, piece: Piece, tensors: Sequence[Tensor], tape: Tape) -> list[Tensor]:
        """Call a piece with a closed tape; see :data:`Call`."""
        if key in self._pieces:
            return self._pieces[key](tensors, tape)
        compiled = self._pieces[key] = _CompiledPiece(piece, tensors, tape, self._compiler)
        # In this process and by one thread, as torch would otherwise start a process for each core and keep them.
        with _inductor_config().patch(compile_threads=1):
            return compiled(tensors, tape)


def _inductor_config() -> Any:
    # Loaded where something is compiled, for it takes seconds.
    import torch._inductor.config

    return torch._inductor.config
