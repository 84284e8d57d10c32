"""Training: which part moves in which step, in which mode, and that a resumed run is the run itself."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from gebm import (
    GEBM,
    KALE,
    Alternation,
    GradientPenalty,
    Schedule,
    StandardNormal,
    Trainer,
    adam,
    initialise_log_partition,
    networks,
    objectives,
)
from gebm.losses import BaseLoss, EnergyLoss
from gebm.penalties import Lazy

SHORT = Alternation(energy_steps=2, warmup_energy_steps=3, warmup_base_steps=1, warmup_every=4)
ONE = Alternation(energy_steps=1, warmup_energy_steps=1)


def images(start: int = 0, batch_size: int = 8) -> Iterator[Tensor]:
    """Batches by their number: the same from any start."""
    for number in itertools.count(start):
        generator = torch.Generator().manual_seed(number)
        yield torch.rand(batch_size, 1, 8, 8, generator=generator) * 2 - 1


def digits_model(seed: int = 0) -> GEBM:
    torch.manual_seed(seed)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=8)
    return GEBM(base, energy, StandardNormal(4))


def trainer_of(model: GEBM, lr: float = 1e-3, **overrides) -> Trainer:
    arguments = {
        "objective": KALE(),
        "penalty": GradientPenalty(0.1),
        "energy_optimizer": adam([*model.energy.parameters(), model.log_partition], lr),
        "base_optimizer": adam(model.base.parameters(), lr),
        "alternation": SHORT,
    }
    return Trainer(model, **arguments | overrides)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def power_iterations(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers() if name.endswith(("_u", "_v"))}


@settings(deadline=None, derandomize=True)
@given(base_step=st.integers(0, 200_000))
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


def flow_model(seed: int = 0, name: str = "realnvp", **settings) -> GEBM:
    torch.manual_seed(seed)
    base, energy = networks.make(name, resolution=0, channels=2, latent_dim=2, width=8, **settings)
    return GEBM(base, energy, StandardNormal(2))


def vectors(start: int = 0, batch_size: int = 8) -> Iterator[Tensor]:
    """Batches of a shifted and stretched Gaussian by their number: the same from any start."""
    for number in itertools.count(start):
        noise = torch.randn(batch_size, 2, generator=torch.Generator().manual_seed(number))
        yield noise @ torch.tensor([[1.2, 0.3], [0.0, 0.7]]) + torch.tensor([0.5, -0.25])


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


def test_maximum_likelihood_finds_the_mean_and_covariance():
    # Full batches, so that the optimum is the sample's own mean and covariance: that of n draws, exactly.
    model = flow_model(name="gaussian")
    x = next(vectors(0, 500))
    optimizer = adam(model.base.parameters(), 2e-2, betas=(0.9, 0.999))
    trainer = Trainer(model, objective=objectives.make("ml"), base_optimizer=optimizer)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        info = trainer.step(itertools.repeat(x), generator)
        if step in (200, 300):
            trainer.scale_learning_rates(0.1, 0.1)
    covariance = model.base.factor @ model.base.factor.T
    torch.testing.assert_close(model.base.mean.detach(), x.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance.detach(), torch.cov(x.T, correction=0), rtol=0, atol=2e-3)
    entropy = 0.5 * torch.logdet(torch.cov(x.T, correction=0)) + 1 + math.log(2 * math.pi)
    assert info.base_loss.item() == pytest.approx(entropy.item(), abs=1e-4)


@pytest.mark.parametrize(("objective", "ema_decay"), [("kale_fenchel", None), ("ml_kale", 0.9)])
def test_fenchel_finds_the_known_log_partition(objective, ema_decay):
    # exp(-D) dx has log-partition -1.3 at any time, whatever flows and base have learnt; c starts at zero.
    model = flow_model(name="realnvp", offset=1.3)
    trainer = trainer_of(
        model,
        lr=3e-3,
        objective=objectives.make(objective),
        penalty=GradientPenalty(0.0),
        alternation=Alternation(energy_steps=4, warmup_energy_steps=4),
        ema_decay=ema_decay,
    )
    generator, batches = torch.Generator().manual_seed(0), vectors(0, 128)
    for step in range(250):
        info = trainer.step(batches, generator)
        if step in (150, 200):
            trainer.scale_learning_rates(0.3, 0.3)
    assert info.num_nonfinite == 0
    assert abs(info.log_partition - -1.3) < 0.1
    # And the model is the data's law: it is as likely as the truth, up to 0.1 nats of estimation error.
    x = next(vectors(10_000, 4_000))
    factor = torch.tensor([[1.2, 0.3], [0.0, 0.7]]).T
    truth = torch.distributions.MultivariateNormal(torch.tensor([0.5, -0.25]), factor @ factor.T)
    shortfall = (truth.log_prob(x) - trainer.sampling_model().log_prob(x, log_partition=-1.3)).mean()
    assert abs(shortfall) < 0.1


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


def test_nonfinite_losses_are_counted():
    model = digits_model()
    trainer = trainer_of(model, penalty=GradientPenalty(0.0))
    batches = iter([torch.full((8, 1, 8, 8), math.nan)] + [next(images())] * 2)
    # The first loss is not a number, and no weight is one after its gradient.
    assert trainer.step(batches, torch.Generator().manual_seed(0)).num_nonfinite == 4


def test_average_is_what_the_energy_is_trained_against_and_what_is_sampled():
    model = digits_model()
    trainer = trainer_of(model, ema_decay=0.9)
    generator = torch.Generator().manual_seed(0)
    batches = images()
    # Restate the average by its definition, beside the trainer.
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


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize(
    "objective", ["kale_fenchel", "kale_dv", "pcd", "ml_kale over realnvp", "pcd_data over realnvp"]
)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resumed_run_is_bit_for_bit_the_uninterrupted_one(stop, objective, ema_decay):
    objective, _, explicit = objective.partition(" over ")

    def build(seed):
        model = flow_model(seed, explicit) if explicit else digits_model(seed)
        settings = {"penalty": Lazy(GradientPenalty(0.1), every=4), "schedule": Schedule("cosine", 8)}
        return model, trainer_of(model, objective=objectives.make(objective), ema_decay=ema_decay, **settings)

    def train(trainer, num_steps, first_batch, generator):
        batches, infos = vectors(first_batch) if explicit else images(first_batch), []
        for _ in range(num_steps):
            infos.append(trainer.step(batches, generator))
            if trainer.base_step == 2:
                trainer.scale_learning_rates(0.8, 0.8)
        return infos

    model, trainer = build(seed=0)
    generator = torch.Generator().manual_seed(7)
    infos = train(trainer, stop, 0, generator)
    taken = sum(info.energy_steps for info in infos)
    # Through the very bytes of a checkpoint.
    state = trainer.state_dict()
    tensors = safetensors.torch.load(safetensors.torch.save(state["tensors"] or {"": torch.zeros(0)}))
    values = json.loads(json.dumps(state["values"]))
    weights = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
    random_state = generator.get_state()

    infos = train(trainer, 6 - stop, taken, generator)
    resumed, resumed_trainer = build(seed=1)
    resumed.load_state_dict(weights)
    resumed_trainer.load_state_dict({"tensors": tensors, "values": values})
    resumed_generator = torch.Generator()
    resumed_generator.set_state(random_state)
    resumed_infos = train(resumed_trainer, 6 - stop, taken, resumed_generator)

    for one, other in zip(infos, resumed_infos, strict=True):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))
    assert changed(resumed, model.state_dict()) == set()
    state, resumed_state = trainer.state_dict(), resumed_trainer.state_dict()
    assert ("chains" in state["tensors"]) == objective.startswith("pcd")
    assert state["values"] == resumed_state["values"]
    assert state["tensors"].keys() == resumed_state["tensors"].keys()
    assert all(torch.equal(tensor, resumed_state["tensors"][name]) for name, tensor in state["tensors"].items())


@pytest.mark.parametrize("stop", [1, 3])
def test_channels_last_trains_the_same_and_resumes_bit_for_bit(stop):
    def build(memory_format):
        model = digits_model(0).to(memory_format=memory_format)
        return model, trainer_of(model, ema_decay=0.9)

    def train(trainer, first, last):
        batches = images(first * 100)
        return [trainer.step(batches, torch.Generator().manual_seed(step)) for step in range(first, last)]

    _, trainer = build(torch.contiguous_format)
    expected = train(trainer, 0, stop)
    model, trainer = build(torch.channels_last)
    found = train(trainer, 0, stop)
    # Sums in another order: rounding, which Adam's first steps, of the sign of a gradient, can make larger.
    assert expected[0].energy_loss.item() == pytest.approx(found[0].energy_loss.item(), abs=1e-5)
    state = trainer.state_dict()
    contiguous = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state["tensors"].items()
    }
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    infos = train(trainer, stop, 6)
    resumed, resumed_trainer = build(torch.channels_last)
    resumed.load_state_dict(weights)
    resumed_trainer.load_state_dict({"tensors": contiguous, "values": state["values"]})
    for one, other in zip(infos, train(resumed_trainer, stop, 6), strict=True):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))
    assert changed(resumed, model.state_dict()) == set()
    assert any(not tensor.is_contiguous() for tensor in resumed.state_dict().values())


def test_chains_on_latents_are_not_taken_over_as_chains_on_data():
    latent = trainer_of(flow_model(0, "gaussian"), objective=objectives.make("pcd"))
    latent.step(vectors(0), torch.Generator().manual_seed(0))
    data = trainer_of(flow_model(0, "gaussian"), objective=objectives.make("pcd_data"))
    data.load_state_dict(latent.state_dict())
    assert latent.chains is not None and data.chains is None
    data.step(vectors(1), torch.Generator().manual_seed(1))
    assert data.chains is not None


def test_saved_state_is_not_moved_by_the_run_that_loads_it():
    model = digits_model()
    trainer = trainer_of(model)
    trainer.step(images(), torch.Generator().manual_seed(0))
    saved = trainer.state_dict()
    saved["tensors"] = {name: tensor.clone() for name, tensor in saved["tensors"].items()}
    kept = {name: tensor.clone() for name, tensor in saved["tensors"].items()}
    other = trainer_of(digits_model())
    other.load_state_dict(saved)
    other.step(images(), torch.Generator().manual_seed(0))
    assert all(torch.equal(kept[name], tensor) for name, tensor in saved["tensors"].items())


def test_average_cannot_be_switched_on_resume():
    with_average, without = (trainer_of(digits_model(), ema_decay=decay) for decay in (0.9, None))
    for one, other in ((with_average, without), (without, with_average)):
        with pytest.raises(ValueError, match="set ema_decay as it was"):
            one.load_state_dict(other.state_dict())


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
        ({"precision": torch.float16}, "choose torch.float32 or torch.bfloat16"),
        ({"ema_decay": 1.0}, "between 0 and 1"),
        ({"latent_batch_size": 0}, "at least 1"),
        ({"energy_optimizer": adam([nn.Parameter(torch.zeros(2))], 1e-3)}, "the energy and log_partition"),
        ({"base_optimizer": adam([nn.Parameter(torch.zeros(2))], 1e-3)}, "the base"),
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
    with pytest.raises(ValueError, match="no optimiser for the base"):
        trainer_of(model, base_optimizer=None)
    with pytest.raises(ValueError, match="no optimiser for the energy and log_partition"):
        trainer_of(model, energy_optimizer=None)


@pytest.mark.parametrize(
    "numbers", [{"energy_steps": -1}, {"warmup_energy_steps": -1}, {"warmup_base_steps": -1}, {"warmup_every": 0}]
)
def test_alternation_refuses_what_is_no_number_of_steps(numbers):
    with pytest.raises(ValueError, match="cannot be negative") as error:
        Alternation(**numbers)
    assert "\n" not in str(error.value)
    assert Alternation(energy_steps=0).energy_steps_at(3) == 0


class Shift(nn.Module):
    """A base that can only move: x = z + theta."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(dim))

    def forward(self, z):
        return z + self.theta


