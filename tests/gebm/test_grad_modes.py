"""Sampling, energies and partition functions under ``no_grad``, ``inference_mode`` and in grad mode."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from gebm import (
    GEBM,
    StandardNormal,
    energies_of,
    folded,
    log_partition_annealed,
    log_partition_monte_carlo,
    networks,
    samplers,
)
from tests.helpers.kernels import rng
from tests.helpers.trainers import changed, digits_model, images, snapshot, trainer_of

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
SIZES = {
    "dcgan": {"resolution": 8, "channels": 1, "latent_dim": 4, "width": 2},
    "sngan_convnet": {"resolution": 32, "channels": 1, "latent_dim": 4, "width": 1},
    "sngan_resnet": {"resolution": 32, "channels": 1, "latent_dim": 4, "width": 2},
}


def model_of(name: str) -> GEBM:
    torch.manual_seed(0)
    size = SIZES.get(name, {"resolution": 0, "channels": 2, "latent_dim": 2, "width": 8})
    base, energy = networks.make(name, **size)
    return GEBM(base, energy, StandardNormal(size["latent_dim"]))


def everything(model: GEBM) -> dict[str, torch.Tensor]:
    """What a model gives from fixed seeds."""
    kernel, base, zeros = samplers.MALA(0.1), model.sample_base(3, rng(1)), torch.zeros(2, model.prior.dim)
    return {
        "base": base,
        "energies": energies_of(model, base),
        "potential": model.potential(zeros),
        "sample": model.sample(2, kernel, 2, generator=rng(2)),
        "folded": folded(model).sample(2, kernel, 1, generator=rng(6)),
        "monte carlo": log_partition_monte_carlo(model, 4, rng(3))[0],
        "annealed": log_partition_annealed(model, 2, kernel, [0.5, 1.0], generator=rng(4)).log_partition,
    }


def chains(model: GEBM) -> dict[str, torch.Tensor]:
    """Samples of a model by every kernel from fixed seeds."""
    settings = {"step_size": 0.1, "friction": 1.0, "num_leapfrog_steps": 2, "prior": model.prior, "lipschitz": 1.0}
    kernels = {name: samplers.make(name, **settings) for name in samplers.NAMES}
    return {name: model.sample(2, kernel, 2, generator=rng(2)) for name, kernel in kernels.items()}


def same_in_every_mode(model: GEBM, compute) -> None:
    expected, before = compute(model), snapshot(model)
    for mode in MODES.values():
        with mode():
            results = compute(model)
        for key, value in expected.items():
            assert torch.equal(results[key], value), key
    assert not changed(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_grad_mode_gives_the_same_numbers(name):
    same_in_every_mode(model_of(name), everything)


def test_every_kernel_samples_a_normalized_network_in_every_grad_mode():
    same_in_every_mode(model_of("mlp"), chains)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_training_continues_after_sampling_in_any_mode_and_takes_steps_and_data_in_it(mode):
    def two_steps(sampled: bool, within: bool) -> dict[str, torch.Tensor]:
        model = digits_model()
        trainer, batches = trainer_of(model, ema_decay=0.5), images()
        trainer.step(batches, rng(0))
        if sampled:
            with mode():
                trainer.sampling_model().sample(2, samplers.MALA(0.1), 2, generator=rng(1))
                copied = copy.deepcopy(list(itertools.islice(batches, 3)))
                batches = iter(copied)
        if within:
            with mode():
                trainer.step(batches, rng(2))
        else:
            trainer.step(batches, rng(2))
        return snapshot(model)

    expected = two_steps(sampled=False, within=False)
    for sampled, within in ((True, False), (True, True)):
        result = two_steps(sampled, within)
        assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())


def test_a_model_that_was_built_in_inference_mode_is_refused_in_a_line():
    with torch.inference_mode():
        model = digits_model()
    with pytest.raises(ValueError, match=r"built or copied under torch.inference_mode.*: do that outside"):
        model.sample(2, samplers.MALA(0.1), 1)
    with pytest.raises(ValueError, match=r"built or copied under torch.inference_mode.*: do that outside"):
        trainer_of(model)
