"""The check of a replay: steps that differ by roundings agree, and steps that leave something out do not."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gebm import GEBM, Alternation, StandardNormal, Trainer, adam, networks, objectives, penalties
from gebm.replay import recording
from gebm.replay.agreement import DRAWS, Agreement, compare, spread
from gebm.replay.roundings import Roundings
from tests.helpers import operator_graph

SEEDS = st.integers(0, 2**31)


def agreement_of(
    other: Tensor, one: Tensor, before: Tensor, rounded: Callable[[], Tensor], **more: tuple[Tensor, Tensor]
) -> Agreement:
    """Compare steps of one tensor, and of more of them that the other way takes to the same numbers."""
    rest = {name: after for name, (_, after) in more.items()}
    draws = spread({"w": one} | rest, ({"w": rounded()} | rest for _ in range(DRAWS)))
    befores = {"w": before} | {name: tensor for name, (tensor, _) in more.items()}
    return compare({"w": one} | rest, {"w": other} | rest, draws, befores)


@settings(max_examples=50, deadline=None)
@given(scale=st.floats(1e-3, 1e3), noise=st.floats(1e-9, 1e-3), n=st.integers(1, 500), seed=SEEDS)
def test_ways_that_differ_by_roundings_agree_and_others_do_not(scale, noise, n, seed):
    generator = torch.Generator().manual_seed(seed)
    before, step = (torch.randn(n, generator=generator).double() for _ in range(2))
    one = before + scale * step

    def off(by: float) -> Tensor:
        return one + by * scale * step.norm() / n**0.5 * torch.randn(n, generator=generator).double()

    # Roundings up to half a unit, of two ways, against a whole unit.
    assert agreement_of(off(0.41 * noise), one, before, lambda: off(noise)).agrees
    # Forty roundings, where they are known from enough numbers; any thousand.
    assert n < 100 or not agreement_of(off(40 * noise), one, before, lambda: off(noise)).agrees
    sign = 1000 * noise * scale * step
    assert not agreement_of(one + sign, one, before, lambda: off(noise)).agrees
    # A step that is left out, however much of it is rounding.
    assert not agreement_of(before, one, before, lambda: off(0.3)).agrees


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 10), noise=st.floats(0.1, 10), seed=SEEDS)
def test_a_few_numbers_that_are_rounding_alone_are_not_refused_but_garbage_and_a_step_of_noise_are(n, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    before, one = torch.zeros(n), torch.randn(n, generator=generator)
    large = {"more": (torch.zeros(1000), torch.randn(1000, generator=generator))}

    def off(by: float = 1.0) -> Tensor:
        return one + by * noise * torch.randn(n, generator=generator)

    def garbage() -> Tensor:
        return one + 100 * (1 + noise)

    assert agreement_of(off(0.41), one, before, off, **large).agrees
    assert not agreement_of(garbage(), one, before, off, **large).agrees
    # The same noise in all numbers says nothing of any of them.
    assert not agreement_of(before - one, one, before, off).agrees


def test_a_few_decisions_may_go_the_other_way_but_not_many_and_no_counter():
    accepted, z = torch.ones(1000, dtype=torch.bool), torch.randn(1000)
    for flipped, agrees in ((10, True), (100, False)):
        other, moved = accepted.clone(), z.clone()
        other[:flipped], moved[:flipped] = False, 7.0
        assert compare({"a": accepted, "z": z}, {"a": other, "z": moved}, {"z": 0.0}, {}).agrees == agrees
    assert not compare({"n": torch.tensor(3)}, {"n": torch.tensor(4)}, {}, {}).agrees
    lost = torch.full((1000,), torch.nan)
    assert not compare({"z": z}, {"z": lost}, {"z": 0.0}, {}).agrees
    assert compare({"z": lost}, {"z": lost}, {"z": 0.0}, {}).agrees


@settings(max_examples=20, deadline=None)
@given(precision=st.sampled_from(["float32", "tf32", "bfloat16"]), seed=SEEDS)
def test_roundings_are_those_of_each_operators_type_and_of_products_in_tf32(precision, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(64, 64, generator=generator), torch.randn(64, 64, generator=generator)
    product, whole = x @ weight, torch.arange(8)

    def off(function: Callable[[], Tensor], exact: Tensor) -> float:
        with Roundings(precision, seed):
            result = function()
        return float((result - exact).norm() / exact.norm() / torch.finfo(exact.dtype).eps)

    assert 0.5 < off(lambda: x + 0, x) < 1.5
    assert 0.5 < off(lambda: x.bfloat16() * 1, x.bfloat16()) < 3
    # A sum of 4096 numbers is made of partial sums of 256, and rounds by the root of that.
    assert 0.5 * 16 < off(lambda: x.abs().sum(), x.abs().sum()) < 1.5 * 16
    unit = 2**13 if precision == "tf32" else 1
    assert 0.5 * unit < off(lambda: x @ weight, product) < 3 * unit
    with Roundings(precision, seed):
        assert torch.equal(whole * 3, torch.arange(0, 24, 3))
        y = x.clone()
        state = torch.zeros(3).add_(1)
    assert torch.equal(state, torch.ones(3))
    # Other signs in each draw.
    with Roundings(precision, seed + 1):
        assert not torch.equal(y, x.clone())


class OtherKernels(TorchDispatchMode):
    """A way to compute the same that rounds differently in each operator: in double precision, and then to single."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Batch normalization changes running statistics, though its schema has no word of it.
        changes = func.is_view or func._schema.is_mutable or "batch_norm" in func._schema.name
        if changes or {tensor.dtype for tensor in tensors} & {torch.float32, torch.float64} != {torch.float32}:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: _to(t, torch.float32, torch.float64), (args, kwargs))
        result = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda t: _to(t, torch.float64, torch.float32), result)


