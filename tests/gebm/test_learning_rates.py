"""Learning rates: torch's schedulers next to a trainer are honored, or refused where there are two schedules."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim import lr_scheduler

from gebm import Schedule, adam
from tests.helpers.kernels import rng
from tests.helpers.trainers import linear_model, snapshot, trainer_of, vectors

SCHEDULERS = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.5),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "linear warm-up": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8, cycle_momentum=False),
}


def trainer_and_optimizer(lr=1e-3, **overrides):
    model = linear_model()
    optimizer = adam([*model.energy.parameters(), model.log_partition], lr)
    return trainer_of(model, energy_optimizer=optimizer, **overrides), optimizer


def rates_taken(trainer, optimizer, scheduler, steps: int, batches) -> list[float]:
    """The rates of the energy's steps, as its optimizer takes them."""
    rates = []
    optimizer.register_step_pre_hook(lambda taken, args, kwargs: rates.append(float(taken.param_groups[0]["lr"])))
    for _ in range(steps):
        trainer.step(batches, rng(0))
        scheduler.step()
    return list(dict.fromkeys(rates))


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("before", [True, False], ids=["before the trainer", "after"])
def test_a_scheduler_of_torchs_moves_the_rates_as_it_would_alone(make, before):
    weight = torch.nn.Parameter(torch.zeros(1))
    alone = torch.optim.SGD([weight], lr=1e-3)
    scheduler, expected = make(alone), []
    for _ in range(4):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        scheduler.step()
    model = linear_model()
    optimizer = adam([*model.energy.parameters(), model.log_partition], 1e-3)
    scheduler = make(optimizer) if before else None
    trainer = trainer_of(model, energy_optimizer=optimizer)
    scheduler = scheduler or make(optimizer)
    assert rates_taken(trainer, optimizer, scheduler, 4, vectors()) == expected


def test_a_run_with_a_scheduler_resumes_bit_for_bit():
    def new():
        trainer, optimizer = trainer_and_optimizer()
        return trainer, lr_scheduler.ExponentialLR(optimizer, 0.5)

    def steps(trainer, scheduler, first, last):
        for step in range(first, last):
            trainer.step(vectors(step), rng(step))
            scheduler.step()

    whole, scheduler = new()
    steps(whole, scheduler, 0, 4)
    first, scheduler = new()
    steps(first, scheduler, 0, 2)
    second, resumed = new()
    second.gebm.load_state_dict(snapshot(first.gebm))
    state = first.state_dict()
    second.load_state_dict({"tensors": state["tensors"], "values": json.loads(json.dumps(state["values"]))})
    resumed.load_state_dict(scheduler.state_dict())
    steps(second, resumed, 2, 4)
    for name, tensor in whole.gebm.state_dict().items():
        assert torch.equal(second.gebm.state_dict()[name], tensor)


def test_a_rate_set_by_hand_stays_and_is_scaled_from_there():
    trainer, optimizer = trainer_and_optimizer()
    optimizer.param_groups[0]["lr"] = 4e-3
    trainer.train_energy(vectors(), rng(0), 1)
    assert [group["lr"] for group in optimizer.param_groups] == [4e-3, 1e-3]
    trainer.scale_learning_rates(0.5, 0.5)
    trainer.step(vectors(), rng(0))
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 5e-4]


def test_a_rate_that_is_a_tensor_stays_one_and_is_scheduled():
    rate = torch.tensor(1e-3)
    trainer, optimizer = trainer_and_optimizer(lr=rate, schedule=Schedule("linear", 2))
    trainer.step(vectors(), rng(0))
    trainer.step(vectors(), rng(0))
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(5e-4)
    json.dumps(trainer.state_dict()["values"])


def test_two_schedules_of_one_rate_are_refused_in_a_line():
    trainer, optimizer = trainer_and_optimizer(schedule=Schedule("cosine", 10))
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    trainer.step(vectors(), rng(0))
    scheduler.step()
    with pytest.raises(ValueError, match=r"energy_optimizer was changed from outside, from 0.001 to .*cosine") as error:
        trainer.step(vectors(), rng(0))
    assert "\n" not in str(error.value)