class Quadratic(nn.Module):
    """E(x) = x^T A x / 2 + b^T x, with A symmetric: between Gaussians, the best energy is one of these."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.zeros(dim, dim))
        self.slope = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        symmetric = (self.curvature + self.curvature.T) / 2
        return ((x @ symmetric) * x).sum(1) / 2 + x @ self.slope


def test_trained_kale_approaches_the_known_divergence():
    # P = N(m, S), B = N(0, I): maximised on a fixed batch, the bound is at least its value at the optimal energy, which
    # estimates KL(P || B) with a known standard error; and on the distributions themselves it stays below KL(P || B).
    n, dim = 4_000, 2
    mean = torch.tensor([0.6, -0.3]).double()
    factor = torch.tensor([[0.7, 0.0], [0.3, 0.6]]).double()
    covariance = factor @ factor.T
    divergence = 0.5 * (covariance.trace() + mean @ mean - dim - torch.logdet(covariance))
    generator = torch.Generator().manual_seed(0)
    x_data = mean + torch.randn(n, dim, generator=generator, dtype=torch.float64) @ factor.T
    x_base = torch.randn(n, dim, generator=generator, dtype=torch.float64)

    model = GEBM(nn.Identity(), Quadratic(dim), StandardNormal(dim)).double()
    loss = EnergyLoss(model, KALE("fenchel"), GradientPenalty(0.0))
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(x_data, x_base, torch.zeros(n)).loss
        value.backward()
        return value

    optimizer.step(closure)
    trained = -closure().detach()

    optimum = Quadratic(dim).double()
    precision = covariance.inverse()
    with torch.no_grad():
        optimum.curvature.copy_(precision - torch.eye(dim))
        optimum.slope.copy_(-precision @ mean)
    log_partition = 0.5 * (mean @ precision @ mean + torch.logdet(covariance))
    ratio = (-(optimum(x_base) + log_partition)).exp()
    error = ((optimum(x_data).var() + ratio.var()) / n).sqrt().detach()
    assert trained >= divergence - 5 * error

    # F of the trained energy in closed form: Gaussian expectations of a quadratic and of its exponential.
    energy = model.energy.network
    curvature, slope = ((energy.curvature + energy.curvature.T) / 2).detach(), energy.slope.detach()
    expectation = 0.5 * ((curvature @ covariance).trace() + mean @ curvature @ mean) + slope @ mean
    tilted = torch.eye(dim) + curvature
    exact = 0.5 * (slope @ tilted.inverse() @ slope - torch.logdet(tilted))
    supremum = -expectation - exact
    c = model.log_partition.detach()
    fenchel = -expectation - c - (exact - c).exp() + 1
    assert fenchel <= supremum <= divergence
    # The trained c is the log-partition of the batch, whose standard error follows from its own weights.
    weights = (-(energy(x_base) + exact)).exp().detach()
    assert abs(c - exact) <= 5 * weights.std() / math.sqrt(n)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_base_moves_onto_the_data(ema_decay):
    # P = N(m, I), and the base can only shift: a step of Adam moves each entry by at most the learning rate, or a
    # small multiple, so the steps taken here could carry it 4, four times what is needed.
    torch.manual_seed(0)
    target = torch.tensor([1.0, -1.0])
    model = GEBM(Shift(2), Quadratic(2), StandardNormal(2))
    initialise_log_partition(model, 256)
    trainer = trainer_of(model, lr=2e-2, penalty=GradientPenalty(0.1), ema_decay=ema_decay)
    generator = torch.Generator().manual_seed(0)
    batches = (target + torch.randn(256, 2, generator=generator) for _ in itertools.count())
    distances = []
    for _ in range(200):
        info = trainer.step(batches, generator)
        distances.append((trainer.sampling_model().base.theta.detach() - target).norm().item())
    assert info.num_nonfinite == 0
    # Over the last quarter, nearer than half of the way it had to go.
    assert max(distances[-50:]) < math.sqrt(2) / 2


def flattened(tensors) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


TOGETHER = ("dcgan", "kale_fenchel", "ml", "ml_kale", "pcd", "pcd_data", "base kept")


def trained_together(case: str, rank: int, world_size: int) -> Tensor:
    """What three alternations leave behind on one of so many processes.

    Each begins with weights of its own; the batches of 8 are shared out among them.
    """
    # In double precision, so that what is left is no rounding; chains keep to float32.
    torch.set_default_dtype(torch.float32 if case.startswith("pcd") else torch.float64)
    if case in networks.NAMES:
        torch.manual_seed(rank)
        base, energy = networks.make(case, resolution=8, channels=1, latent_dim=4, width=8)
        model, batches = GEBM(base, energy, StandardNormal(4)), images()
        settings = {"objective": KALE("donsker_varadhan"), "ema_decay": 0.9}
    else:
        model, batches = flow_model(rank), vectors()
        kept = case == "base kept"
        objective = objectives.make("kale_fenchel" if kept else case)
        settings = {"objective": objective, "train_base": not kept, "ema_decay": 0.9}
    trainer = trainer_of(
        model, parallel=DistributedDataParallel if world_size > 1 else lambda module: module, **settings
    )
    mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    parts = (batch[mine] for batch in batches)
    for step in range(3):
        assert trainer.step(parts, torch.Generator().manual_seed(step)).num_nonfinite == 0
    state = trainer.state_dict()["tensors"]  # optimisers, average, and the chains of all
    return flattened([*model.state_dict().values(), *(state[name] for name in sorted(state))])


def train_one_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous-{world_size}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    found = {case: trained_together(case, rank, world_size) for case in TOGETHER}
    safetensors.torch.save_file(found, f"{folder}/{world_size}-{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_learns_what_one_does(world_size, tmp_path):
    # Networks, running statistics, average, optimisers, log-partition and chains, of the same batches altogether.
    torch.multiprocessing.spawn(train_one_process, (world_size, str(tmp_path)), nprocs=world_size)
    found = [safetensors.torch.load_file(tmp_path / f"{world_size}-{rank}.safetensors") for rank in range(world_size)]
    for case in TOGETHER:
        alone = trained_together(case, 0, 1)
        torch.set_default_dtype(torch.float32)
        tolerance = {"rtol": 1e-3, "atol": 1e-6} if case.startswith("pcd") else {"rtol": 1e-6, "atol": 1e-8}
        torch.testing.assert_close(found[0][case], alone, **tolerance)
        # Bit for bit the same on all of them, or they would drift apart.
        assert all(torch.equal(one[case], found[0][case]) for one in found)


def test_base_loss_hides_the_energy_from_data_parallelism():
    model = digits_model()
    assert {id(p) for p in BaseLoss(model, KALE()).parameters()} == {id(p) for p in model.base.parameters()}
