"""A resumed run is the run itself, whatever it trains, and what cannot resume is refused."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from gebm import GradientPenalty, Schedule, objectives
from gebm.objectives.penalties import Lazy
from tests.helpers.trainers import changed, digits_model, flow_model, images, trainer_of, vectors


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
