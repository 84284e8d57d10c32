"""Training: which part moves in which step and in which mode, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from gebm import KALE, Alternation, GradientPenalty, Schedule, Trainer, adam, objectives
from gebm.objectives.losses import EnergyLoss
from tests.helpers.trainers import SHORT, changed, digits_model, flow_model, images, snapshot, trainer_of, vectors

ONE = Alternation(energy_steps=1, warmup_energy_steps=1)


def power_iterations(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers() if name.endswith(("_u", "_v"))}


@settings(deadline=None, derandomize=True)
@given(base_step=st.integers(0, 200_000))
@example(500)
@example(501)
def test_alternation_is_the_papers(base_step):
    expected = 100 if base_step in (0, 1) or base_step % 500 == 0 else 5
    assert Alternation().energy_steps_at(base_step) == expected


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(0, 60))
def test_energy_steps_before_a_base_step_are_the_sum_of_those_at_the_steps_before(steps, warm, first, every, base_step):
    alternation = Alternation(steps, warm, first, every)
    assert alternation.energy_steps_before(base_step) == sum(map(alternation.energy_steps_at, range(base_step)))


def test_trainer_takes_the_steps_of_the_alternation():
    model = digits_model()
    trainer = trainer_of(model)
    taken = itertools.count()
    batches = (next(taken) * 0 + batch for batch in images())
    steps = [trainer.step(batches, torch.Generator().manual_seed(0)).energy_steps for _ in range(6)]
    assert steps == [3, 2, 2, 2, 3, 2]
    assert next(taken) == sum(steps)


def test_energy_step_moves_the_energy_alone_with_one_power_iteration():
    model = digits_model().train()
    trainer = trainer_of(model)
    base, energy = snapshot(model.base), snapshot(model.energy)
    expected = {name: buffer.clone() for name, buffer in model.energy.named_buffers()}
    # One more power iteration, by reading each weight once in training mode.
    twin = digits_model().train().energy
    twin.load_state_dict(energy)
    for layer in twin.modules():
        if parametrize.is_parametrized(layer):
            _ = layer.weight
    expected = dict(twin.named_buffers())

    trainer.alternation, trainer.train_base = ONE, False
    trainer.step(images(), torch.Generator().manual_seed(0))
    assert changed(model.base, base) == set()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert {name for name, _ in model.energy.named_parameters()} <= changed(model.energy, energy)
    for name in power_iterations(model.energy):
        assert torch.equal(dict(model.energy.named_buffers())[name], expected[name])


def test_energy_step_sees_the_base_in_evaluation_mode():
    model = digits_model().train()
    trainer = trainer_of(model)
    for _ in range(2):
        trainer.step(images(), torch.Generator().manual_seed(0))
    seen = []
    trainer._energy_loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    seen.clear()
    model.base.train()
    trainer.alternation, trainer.train_base = ONE, False
    trainer.step(images(), torch.Generator().manual_seed(5))
    (x_data, x_base, _) = seen[0]
    assert not x_base.requires_grad
    # Folded for the draws, so equal but for rounding; batch statistics would be far off.
    expected = model.sample_base(len(x_data), torch.Generator().manual_seed(5))
    torch.testing.assert_close(x_base, expected, rtol=1e-4, atol=1e-5)
    model.base.train()
    batch = model.base(model.prior.sample(len(x_data), torch.Generator().manual_seed(5)))
    assert (batch - expected).abs().max() > 1e-2


def test_base_step_moves_the_base_alone():
    model = digits_model().train()
    trainer = trainer_of(model)
    base, energy, log_partition = snapshot(model.base), snapshot(model.energy), model.log_partition.clone()
    trainer._step_base(model.prior.sample(8, torch.Generator().manual_seed(0)))
    # Power iterations are among the energy's buffers.
    assert power_iterations(model.energy) and changed(model.energy, energy) == set()
    assert torch.equal(model.log_partition, log_partition)
    assert all(parameter.grad is None for parameter in [*model.energy.parameters(), model.log_partition])
    assert all(parameter.requires_grad for parameter in model.energy.parameters())
    moved = changed(model.base, base)
    assert any("running_mean" in name for name in moved)
    assert {name for name, parameter in model.base.named_parameters() if parameter.grad.any()} <= moved


NEEDS_DENSITY = ("ml", "ml_kale", "cd_data", "pcd_data")
IMPLICIT = [name for name in objectives.NAMES if name not in NEEDS_DENSITY]


@pytest.mark.parametrize("name", IMPLICIT)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_objective_trains_in_every_precision(name, precision):
    model = digits_model()
    trainer = trainer_of(model, objective=objectives.make(name), precision=precision, latent_batch_size=12)
    before = snapshot(model)
    info = trainer.step(images(), torch.Generator().manual_seed(0))
    assert info.num_nonfinite == 0
    for value in info[:-1]:
        assert value.shape == () and value.isfinite() and not value.requires_grad
    assert all(value.dtype == torch.float32 for value in info[:6])
    assert info.penalty > 0
    assert ("log_partition" in changed(model, before)) == (name == "kale_fenchel")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("energy", [None, "mlp"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(objectives.NAMES))
def test_every_objective_trains_flows(name, precision, ema_decay, energy):
    model = flow_model(energy=energy)
    objective = objectives.make(name)
    trainer = trainer_of(model, objective=objective, precision=precision, ema_decay=ema_decay)
    before = snapshot(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # the first step of a flow that is the identity moves its last layers only
        info = trainer.step(vectors(), generator)
        assert info.num_nonfinite == 0 and info.base_loss.isfinite()
    moved = changed(model, before)
    parameters = {name for name, _ in model.named_parameters()}
    expected = {name for name in parameters if name.startswith("base.")}
    if objective.trains_energy:
        assert all(value.isfinite() for value in info[:-1])
        expected |= {name for name in parameters if name.startswith("energy.")}
    else:
        assert info.energy_steps == 0 and info.energy_loss.isnan() and info.penalty.isnan()
    # A constant in the energy is lost in a difference of energies.
    assert expected - {"energy.network.4.bias"} <= moved
    assert ("log_partition" in moved) == objective.trains_log_partition


@pytest.mark.parametrize("name", NEEDS_DENSITY)
def test_objectives_that_need_a_density_say_so(name):
    with pytest.raises(ValueError, match="needs a base with a density, not DCGANBase: use a flow") as error:
        trainer_of(digits_model(), objective=objectives.make(name))
    assert "\n" not in str(error.value)


def test_maximum_likelihood_takes_one_batch_for_each_base_step():
    model = flow_model()
    energy = snapshot(model.energy)
    trainer = Trainer(model, objective=objectives.make("ml"), base_optimizer=adam(model.base.parameters(), 1e-3))
    taken = []
    batches = (taken.append(number) or batch for number, batch in enumerate(vectors()))
    for step in range(3):
        assert trainer.step(batches, torch.Generator().manual_seed(0)).energy_steps == 0
        assert len(taken) == step + 1
    assert changed(model.energy, energy) == set()


def test_energy_relative_to_the_base_meets_the_average_in_energy_steps_and_the_base_in_base_steps():
    model = flow_model()
    trainer = trainer_of(model, ema_decay=0.9)
    trainer.step(vectors(), torch.Generator().manual_seed(0))
    sampled = trainer.sampling_model()
    assert sampled.base is trainer.average and sampled.energy.network.base is trainer.average
    assert sampled.energy.network.network is model.energy.network.network
    assert trainer._energy_loss.energy is sampled.energy
    assert model.energy.network.base is model.base
    assert trainer._base_loss._energy[0] is model.energy


def test_a_base_that_is_not_trained_stands_still():
    model = digits_model().train()
    base, energy = snapshot(model.base), snapshot(model.energy)
    optimizer = adam([*model.energy.parameters(), model.log_partition], 1e-3)
    trainer = Trainer(model, objective=KALE(), energy_optimizer=optimizer, alternation=SHORT, train_base=False)
    infos = [trainer.step(images(), torch.Generator().manual_seed(0)) for _ in range(2)]
    assert changed(model.base, base) == set() and changed(model.energy, energy)
    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert [info.energy_steps for info in infos] == [3, 2] and trainer.base_step == 2
    assert all(info.base_loss.isnan() and info.energy_loss.isfinite() and info.num_nonfinite == 0 for info in infos)
    trainer.scale_learning_rates(0.5, 0.5)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert trainer.state_dict()["values"]["energy_step"] == 5


def test_bfloat16_gives_the_gradients_of_float32_up_to_its_rounding():
    x_data, x_base = next(images(0, 64)), next(images(1, 64))
    position = torch.rand(64, generator=torch.Generator().manual_seed(0))
    flat = []
    for precision in (torch.float32, torch.bfloat16):
        loss = EnergyLoss(digits_model(), KALE(), GradientPenalty(1.0), precision)
        loss(x_data, x_base, position).loss.backward()
        flat.append(torch.cat([parameter.grad.flatten() for parameter in loss.parameters()]))
    full, half = flat
    # Three layers forward, backward and backward again round to 2^-9 relative each; adding up as if all conspired.
    assert (half - full).norm() <= 9 * 2**-9 * 4 * full.norm()
    assert not torch.equal(half, full)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_each_step_has_its_own_modes_whatever_the_model_was_left_in(ema_decay):
    model, modes = digits_model(), []
    trainer = trainer_of(model, ema_decay=ema_decay)
    handles = [
        network.register_forward_hook(lambda layer, inputs, x, name=name: modes.append((name, layer.training)))
        for name, network in (("energy", model.energy), ("base", model.base))
    ]
    for leave in (model.eval, model.train):
        leave()
        vectors = [
            layer.parametrizations.weight[0]._u.clone()
            for layer in model.energy.network
            if hasattr(layer, "parametrizations")
        ]
        modes.clear()
        trainer.train_energy(images(), torch.Generator().manual_seed(0), 1)
        # Samples and penalty: both by the energy in training mode, in which its norms are tracked.
        assert {mode for mode in modes if mode[0] == "energy"} == {("energy", True)}
        assert not {mode for mode in modes if mode == ("base", True)}
        moved = [
            layer.parametrizations.weight[0]._u for layer in model.energy.network if hasattr(layer, "parametrizations")
        ]
        assert len(vectors) == 3 and not all(torch.equal(a, b) for a, b in zip(vectors, moved, strict=True))
        leave()
        modes.clear()
        trainer._step_base(model.prior.sample(8, torch.Generator().manual_seed(0)))
        assert set(modes) == {("base", True), ("energy", False)}
    for handle in handles:
        handle.remove()


def test_nonfinite_losses_are_counted():
    model = digits_model()
    trainer = trainer_of(model, penalty=GradientPenalty(0.0))
    with torch.no_grad():
        model.energy.network[-1].bias.fill_(math.nan)
    # Three energy steps and a base step.
    assert trainer.step(images(), torch.Generator().manual_seed(0)).num_nonfinite == 4


def test_average_is_what_the_energy_is_trained_against_and_what_is_sampled():
    model = digits_model()
    trainer = trainer_of(model, ema_decay=0.9)
    generator = torch.Generator().manual_seed(0)
    batches = images()
    # Restate the average by its definition, next to the trainer.
    expected = snapshot(model.base)
    for step in range(12):
        trainer.step(batches, generator)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.base.state_dict().items():
            blended = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            expected[name] = blended
    sampled = trainer.sampling_model()
    for name, value in sampled.base.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert sampled.energy is model.energy and sampled.log_partition is model.log_partition
    seen = []
    trainer._energy_loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    trainer.alternation, trainer.train_base = ONE, False
    trainer.step(batches, torch.Generator().manual_seed(5))
    average = sampled.sample_base(8, torch.Generator().manual_seed(5))
    torch.testing.assert_close(seen[0], average, rtol=1e-4, atol=1e-5)  # folded for the draws
    assert (average - model.eval().sample_base(8, torch.Generator().manual_seed(5))).abs().max() > 1e-3


def test_without_average_the_model_itself_is_sampled():
    model = digits_model()
    assert trainer_of(model).sampling_model() is model


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rates_follow_the_schedule_and_decay_beside_it(schedule):
    model, steps = digits_model(), 6
    energy_optimizer = adam([*model.energy.parameters(), model.log_partition], lr=1e-3)
    base_optimizer = adam(model.base.parameters(), lr=3e-3)
    trainer = Trainer(
        model,
        objective=KALE(),
        energy_optimizer=energy_optimizer,
        base_optimizer=base_optimizer,
        alternation=SHORT,
        schedule=Schedule(schedule, steps),
    )
    batches, taken = images(), []
    for step in range(steps):
        if step == 3:
            trainer.scale_learning_rates(0.5, 0.1)
        trainer.step(batches, torch.Generator().manual_seed(step))
        taken.append([optimizer.param_groups[-1]["lr"] for optimizer in (energy_optimizer, base_optimizer)])
    shape = [
        1 - step / steps if schedule == "linear" else math.cos(math.pi * step / steps / 2) ** 2 for step in range(6)
    ]
    decays = [(1, 1)] * 3 + [(0.5, 0.1)] * 3
    expected = [[1e-3 * f * a, 3e-3 * f * b] for f, (a, b) in zip(shape, decays, strict=True)]
    assert taken == [pytest.approx(rates, rel=1e-12) for rates in expected]
    before = snapshot(model)
    trainer.train_base = False
    trainer.step(batches, torch.Generator().manual_seed(9))  # beyond the last step nothing is learned
    assert changed(model, before) <= {name for name, _ in model.named_buffers()}


def test_spectral_norms_are_one_after_many_steps():
    model = digits_model()
    trainer = trainer_of(model)
    generator, batches = torch.Generator().manual_seed(0), images()
    for _ in range(40):
        trainer.step(batches, generator)
    layers = [layer for layer in model.energy.modules() if parametrize.is_parametrized(layer)]
    assert len(layers) == 3

    def norms():
        model.energy.eval()
        return [torch.linalg.matrix_norm(layer.weight.detach().flatten(1).double(), 2).item() for layer in layers]

    # Power iteration estimates the largest singular value from below: the quotient is one or more, never less.
    assert min(norms()) >= 1 - 1e-5
    # One iteration per step lags behind weights that move; let it catch up with weights that stand still. Without any
    # gap between singular values, k iterations miss 0.871 log(n) / (k - 1) of the square on average (Kuczynski and
    # Wozniakowski 1992, theorem 3.1); five times that, by Markov's inequality, is seldom exceeded.
    model.energy.train()
    for _ in range(400):
        for layer in layers:
            _ = layer.weight
    for layer, norm in zip(layers, norms(), strict=True):
        assert norm**2 <= 1 / (1 - 5 * 0.871 * math.log(max(2, *layer.weight.flatten(1).shape)) / 399)


def test_weight_decay_leaves_the_log_partition_alone():
    weights, log_partition = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.tensor(1.0))
    optimizer = adam([weights, log_partition], lr=0.1, weight_decay=1.0)
    weights.grad, log_partition.grad = torch.zeros(2, 2), torch.tensor(0.0)
    optimizer.step()
    assert (weights < 1).all() and log_partition == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"precision": torch.float16}, "choose one of float32, tf32, bfloat16"),
        ({"ema_decay": 1.0}, "between 0 and 1"),
        ({"latent_batch_size": 0}, "at least 1"),
        ({"energy_optimizer": adam([nn.Parameter(torch.zeros(2))], 1e-3)}, "the energy and log_partition"),
        (
            {"base_optimizer": adam([nn.Parameter(torch.zeros(2))], 1e-3)},
            "base_optimizer lacks 0",
        ),
    ],
)
def test_what_is_refused_is_refused_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        trainer_of(digits_model(), **overrides)
    assert "\n" not in str(error.value)


def test_nothing_to_train_is_refused():
    model = flow_model()
    with pytest.raises(ValueError, match="nothing is left to train"):
        trainer_of(model, objective=objectives.make("ml"), train_base=False)
    with pytest.raises(ValueError, match="no optimizer for the base"):
        trainer_of(model, base_optimizer=None)
    with pytest.raises(ValueError, match="no optimizer for the energy and log_partition"):
        trainer_of(model, energy_optimizer=None)


@pytest.mark.parametrize(
    "numbers", [{"energy_steps": -1}, {"warmup_energy_steps": -1}, {"warmup_base_steps": -1}, {"warmup_every": 0}]
)
def test_alternation_refuses_what_is_no_number_of_steps(numbers):
    with pytest.raises(ValueError, match="cannot be negative") as error:
        Alternation(**numbers)
    assert "\n" not in str(error.value)
    assert Alternation(energy_steps=0).energy_steps_at(3) == 0
