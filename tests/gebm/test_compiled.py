"""Compilation of recorded steps by torch itself; what is compiled is tested with the steps that are replayed."""

from __future__ import annotations

import shutil
import time

import pytest
import torch
import torch._inductor.config
from torch import Tensor, fx

from gebm import GEBM, KALE, Alternation, StandardNormal, Trainer, adam, networks, samplers
from gebm.replay import compiled
from gebm.replay.compiled import Compiler, trace
from gebm.replay.watch import Refused
from gebm.samplers.replayed import BLOCK, ReplayedSteps


def chains_of(potential: samplers.Potential, steps: ReplayedSteps | None) -> Tensor:
    ways = {} if steps is None else {"steps": steps}
    generator = torch.Generator().manual_seed(0)
    z0 = torch.linspace(-1, 1, 60).view(20, 3)
    return samplers.run(samplers.UnadjustedLangevin(0.1), potential, z0, 4 * BLOCK, generator=generator, **ways).z


def rugged(z: Tensor) -> Tensor:
    return (z.square() / 2 + (3 * z).cos() / 2).sum(1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_torch_compiles_a_step_that_agrees_with_the_plain_one():
    steps = ReplayedSteps("false", compiled="true")
    torch.testing.assert_close(chains_of(rugged, steps), chains_of(rugged, None), rtol=1e-4, atol=1e-4)
    assert (steps.replays.path, steps.replays.replayed) == ("compiled", 2), steps.replays.lines


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_training_steps_that_torch_compiles_in_float32_agree_with_the_plain_ones():
    """The log-partition's gradient is the small difference of one and a mean of exponents, summed in another order."""
    torch.manual_seed(0)
    base, energy = networks.make("mlp", resolution=0, channels=2, latent_dim=2, width=8)
    model = GEBM(base, energy, StandardNormal(2))
    trainer = Trainer(
        model,
        objective=KALE(),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], lr=1e-3),
        alternation=Alternation(1, warmup_energy_steps=1),
        train_base=False,
        compiled="true",
    )
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        trainer.step(iter([data]), torch.Generator().manual_seed(step))
    replays = trainer.replayed.replays
    assert (replays.path, replays.replayed) == ("compiled", 1), replays.lines
    assert not any("are not" in line for line in replays.lines), replays.lines


def test_without_a_compiler_there_is_a_line_and_the_plain_chain_bit_for_bit():
    # Nothing that has been compiled before.
    unseen = time.time_ns() % 10**9 / 10**9

    def potential(z: Tensor) -> Tensor:
        return rugged(z) + unseen * z[:, 0]

    steps = ReplayedSteps("false", compiled="true")
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        ends = chains_of(potential, steps)
    assert torch.equal(ends, chains_of(potential, None))
    [line] = steps.replays.lines
    assert line.startswith("steps of chains are not compiled: ")
    assert (steps.replays.path, steps.replays.replayed) == ("plain", 0)


def test_a_graph_takes_tensors_that_are_laid_out_in_another_way():
    """A compiler chooses how a convolution's result is laid out, and flattens it all the same."""
    x = torch.rand(2, 3, 4, 4)
    graph, _ = trace(lambda: [x.flatten(1) * 2])
    torch.testing.assert_close(graph(x.contiguous(memory_format=torch.channels_last))[0], x.flatten(1) * 2)


def test_graphs_are_compiled_once_and_of_a_few_kinds_alone(monkeypatch):
    listed: list[fx.GraphModule] = []
    monkeypatch.setattr(compiled, "compile_graph", lambda graph: listed.append(graph) or graph)
    compiler = Compiler()
    for factor in (2.0, 3.0, 2.0):
        for _ in range(2):
            x = torch.rand(3)
            graph, outside = trace(lambda x=x, factor=factor: [x * factor])
            torch.testing.assert_close(compiler(graph, outside)(*outside)[0], x * factor)
    assert len(listed) == 2
    with pytest.raises(Refused, match=f"there are more than {compiled._MOST} kinds"):
        for size in range(compiled._MOST):
            compiler(graph, [torch.rand(4 + size)])
