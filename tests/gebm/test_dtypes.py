"""Types: a model is sampled and trained in the type of its weights, with chains in float32 or wider."""

from __future__ import annotations

import pytest
import torch

from gebm import (
    GEBM,
    NoPenalty,
    StandardNormal,
    frozen,
    log_partition_annealed,
    log_partition_monte_carlo,
    networks,
    samplers,
)
from gebm.training.energy_phase import energies_of
from tests.helpers.kernels import KERNELS, gaussian_potential, normal, rng
from tests.helpers.trainers import changed, digits_model, flow_model, images, snapshot, trainer_of, vectors

HALVES = [torch.bfloat16, torch.float16]


def mlp_model() -> GEBM:
    torch.manual_seed(0)
    base, energy = networks.make("mlp", resolution=0, channels=2, latent_dim=2, width=8)
    return GEBM(base, energy, StandardNormal(2))


MODELS = {"mlp": mlp_model, "dcgan": digits_model, "realnvp": flow_model}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_in_float64_sampling_gives_float32s_samples_up_to_its_rounding(make):
    model, kernel = make(), samplers.MALA(0.1)
    single = model.sample(4, kernel, 3, generator=rng(0))
    with frozen(model.base, model.energy):
        energies = model.energy(single)
    partition = log_partition_monte_carlo(model, 8, rng(1))[0]
    model.double()
    double = model.sample(4, kernel, 3, generator=rng(0))
    assert double.dtype == torch.float64 and model.prior.sample(2).dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)
    with frozen(model.base, model.energy):
        torch.testing.assert_close(model.energy(single).float(), energies, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(log_partition_monte_carlo(model, 8, rng(1))[0], partition, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_in_float64_training_takes_float32s_steps_up_to_its_rounding(make, ema_decay):
    results, start = [], snapshot(make())
    for dtype in (torch.float32, torch.float64):
        model = make().to(dtype)
        batches = images() if make is digits_model else vectors()
        # Adam's first steps are the gradients' signs, which rounding may turn where one is near zero.
        sgd = {
            "energy_optimizer": torch.optim.SGD([*model.energy.parameters(), model.log_partition], lr=1e-2),
            "base_optimizer": torch.optim.SGD(model.base.parameters(), lr=1e-2),
        }
        trainer_of(model, ema_decay=ema_decay, **sgd).step(batches, rng(0))
        assert changed(model.float(), start)
        results.append(snapshot(model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@KERNELS
def test_a_chain_is_computed_in_the_type_it_starts_in_and_no_narrower_than_float32(kernel):
    z0 = normal(5)
    single, double, half = (
        samplers.run(kernel, gaussian_potential_in(dtype), z0.to(dtype), 3, generator=rng(1))
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    )
    for chain, dtype in ((single, torch.float32), (double, torch.float64), (half, torch.float32)):
        assert {entry.dtype for entry in chain.state if entry.is_floating_point()} == {dtype}
    torch.testing.assert_close(double.z.float(), single.z, rtol=1e-4, atol=1e-4)


def gaussian_potential_in(dtype):
    wide = samplers.wide(dtype)
    return lambda z: gaussian_potential(z.to(torch.float32)).to(wide)


def test_noise_of_float64_is_that_of_float32_with_more_digits():
    key, chain = torch.tensor(7), torch.arange(50)
    single, double = (samplers.philox.normal(key, chain, 3, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert torch.equal(double.float(), single) and not torch.equal(double, single.double())


def test_a_chain_in_float64_is_moved_by_noise_with_its_digits():
    # With this step and no gradient a step is the noise itself.
    kernel = samplers.UnadjustedLangevin(0.5)
    z = samplers.run(kernel, lambda z: 0 * z.sum(1), torch.zeros(9, 3).double(), 1, generator=rng(0)).z
    assert (z != z.float().double()).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("make", [mlp_model, digits_model])
def test_half_precision_weights_are_sampled_with_chains_in_float32(make, dtype):
    model, kernel = make().to(dtype), samplers.UnadjustedLangevin(1e-4)
    seen = []
    x = model.sample(3, kernel, 2, generator=rng(0))
    samplers.run(
        kernel,
        model.potential,
        model.prior.sample(3, rng(0)),
        2,
        generator=rng(1),
        every=1,
        callback=lambda step, state: seen.append(state.z),
    )
    assert x.isfinite().all() and model.sample_base(2).isfinite().all() and x.shape[1:] == model.sample_shape()
    # Steps of the size of 0.01 around one would not all be seen in eight bits.
    assert all(z.dtype == torch.float32 for z in seen) and (seen[0] != seen[0].to(dtype)).any()
    with pytest.raises(ValueError, match="keep weights in float32 and pass precision"):
        trainer_of(model)


def test_a_frozen_base_in_half_precision_has_its_energy_trained():
    model = mlp_model()
    model.base.bfloat16().requires_grad_(False)
    before = snapshot(model)
    info = trainer_of(model, base_optimizer=None, train_base=False).step(vectors(), rng(0))
    assert info.energy_loss.isfinite() and not any(name.startswith("base") for name in changed(model, before))


@pytest.mark.parametrize("name", networks.flows.FLOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
def test_densities_are_of_data_of_any_type(name, dtype, given):
    model, x = flow_model(name=name).to(dtype), torch.tensor([[0.5, -1.25], [2.0, 0.0]])
    for function in (model.log_prob, model.data_potential, model.base.log_prob, model.base, model.energy):
        with frozen(model.base, model.energy):
            values = function(x.to(given))
            assert torch.equal(values, function(x.to(dtype))) and values.dtype == dtype


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_log_partitions_and_held_out_energies_are_in_float32_in_an_autocast_region(make):
    model = make()

    def measured() -> list[torch.Tensor]:
        x = model.sample_base(8, rng(0)).float()
        annealed = log_partition_annealed(model, 8, samplers.MALA(0.1), [0.5, 1.0], generator=rng(1))
        return [*log_partition_monte_carlo(model, 8, rng(1)), *annealed, energies_of(model, torch.ones_like(x))]

    expected = measured()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for value, other in zip(measured(), expected, strict=True):
            assert torch.equal(value, other)


def test_flows_in_half_precision_are_refused_in_a_line():
    with pytest.raises(ValueError, match=r"computed in float32 or float64, .* call .float\(\)"):
        flow_model().bfloat16().sample_base(2)


@pytest.mark.parametrize("penalty", [{}, {"penalty": NoPenalty()}], ids=["penalty", "none"])
def test_vectors_are_trained_in_an_autocast_region(penalty):
    info = trainer_of(mlp_model(), precision=torch.bfloat16, **penalty).step(vectors(), rng(0))
    assert info.num_nonfinite == 0
