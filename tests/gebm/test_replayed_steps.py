"""Chains in replayed blocks: the same chains, for every kernel, wherever they are cut, restarted or shared."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gebm import GEBM, StandardNormal, folded, networks, samplers
from gebm.classes import ChainPotential
from gebm.replay import compiled, recording
from gebm.replay.tape import Tape
from gebm.samplers.replayed import BLOCK, ReplayedSteps
from tests.helpers import operator_graph
from tests.helpers.kernels import Normal, every_kernel, rng

DECAY = samplers.StepDecay(factor=0.5, every=5 * BLOCK)


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Replay operators without Python, as a GPU does, and take the graphs that are to be compiled as they are."""
    monkeypatch.setattr(recording, "capture", operator_graph.capture)
    monkeypatch.setattr(compiled, "compile_graph", lambda graph: graph)


def rugged(z: Tensor) -> Tensor:
    """A potential without a matrix product in it, so that all numbers are the same bit for bit."""
    return (z.square() / 2 + (3 * z).cos() / 2).sum(1) + z[:, 0] * z[:, 1] / 4


def cliff(z: Tensor) -> Tensor:
    return rugged(z) + torch.where(z[:, 0] > 1.0, torch.nan, 0.0)


def kernels() -> dict[str, samplers.Kernel]:
    """One of each, whose step size falls after some blocks where it can."""
    plain = every_kernel()
    slower = {name: kernel for name, kernel in plain.items() if getattr(kernel, "schedule", None) is None}
    for name in plain.keys() - slower:
        settings = {field: value for field, value in vars(plain[name]).items() if field != "schedule"}
        slower[name] = type(plain[name])(**settings, schedule=DECAY)
    return dict(sorted(slower.items()))


def same(one: samplers.Chain, other: samplers.Chain) -> None:
    torch.testing.assert_close(tuple(one.state), tuple(other.state), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(tuple(one.infos), tuple(other.infos), rtol=0, atol=0, equal_nan=True)
    assert type(one.infos) is type(other.infos)
    assert torch.equal(one.divergences, other.divergences)


@pytest.mark.parametrize("name", kernels())
def test_a_replayed_chain_is_the_plain_one_bit_for_bit_cut_anywhere(name):
    kernel, prior = kernels()[name], Normal()
    z0 = torch.randn(20, 3, generator=rng(0)).clamp(max=0.5)
    ways = {
        "plain": {},
        "cuda_graphs": {"steps": ReplayedSteps("true")},
        "compiled": {"steps": ReplayedSteps("false", compiled="true")},
    }
    seen: dict[str, list[Tensor]] = {way: [] for way in ways}

    def run(way: str, num_steps: int, generator: torch.Generator, state=None) -> samplers.Chain:
        return samplers.run(
            kernel,
            cliff,
            z0,
            num_steps,
            generator=generator,
            prior=prior,
            state=state,
            every=1,
            callback=lambda step, state: seen[way].append(state.z.clone() + step),
            **ways[way],
        )

    generators = {way: rng(1) for way in ways}
    states = dict.fromkeys(generators)
    for num_steps in (3 * BLOCK + 3, 3, 3 * BLOCK + 4):
        chains = {way: run(way, num_steps, generator, states[way]) for way, generator in generators.items()}
        states = {way: chain.state for way, chain in chains.items()}
        for way in ("cuda_graphs", "compiled"):
            same(chains[way], chains["plain"])
    for way in ("cuda_graphs", "compiled"):
        replays = ways[way]["steps"].replays
        assert replays.replayed, replays.lines
        assert replays.path == way
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(seen[way], seen["plain"], strict=True))
        assert torch.equal(generators[way].get_state(), generators["plain"].get_state())
    if name in ("ula", "kla"):
        assert chains["plain"].divergences.sum() > 0


def model(classes: bool = False) -> GEBM:
    torch.manual_seed(0)
    name = "dcgan_conditional" if classes else "dcgan"
    base, energy = networks.make(name, resolution=8, channels=1, latent_dim=4, width=4, num_classes=3 * classes or None)
    return folded(GEBM(base, energy, StandardNormal(4), class_frequencies=[1, 2, 3] if classes else None))


