"""Validation: what batches, parameters and arguments are accepted, and the one line that refuses the others."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gebm import (
    GEBM,
    KALE,
    BoundedEnergy,
    ClipGradients,
    StandardNormal,
    Trainer,
    adam,
    energies_of,
    energy_quality,
    objectives,
    penalties,
    samplers,
)
from gebm.inputs import as_number
from tests.helpers.kernels import gaussian_potential, rng
from tests.helpers.trainers import changed, digits_model, images, linear_model, snapshot, trainer_of, vectors

X = next(vectors())


def one_step(batches, model: GEBM | None = None, **overrides) -> dict[str, torch.Tensor]:
    model = model or linear_model()
    trainer_of(model, **overrides).step(batches, rng(0))
    return snapshot(model)


def refuses(error: type[Exception], message: str, action) -> None:
    with pytest.raises(error, match=message) as raised:
        action()
    assert type(raised.value) is error and "\n" not in str(raised.value)


ACCEPTED = {
    "float64": X.double(),
    "(data, labels)": (X, torch.zeros(8)),
    "[data, labels]": [X, torch.zeros(8)],
    "mapping": {"label": torch.zeros(8), "image": X},
    "numpy": X.numpy(),
    "mapping with names": {"image": X.numpy(), "name": np.array(["a"] * 8)},
    "numpy, float64, in a mapping": {"x": X.double().numpy(), "y": np.zeros(8)},
    "numpy, big-endian": X.numpy().astype(">f4"),
    "numpy, big-endian, in a mapping": {"x": X.double().numpy().astype(">f8")},
    "numpy, by columns": np.asfortranarray(X.numpy()),
    "numpy, backwards": X.flip(0).numpy()[::-1],
    "numpy, mapped from a file": np.frombuffer(X.numpy().tobytes(), "f4").reshape(8, 2),
    "with a graph": X.clone().requires_grad_(True) * 1,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("batch", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_all_that_holds_the_same_data_trains_alike(batch):
    expected, result = one_step(itertools.repeat(X)), one_step(itertools.repeat(batch))
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
    if isinstance(batch, torch.Tensor):
        assert batch.grad_fn is None or batch.grad_fn.next_functions[0][0].variable.grad is None


REFUSED = {
    "integers": (X.to(torch.uint8), TypeError, "floating-point"),
    "integers in a mapping": ({"image": X.to(torch.uint8), "label": torch.zeros(8)}, TypeError, "floating-point"),
    "booleans": (X > 0, TypeError, "floating-point"),
    "channels": (torch.zeros(8, 3), ValueError, r"\(8, 3\), but the base makes \(N, 2\)"),
    "no rows": (X[:0], ValueError, r"empty, \(0, 2\)"),
    "a number": (torch.tensor(1.0), ValueError, "empty"),
    "one sample": (X[0], ValueError, r"\(2,\), but the base makes \(N, 2\)"),
    "not a number": (X.clone().index_fill_(0, torch.tensor([1]), math.nan), ValueError, "2 of the 16 numbers"),
    "infinite": (X / 0, ValueError, "not finite"),
    "nothing": (None, TypeError, "a batch is NoneType"),
    "lists": ([[1.0, 2.0]], TypeError, "a batch is a list of list"),
    "an empty list": ([], TypeError, "a batch is list"),
    "text": ("image.png", TypeError, "a batch is str"),
    "sparse": (X.to_sparse(), TypeError, "dense"),
    "mapping without data": ({"label": torch.zeros(8)}, ValueError, r"no entry of the shape .*\(label\)"),
    "mapping with two": ({"a": X, "b": X, "c": 3}, ValueError, r"several entries .*\(a, b\)"),
}


@pytest.mark.parametrize(("batch", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_batch_is_refused_in_a_line(batch, error, message):
    refuses(error, message, lambda: one_step(itertools.repeat(batch)))


def test_large_finite_numbers_are_finite():
    one_step(itertools.repeat(torch.full((8, 2), 3e38)), penalty=penalties.NoPenalty())


def test_a_loader_is_gone_through_by_an_iterator_and_its_last_batch_may_be_smaller():
    loader = DataLoader(TensorDataset(torch.cat([X, X[:3]]), torch.zeros(11)), 8, shuffle=True, generator=rng(0))
    refuses(TypeError, "iterator, not DataLoader", lambda: one_step(loader))
    refuses(TypeError, "iterator, not Tensor", lambda: one_step(X))
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for objective in ("kale_fenchel", "pcd"):
        trainer = trainer_of(linear_model(), objective=objectives.make(objective))
        assert all(trainer.step(epochs, rng(step)).num_nonfinite == 0 for step in range(2))


def test_an_iterator_that_ends_says_after_what():
    refuses(ValueError, "ended after 2 of the 3 energy steps at base step 0", lambda: one_step(iter([X, X])))

    def stops():
        for batch in iter(()):
            one_step(iter([batch]))
        one_step(iter([]))
        yield

    # In a generator of the user's, a StopIteration would end it without a word.
    refuses(ValueError, "ended after 0 of the 3", lambda: next(stops()))


def test_frozen_layers_stay_as_they_are_whether_an_optimizer_owns_them_or_not():
    results = []
    for owned in (True, False):
        model = digits_model()
        model.energy.network[0].requires_grad_(False)
        model.base[0].requires_grad_(False)
        before = snapshot(model)
        energy = [p for p in [*model.energy.parameters(), model.log_partition] if owned or p.requires_grad]
        base = [p for p in model.base.parameters() if owned or p.requires_grad]
        trainer = trainer_of(
            model, energy_optimizer=adam(energy, 1e-3, weight_decay=0.1), base_optimizer=adam(base, 1e-3), ema_decay=0.5
        )
        trainer.step(images(), rng(0))
        moved = changed(model, before)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert len(frozen) == 4 and not moved & frozen
        assert moved >= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        results.append(snapshot(model))
    assert all(torch.equal(results[1][name], tensor) for name, tensor in results[0].items())


def test_the_log_partition_is_owned_where_it_is_trained():
    model = linear_model()
    alone = adam(model.energy.parameters(), 1e-3)
    refuses(ValueError, "energy_optimizer lacks log_partition", lambda: trainer_of(model, energy_optimizer=alone))
    trainer_of(model, energy_optimizer=alone, objective=objectives.make("hinge")).step(vectors(), rng(0))


def test_an_optimizer_that_does_not_own_its_part_is_refused_in_a_line():
    model, other = linear_model(), nn.Linear(2, 2)
    both = [*model.energy.parameters(), model.log_partition, *model.base.parameters()]
    for message, optimizers in {
        "owns 2 parameters that are none of the energy": {"energy_optimizer": adam(both, 1e-3)},
        "base_optimizer lacks weight, bias: ": {"base_optimizer": adam(other.parameters(), 1e-3)},
    }.items():
        with pytest.raises(ValueError, match=message):
            trainer_of(model, **optimizers)
    lbfgs = torch.optim.LBFGS(model.base.parameters())
    refuses(TypeError, "without a closure, not LBFGS", lambda: trainer_of(model, base_optimizer=lbfgs))
    refuses(TypeError, "not str", lambda: trainer_of(model, base_optimizer="adam"))
    model.base.requires_grad_(False)
    refuses(ValueError, "the base has nothing to train", lambda: trainer_of(model))
    model.base.requires_grad_(True).bfloat16()
    refuses(ValueError, "weight is torch.bfloat16, in which small steps", lambda: trainer_of(model))
    refuses(TypeError, "pass its parameters", lambda: adam(other, 1e-3))
    refuses(TypeError, "pairs with their names", lambda: adam(other.named_parameters(), 1e-3))


class Returns(nn.Module):
    """A linear map, and what a function makes of its output."""

    def __init__(self, function, dim_in: int = 2, dim_out: int = 2):
        super().__init__()
        self.linear, self.function = nn.Linear(dim_in, dim_out), function

    def forward(self, x):
        return self.function(self.linear(x))


UNFIT = {
    "prior and base": ({"latent_dim": 3}, ValueError, r"the base takes no latents \(1, 3\)"),
    "base and energy": ({"energy": nn.Linear(3, 1)}, ValueError, r"the energy takes no samples \(1, 2\) of the base"),
    "two energies": ({"energy": nn.Linear(2, 2)}, ValueError, r"the energy network returned \(\d, 2\) for \d samples"),
    "a mean energy": ({"energy": Returns(torch.mean)}, ValueError, r"the energy network returned \(\) for \d samples"),
    "energy of no tensor": ({"energy": Returns(tuple)}, TypeError, "the energy network returned tuple"),
    "base of no tensor": ({"base": Returns(tuple)}, TypeError, "the base returned tuple"),
    "base of one number": ({"base": Returns(torch.mean)}, ValueError, r"the base returned \(\)"),
}


@pytest.mark.parametrize(("parts", "error", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_networks_that_do_not_fit_are_refused_by_trainer_and_sampling(parts, error, message):
    model = linear_model(**parts)
    refuses(error, message, lambda: trainer_of(model))
    refuses(error, message, lambda: model.sample(3, samplers.MALA(0.1), 1))


@pytest.mark.parametrize("energy", [nn.Linear(2, 1), Returns(lambda y: y.squeeze(1), 2, 1)], ids=["(N, 1)", "(N,)"])
def test_energies_may_have_a_dimension_of_one(energy):
    assert one_step(vectors(), linear_model(energy=energy)).keys()


def test_a_networks_own_error_on_some_samples_is_passed_on():
    def fails(y):
        if len(y) > 1:
            raise RuntimeError("an error of its own")
        return y

    with pytest.raises(RuntimeError, match="an error of its own"):
        linear_model(Returns(fails)).sample_base(3)


KERNEL = samplers.MALA(0.1)
ARGUMENTS = {
    "n, a fraction": (lambda m: m.sample(3.0, KERNEL, 2), TypeError, "n must be an integer, not 3.0"),
    "n, text": (lambda m: m.sample_base("3"), TypeError, "n must be an integer, not '3'"),
    "n, a truth": (lambda m: m.sample_base(True), TypeError, "n must be an integer"),
    "n, none": (lambda m: m.sample_base(0), ValueError, "n must be at least 1, not 0"),
    "batch_size": (lambda m: m.sample_base(3, batch_size=0), ValueError, "batch_size must be at least 1"),
    "beta": (lambda m: m.sample(3, KERNEL, 2, beta="1"), TypeError, "beta must be a number"),
    "beta, infinite": (lambda m: m.sample(3, KERNEL, 2, beta=math.inf), ValueError, "beta must be .* finite"),
    "generator": (lambda m: m.sample(3, KERNEL, 2, generator=0), TypeError, "must be a torch.Generator, not 0"),
    "generator of a step": (lambda m: trainer_of(m).step(vectors(), 0), TypeError, "must be a torch.Generator, not 0"),
    "kernel's name": (lambda m: m.sample(3, "ula", 2), TypeError, "kernel must have init, step, which 'ula' lacks"),
    "kernel's class": (lambda m: m.sample(3, samplers.MALA, 2), TypeError, "kernel is the class MALA"),
    "swapped": (lambda m: samplers.run(m.potential, KERNEL, X, 2), TypeError, "kernel must have init, step"),
    "starts": (lambda m: samplers.run(KERNEL, m.potential, [[0.0, 0.0]], 2), TypeError, "start from a tensor"),
    "state": (lambda m: samplers.run(KERNEL, m.potential, None, 2, state=X), TypeError, "not from Tensor"),
    "base": (lambda m: GEBM(lambda z: z, m.energy, m.prior), TypeError, "base must be a torch.nn.Module"),
    "energy": (lambda m: GEBM(m.base, nn.Linear, m.prior), TypeError, "not the class Linear: call it"),
    "prior": (lambda m: GEBM(m.base, m.energy, 2), TypeError, "prior must have dim, .* which 2 lacks"),
    "floor": (lambda m: GEBM(m.base, nn.Linear(2, 1), m.prior, math.nan), ValueError, "floor is nan"),
    "objective": (lambda m: trainer_of(m, objective="kale"), TypeError, "objective must have"),
    "objective's class": (lambda m: trainer_of(m, objective=KALE), TypeError, "objective is the class KALE"),
    "penalty": (lambda m: trainer_of(m, penalty=0.1), TypeError, "penalty must have draw"),
    "alternation": (lambda m: trainer_of(m, alternation=5), TypeError, "alternation must have"),
    "schedule": (lambda m: trainer_of(m, schedule="cosine"), TypeError, "schedule must have"),
    "negatives": (lambda m: trainer_of(m, negatives="pcd"), TypeError, "negatives must have"),
    "ema_decay": (lambda m: trainer_of(m, ema_decay="0.9"), TypeError, "ema_decay must be a number, not '0.9'"),
    "latent_batch_size": (lambda m: trainer_of(m, latent_batch_size=2.5), TypeError, "must be an integer, not 2.5"),
    "model": (lambda m: trainer_of(m, objective=KALE()) and Trainer(m.base, objective=KALE()), TypeError, "gebm must"),
    "steps": (lambda m: trainer_of(m).train_energy(vectors(), rng(0), -1), ValueError, "at least 0, not -1"),
    "rate": (lambda m: trainer_of(m).train_energy(vectors(), rng(0), 1, learning_rate=-1.0), ValueError, "positive"),
    "energies": (lambda m: energies_of(m, X.to(torch.uint8)), TypeError, "floating-point tensor"),
    "quality": (lambda m: energy_quality(m, X, X[:1]), ValueError, "at least 2"),
}


@pytest.mark.parametrize(("action", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_of_another_kind_are_refused_in_a_line(action, error, message):
    refuses(error, message, lambda: action(linear_model()))


def test_a_state_of_another_kernel_is_refused_in_a_line():
    state = samplers.run(samplers.RandomWalkMetropolis(0.1), gaussian_potential, torch.zeros(2, 3), 1).state
    refuses(
        TypeError,
        "a HMC cannot continue from a MetropolisState",
        lambda: samplers.run(samplers.HMC(0.1), gaussian_potential, None, 2, state=state),
    )


def test_the_state_of_another_network_is_refused_in_a_line():
    small = trainer_of(linear_model(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))))
    small.step(vectors(), rng(0))
    large = trainer_of(linear_model(nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 2))))
    refuses(ValueError, "is of another network", lambda: large.load_state_dict(small.state_dict()))
    deep = trainer_of(linear_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))
    deep.step(vectors(), rng(0))
    refuses(ValueError, "does not have", lambda: trainer_of(linear_model()).load_state_dict(deep.state_dict()))
    refuses(ValueError, "the state lacks tensors, values: give what", lambda: large.load_state_dict({}))


def numbers_of(kind) -> list[object]:
    """Settings that are numbers, each given as ``kind`` makes it."""
    half = kind(0.5)
    kernels = [samplers.make(name, step_size=half, friction=half, prior=StandardNormal(2)) for name in samplers.NAMES]
    weights = [penalties.make(name, half) for name in penalties.NAMES]
    floor = BoundedEnergy(nn.Identity(), half).floor
    return [*kernels, *weights, floor, ClipGradients(half), samplers.StepDecay(half)]


def parameter(number: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(number))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array, torch.tensor, parameter])
def test_a_number_may_be_of_any_library_and_is_kept_as_pythons(kind):
    assert repr(numbers_of(kind)) == repr(numbers_of(float))
    model = linear_model()
    z = torch.ones(3, model.prior.dim)
    assert torch.equal(model.potential(z, beta=kind(0.5)), model.potential(z, beta=0.5))
    assert trainer_of(model, ema_decay=kind(0.5)).ema_decay == 0.5


@pytest.mark.parametrize("value", ["0.5", True, None, 0.5j, [0.5], torch.ones(1), torch.ones((), device="meta")])
def test_what_is_no_number_is_refused_in_a_line(value):
    refuses(TypeError, "must be a number, not", lambda: as_number("weight", value))
    refuses(ValueError, "must be a positive, finite number, not", lambda: samplers.MALA(value))