def _to(tensor: Tensor, source: torch.dtype, target: torch.dtype) -> Tensor:
    # The operator itself, which a graph records: `to` may be a view.
    return torch.ops.aten._to_copy(tensor, dtype=target) if tensor.dtype == source else tensor


def trainer_of(seed: int, penalty: str = "gradient", family: str = "dcgan") -> Trainer:
    torch.manual_seed(seed)
    sizes = {"resolution": 8, "channels": 1} if family == "dcgan" else {"resolution": 0, "channels": 3}
    base, energy = networks.make(family, latent_dim=3, width=4, **sizes)
    model = GEBM(base, energy, StandardNormal(3))
    return Trainer(
        model,
        objective=objectives.make("kale_fenchel"),
        penalty=penalties.make(penalty),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-3),
        base_optimizer=adam(model.base.parameters(), 1e-3),
        alternation=Alternation(2, warmup_energy_steps=2),
        cuda_graphs="true",
    )


def lines_of(trainer: Trainer, seed: int, replayed: Callable[[], AbstractContextManager], monkeypatch) -> list[str]:
    """Train with replays that are recorded in a context, and return what is said of them."""

    def capture(run, device, pool):
        def in_context() -> list[Tensor]:
            with replayed():
                return run()

        return operator_graph.capture(in_context, device, pool)

    monkeypatch.setattr(recording, "capture", capture)
    generator = torch.Generator().manual_seed(seed)
    batches = (torch.rand(8, *trainer.gebm.sample_shape(), generator=generator) * 2 - 1 for _ in itertools.count())
    for step in range(2):
        trainer.step(batches, torch.Generator().manual_seed(step))
    return trainer.replayed.replays.lines


@pytest.mark.parametrize("family", ["dcgan", "mlp"])
@pytest.mark.parametrize("penalty", ["none", "gradient", "r1"])
def test_training_steps_that_round_differently_in_each_operator_agree(family, penalty, monkeypatch):
    for seed in range(3):
        trainer = trainer_of(seed, penalty, family)
        lines = lines_of(trainer, seed, OtherKernels, monkeypatch)
        assert not any("are not" in line for line in lines), (seed, lines)