@pytest.mark.parametrize("classes", [False, True], ids=["", "classes"])
def test_batches_of_the_same_number_of_chains_share_a_recording(classes):
    fixed, steps = model(classes), ReplayedSteps("true")
    latents = fixed.sample_latents(12, rng(0))
    ends: list[list[Tensor]] = [[], []]
    for which, ways in enumerate(({}, {"steps": steps})):
        for first in range(0, 12, 4):
            potential = ChainPotential(fixed, latents[first : first + 4])
            chain = samplers.run(
                samplers.UnadjustedLangevin(1e-2), potential, potential.z, 2 * BLOCK, generator=rng(1),
                prior=fixed.prior, first_chain=first, **ways,
            )  # fmt: skip
            ends[which].append(chain.z)
    torch.testing.assert_close(ends[1], ends[0])
    assert (steps.replays.replayed, len(steps.replays.lines)) == (4, 1)


@dataclass(frozen=True)
class Counting(samplers.UnadjustedLangevin):
    """A kernel whose steps depend on their number, without a ``step_kind``."""

    step_kind = None

    def step(self, state, potential, generator=None):
        moved, info = super().step(state, potential, generator)
        return moved._replace(z=moved.z * (1 + 1 / (1 + int(state.step)))), info


class Forgetful(samplers.UnadjustedLangevin):
    """A kernel that makes noise of its own where it is recorded."""

    calls = 0

    def step(self, state, potential, generator=None):
        type(self).calls += 1
        moved, info = super().step(state, potential, generator)
        return moved._replace(z=moved.z + 0.1 * (type(self).calls > 3 * BLOCK)), info


class Stale(samplers.UnadjustedLangevin):
    """A kernel that computes with the gradient of where it was recorded."""

    gradient: Tensor | None = None

    def step(self, state, potential, generator=None):
        if isinstance(generator, Tape):
            type(self).gradient = state.gradient.clone() if self.gradient is None else self.gradient
            state = state._replace(gradient=self.gradient)
        return super().step(state, potential, generator)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Counting(0.1), "it depends on the number of the step, and has no step_kind"),
        (Forgetful(0.1), "a replay is off by"),
        (Stale(0.1), "a replay is off by"),
    ],
)
def test_a_kernel_that_cannot_be_replayed_is_not_and_its_chain_is_the_plain_one(kernel, reason):
    steps, z0 = ReplayedSteps("true"), torch.randn(20, 3, generator=rng(0))
    replayed = samplers.run(kernel, rugged, z0, 5 * BLOCK, generator=rng(1), steps=steps)
    assert (steps.replays.replayed, steps.replays.path) == (0, "plain")
    assert steps.replays.lines[0].startswith(f"steps of chains are not replayed: {reason}")
    if not isinstance(kernel, Forgetful):
        same(replayed, samplers.run(kernel, rugged, z0, 5 * BLOCK, generator=rng(1)))


@dataclass
class Mutable:
    """A kernel that another one of equal settings may differ from later, so that it has no hash."""

    inner: samplers.UnadjustedLangevin
    gradients_per_step: int = 1

    def init(self, z, potential):
        return self.inner.init(z, potential)

    def step(self, state, potential, generator=None):
        return self.inner.step(state, potential, generator)


def test_a_kernel_without_a_hash_takes_its_steps_plainly():
    steps, z0 = ReplayedSteps("true"), torch.randn(20, 3, generator=rng(0))
    ula = samplers.UnadjustedLangevin(0.1)
    replayed = samplers.run(Mutable(ula), rugged, z0, 3 * BLOCK, generator=rng(1), steps=steps)
    same(replayed, samplers.run(ula, rugged, z0, 3 * BLOCK, generator=rng(1)))
    assert steps.replays.lines == [
        "steps of chains are not replayed: unhashable type: 'Mutable'; make it a frozen dataclass, for example"
    ]


@pytest.mark.parametrize("mode", ["auto", "false"])
def test_on_the_cpu_nothing_is_replayed_unless_it_is_requested(mode):
    steps, z0 = ReplayedSteps(mode), torch.zeros(4, 3)
    replayed = samplers.run(samplers.MALA(0.1), rugged, z0, 5 * BLOCK, generator=rng(1), steps=steps)
    same(replayed, samplers.run(samplers.MALA(0.1), rugged, z0, 5 * BLOCK, generator=rng(1)))
    assert (steps.replays.replayed, steps.replays.lines) == (0, [])
