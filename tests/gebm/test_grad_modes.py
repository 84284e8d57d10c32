"""Sampling, energies and partition functions under ``no_grad``, ``inference_mode`` and in grad mode."""

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from gebm import (
    GEBM,
    StandardNormal,
    energies_of,
    folded,
    frozen,
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
    "dcgan_conditional": {"resolution": 8, "channels": 1, "latent_dim": 4, "width": 2, "num_classes": 2},
    "sngan_resnet_conditional": {"resolution": 32, "channels": 1, "latent_dim": 4, "width": 2, "num_classes": 2},
    "sngan_convnet_arbel": {"resolution": 32, "channels": 1, "latent_dim": 4, "width": 1},
    "sngan_resnet_arbel": {"resolution": 32, "channels": 1, "latent_dim": 4, "width": 2},
    "imported": {"resolution": 32, "channels": 3, "latent_dim": 4, "base_width": 4, "energy_width": 4},
    "imported_conditional": {
        "resolution": 32,
        "channels": 3,
        "latent_dim": 4,
        "base_width": 1,
        "energy_width": 1,
        "num_classes": 2,
    },
}


def model_of(name: str) -> GEBM:
    torch.manual_seed(0)
    size = SIZES.get(name, {"resolution": 0, "channels": 2, "latent_dim": 2, "width": 8})
    base, energy = networks.make(name, **size)
    frequencies = [1] * size["num_classes"] if networks.is_conditional(name) else None
    return GEBM(base, energy, StandardNormal(size["latent_dim"]), class_frequencies=frequencies)


def everything(model: GEBM) -> dict[str, torch.Tensor]:
    """What a model gives from fixed seeds."""
    kernel, base, zeros = samplers.MALA(0.1), model.sample_base(3, rng(1)), 0 * model.sample_latents(2, rng(1))
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


def test_threads_share_a_model_in_training_mode_and_leave_it_so():
    model = digits_model().train()

    def sample(seed: int) -> torch.Tensor:
        return model.sample(3, samplers.MALA(0.1), 5, generator=rng(seed))

    expected = [sample(seed) for seed in range(8)]
    before = snapshot(model)
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(sample, range(8)), expected))
    assert not changed(model, before)
    assert all(layer.training for layer in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_blocks_that_overlap_hold_a_network_until_the_last_one_ends():
    whole = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for first, second in itertools.permutations([whole, whole[1], whole[0]], 2):
        outer, inner = frozen(first), frozen(second)
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert not any(layer.training for layer in second.modules())
        assert not any(parameter.requires_grad for parameter in second.parameters())
        inner.__exit__(None, None, None)
        assert all(layer.training for layer in whole.modules())
        assert all(parameter.requires_grad for parameter in whole.parameters())


def test_a_transform_of_torch_func_goes_inside_a_frozen_block():
    model, z = model_of("mlp"), torch.ones(3, 2)

    def gradients() -> torch.Tensor:
        return torch.func.vmap(torch.func.grad(lambda row: model.potential(row[None])[0]))(z)

    with pytest.raises(RuntimeError, match=r"put `with gebm\.frozen"):
        gradients()
    assert all(layer.training for layer in model.modules())
    with frozen(model.base, model.energy):
        expected = gradients()
    z.requires_grad_(True)
    torch.testing.assert_close(torch.autograd.grad(model.potential(z).sum(), z)[0], expected)