@contextlib.contextmanager
def group_entry(optimizer: Optimizer, key: str, change: Callable) -> Iterator[None]:
    """Let the steps of an optimizer read another setting."""
    take = optimizer.step

    def step() -> None:
        before = [group[key] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group[key] = change(group[key])
        take()
        for group, entry in zip(optimizer.param_groups, before, strict=True):
            group[key] = entry

    optimizer.step = step
    yield
    del optimizer.step


@contextlib.contextmanager
def kept(tensor: Tensor) -> Iterator[None]:
    before = tensor.detach().clone()
    yield
    with torch.no_grad():
        tensor.copy_(before)


@contextlib.contextmanager
def attribute(modules: nn.Module, kind: str, name: str, value: object) -> Iterator[None]:
    chosen = [module for module in modules.modules() if type(module).__name__ == kind]
    assert chosen
    before = [getattr(module, name) for module in chosen]
    for module in chosen:
        setattr(module, name, value)
    yield
    for module, old in zip(chosen, before, strict=True):
        setattr(module, name, old)


@contextlib.contextmanager
def penalty_times(trainer: Trainer, factor: float) -> Iterator[None]:
    before = trainer.penalty

    class Scaled:
        draw = staticmethod(before.draw)

        def __call__(self, *arguments: object) -> Tensor:
            return factor * before(*arguments)

    trainer.penalty = Scaled()
    yield
    trainer.penalty = before


@contextlib.contextmanager
def gradients(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handles = [parameter.register_hook(change) for parameter in module.parameters()]
    yield
    for handle in handles:
        handle.remove()


class OneOperatorOff(TorchDispatchMode):
    """Forty roundings, always upwards, in the results of one operator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * (1 + 40 * 2**-23) if func.overloadpacket is torch.ops.aten.leaky_relu else result


WRONG: dict[str, Callable[[Trainer], AbstractContextManager]] = {
    "a learning rate 0.1 % lower": lambda t: group_entry(t.energy_optimizer, "lr", lambda rate: rate * 0.999),
    "a base's learning rate 0.1 % lower": lambda t: group_entry(t.base_optimizer, "lr", lambda rate: rate * 0.999),
    "another beta2": lambda t: group_entry(t.energy_optimizer, "betas", lambda betas: (betas[0], 0.9995)),
    "another beta1": lambda t: group_entry(t.base_optimizer, "betas", lambda betas: (0.49, betas[1])),
    "a weight decay": lambda t: group_entry(t.base_optimizer, "weight_decay", lambda _: 1e-3),
    "no penalty": lambda t: penalty_times(t, 0.0),
    "a penalty 1 % lower": lambda t: penalty_times(t, 0.99),
    "no power iteration": lambda t: attribute(t.gebm.energy, "_SpectralNorm", "n_power_iterations", 0),
    "two power iterations": lambda t: attribute(t.gebm.energy, "_SpectralNorm", "n_power_iterations", 2),
    "another momentum of statistics": lambda t: attribute(t.gebm.base, "BatchNorm2d", "momentum", 0.11),
    "the last bias of the energy": lambda t: kept(list(t.gebm.energy.parameters())[-2]),
    "the last bias of the base": lambda t: kept(list(t.gebm.base.parameters())[-1]),
    "the log-partition": lambda t: kept(t.gebm.log_partition),
    "gradients 0.1 % larger": lambda t: gradients(t.gebm.base, lambda gradient: gradient * 1.001),
    "gradients in bfloat16": lambda t: gradients(t.gebm.energy, lambda gradient: gradient.bfloat16().float()),
    "forty roundings in one operator": lambda t: OneOperatorOff(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_training_step_that_is_a_little_wrong_is_refused(wrong, monkeypatch):
    for seed in range(2):
        trainer = trainer_of(seed)
        lines = lines_of(trainer, seed, lambda t=trainer: WRONG[wrong](t), monkeypatch)
        assert any(line.startswith("training steps are not replayed: a replay is off by") for line in lines), lines
