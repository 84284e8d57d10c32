"""Networks in the wrapper of data parallelism, and a run that is saved by safetensors and JSON."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from gebm import GEBM, samplers
from tests.helpers.kernels import rng
from tests.helpers.trainers import digits_model, images, snapshot, trainer_of


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def trained(wrap=lambda network: network, **settings) -> list[torch.Tensor]:
    model = digits_model()
    model.energy.network[0].requires_grad_(False)
    wrapped = GEBM(wrap(model.base), wrap(model.energy.network), model.prior)
    trainer = trainer_of(wrapped, **settings)
    for step in range(2):
        trainer.step(images(step), rng(step))
    samples = trainer.sampling_model().sample(2, samplers.MALA(0.1), 2, generator=rng(5))
    return [*wrapped.state_dict().values(), samples]


@pytest.mark.usefixtures("one_process")
def test_data_parallelism_of_one_process_changes_nothing():
    plain = trained()
    for settings in ({"parallel": DistributedDataParallel}, {"wrap": DistributedDataParallel}):
        for one, other in zip(plain, trained(**settings), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_saved_without_pickling_resumes_bit_for_bit():
    first, second = trainer_of(digits_model()), trainer_of(digits_model(1))
    first.step(images(), rng(0))
    state = first.state_dict()
    model = safetensors.torch.save(first.gebm.state_dict())
    tensors = safetensors.torch.save({name: tensor.contiguous() for name, tensor in state["tensors"].items()})
    values = json.dumps(state["values"])
    second.gebm.load_state_dict(safetensors.torch.load(model))
    second.load_state_dict({"tensors": safetensors.torch.load(tensors), "values": json.loads(values)})
    copied = copy.deepcopy(first.gebm)
    for trainer in (first, second):
        trainer.step(images(3), rng(1))
    assert all(torch.equal(second.gebm.state_dict()[name], t) for name, t in snapshot(first.gebm).items())
    assert any(not torch.equal(copied.state_dict()[name], t) for name, t in snapshot(first.gebm).items())
