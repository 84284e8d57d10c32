"""Law of a GPU, on a pretended one: nothing waits for the device, nothing mixes devices, and numbers are the CPU's."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gebm import (
    GEBM,
    R1,
    Alternation,
    LatentChain,
    Lazy,
    Trainer,
    adam,
    energies_of,
    folded,
    log_partition_annealed,
    log_partition_monte_carlo,
    networks,
    objectives,
    penalties,
    samplers,
)
from gebm.classes import ChainPotential, label_images, num_planes
from gebm.precision import arithmetic
from gebm.samplers import philox
from gebm.samplers.replayed import BLOCK, ReplayedSteps
from tests.helpers.kernels import Normal, every_kernel
from tests.helpers.pretended_gpu import DeviceGenerator, Record, device, on_cpu, pretended_gpu
from tests.helpers.trainers import family_model

OBJECTIVES = [name for name in objectives.NAMES if not objectives.needs_density(objectives.make(name))]
PERSISTENT = LatentChain(samplers.MALA(0.1), num_steps=2, persistent=True, restart=0.5)
KERNELS = pytest.mark.parametrize("name", every_kernel())


@pytest.fixture
def gpu() -> Iterator[Record]:
    with pretended_gpu() as record:
        yield record


def data_of(model: GEBM, size: int = 4) -> Tensor:
    """Return data of the model's shape, with their classes where it has some, on the CPU."""
    planes = num_planes(model.num_classes, model.sample_shape()[1:]) if model.num_classes else 0
    channels, *grid = model.sample_shape()
    data = torch.rand(size, channels - planes, *grid, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return label_images(data, torch.arange(size) % model.num_classes, model.num_classes) if planes else data


def trainer_of(model: GEBM, objective: str = "kale_fenchel", **settings) -> Trainer:
    return Trainer(
        model,
        objective=objectives.make(objective, num_steps=2),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-3),
        base_optimizer=adam(model.base.parameters(), 1e-3),
        alternation=Alternation(2, warmup_energy_steps=2),
        **settings,
    )


def batches_of(model: GEBM) -> Iterator[Tensor]:
    return itertools.repeat(data_of(model).to(model.log_partition.device, non_blocking=True))


def trained(model: GEBM, steps: int = 1, begin: Callable[[], None] = lambda: None, **settings) -> dict[str, Tensor]:
    """Take a few alternations, and return all that they change."""
    trainer, batches = trainer_of(model, **settings), batches_of(model)
    begin()
    for step in range(steps):
        trainer.step(batches, torch.Generator().manual_seed(step))
    return {**model.state_dict(), **trainer.state_dict()["tensors"]}


def on_device(model: GEBM, record: Record) -> GEBM:
    moved = model.to(memory_format=torch.channels_last).to(device())
    record.clear()
    return moved


def assert_trains_as_on_the_cpu(gpu: Record, **settings) -> None:
    """Compare in float64: sums in another order differ in their last bit, and Adam sees the sign of what is zero."""
    expected = trained(family_model().double().to(memory_format=torch.channels_last), **settings)
    changed = trained(on_device(family_model().double(), gpu), **settings)
    assert gpu.waits == []
    torch.testing.assert_close(on_cpu(changed), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_alternation_of_any_objective_waits_for_nothing(gpu, objective):
    assert_trains_as_on_the_cpu(gpu, objective=objective)


@pytest.mark.parametrize("penalty", [*penalties.NAMES, "lazy"])
def test_an_alternation_of_any_penalty_waits_for_nothing(gpu, penalty):
    assert_trains_as_on_the_cpu(gpu, penalty=Lazy(R1(), 2) if penalty == "lazy" else penalties.make(penalty))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", networks.NAMES)
def test_an_alternation_of_any_network_waits_for_nothing(gpu, network, precision):
    changed = trained(on_device(family_model(network), gpu), precision=precision)
    assert gpu.waits == []
    assert all(tensor.isfinite().all() for tensor in on_cpu(changed).values())


@pytest.mark.parametrize("network", networks.NAMES)
def test_a_chain_on_a_folded_model_of_any_network_waits_for_nothing(gpu, network):
    model = on_device(family_model(network), gpu)
    fused = folded(model.with_base(model.base))
    potential = ChainPotential(fused, fused.sample_latents(3, torch.Generator().manual_seed(0)))
    samplers.run(samplers.UnadjustedLangevin(0.1), potential, potential.z, 2, prior=fused.prior)
    assert gpu.waits == []


@pytest.mark.parametrize("setting", [{"ema_decay": 0.9}, {"latent_batch_size": 3}], ids=str)
def test_an_alternation_of_any_setting_waits_for_nothing(gpu, setting):
    assert_trains_as_on_the_cpu(gpu, **setting)


def test_persistent_chains_that_start_anew_wait_for_nothing(gpu):
    negatives = LatentChain(samplers.MALA(0.1, inverse_mass=(1.0, 2.0, 0.5)), num_steps=2, persistent=True, restart=0.5)
    assert_trains_as_on_the_cpu(gpu, objective="pcd", negatives=negatives)


def arithmetics(gpu: Record) -> set[str]:
    return {product.arithmetic for product in gpu.products if product.dtype == torch.float32}


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")])
def test_training_computes_in_the_precision_it_was_given_backward_passes_included(gpu, precision, expected):
    trained(on_device(family_model(), gpu), begin=gpu.clear, precision=precision)
    assert {"convolution", "convolution_backward", "mm"} <= {product.name for product in gpu.products}
    assert arithmetics(gpu) == {expected}
    assert settings_of_torch() == UNTOUCHED


def test_what_needs_float32_has_it_even_where_tf32_was_chosen(gpu):
    model = on_device(family_model(), gpu)
    generator = torch.Generator().manual_seed(0)
    mala, z0, x = samplers.MALA(0.1), model.prior.sample(3, generator), model.sample_base(2, generator)
    gpu.clear()
    with arithmetic("float32"), arithmetic("tf32"):
        model.potential(z0)
    assert arithmetics(gpu) == {"ieee"}
    for compute in (
        lambda: samplers.run(mala, model.potential, z0, 1, generator=generator),
        lambda: samplers.run(
            samplers.ParallelTempering(mala, model.prior), model.potential, z0, 1, generator=generator
        ),
        lambda: log_partition_monte_carlo(model, 4, generator),
        lambda: log_partition_annealed(model, 2, mala, [0.5, 1.0], generator=generator),
        lambda: energies_of(model, x),
    ):
        gpu.clear()
        compute()
        with arithmetic("tf32"):
            compute()
        assert arithmetics(gpu) == {"ieee"}
    assert settings_of_torch() == UNTOUCHED


def test_a_chain_without_an_accept_step_computes_in_tf32_only_where_that_was_chosen(gpu):
    model, kernel = on_device(family_model(), gpu), samplers.UnadjustedLangevin(0.1)
    z0 = model.prior.sample(3, torch.Generator().manual_seed(0))
    for chosen, expected in ((None, "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")):
        gpu.clear()
        with arithmetic(chosen) if chosen else contextlib.nullcontext():
            samplers.run(kernel, model.potential, z0, 1)
        assert arithmetics(gpu) == {expected}


def test_threads_share_the_strictest_precision_and_leave_the_settings_as_they_were():
    entered, leave = threading.Event(), threading.Event()

    def strict() -> None:
        with arithmetic("float32"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=strict)
    with arithmetic("tf32"):
        assert set(settings_of_torch()) == {"tf32"}
        thread.start()
        entered.wait(10)
        assert set(settings_of_torch()) == {"ieee"}
    assert set(settings_of_torch()) == {"ieee"}
    leave.set()
    thread.join()
    assert settings_of_torch() == UNTOUCHED


def settings_of_torch() -> tuple[str, ...]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision


UNTOUCHED = settings_of_torch()


def potential_on(place: torch.device) -> Callable[[Tensor], Tensor]:
    scale = torch.tensor([1.0, 2.0, 0.5]).to(place)
    return lambda z: (z * scale).square().sum(1) / 2 + z.square().sum(1).log1p()


@pytest.mark.parametrize("restarts", [False, True], ids=["", "with a prior"])
@KERNELS
def test_a_step_of_any_kernel_waits_for_nothing(gpu, name, restarts):
    prior = Normal() if restarts else None
    ends = []
    for place in (torch.device("cpu"), device()):
        kernel, potential = every_kernel()[name], potential_on(place)
        state = kernel.init(torch.ones(5, 3).to(place), potential)
        gpu.clear()
        generator = torch.Generator().manual_seed(0)
        ends.append(samplers.run(kernel, potential, None, 4, generator=generator, prior=prior, state=state))
    assert gpu.waits == []
    torch.testing.assert_close(on_cpu(tuple(ends[1])), tuple(ends[0]), rtol=0, atol=0, equal_nan=True)


@KERNELS
def test_a_restart_costs_a_draw_of_the_prior_and_little_more(gpu, name):
    """Taken in each step, as the host does not look whether a chain was lost."""
    counts = []
    for prior in (None, Normal()):
        kernel, potential = every_kernel()[name], potential_on(device())
        state = kernel.init(torch.ones(5, 3).to(device()), potential)
        gpu.clear()
        samplers.run(kernel, potential, None, 4, generator=torch.Generator().manual_seed(0), prior=prior, state=state)
        counts.append(gpu.operators.total() / 4)
    gpu.clear()
    philox.normal(torch.zeros((), dtype=torch.int64).to(device()), torch.arange(5).to(device()), 3)
    draw = gpu.operators.total()
    # What is finite and what is replaced, of each entry of the state; tempering and IMH weigh the draw by the prior.
    extra = 120 if "tempering" in name else 40
    assert counts[1] - counts[0] <= draw + extra


def test_a_replayed_block_of_steps_waits_for_nothing(gpu):
    kernel, potential, prior = samplers.MALA(0.2, inverse_mass=(1.0, 0.5, 2.0)), potential_on(device()), Normal()
    state, steps = kernel.init(torch.ones(5, 3).to(device()), potential), ReplayedSteps("true")
    for num_steps in (2 * BLOCK, BLOCK):
        gpu.clear()
        generator = torch.Generator().manual_seed(0)
        state = samplers.run(
            kernel, potential, None, num_steps, generator=generator, prior=prior, state=state, steps=steps
        ).state
    assert steps.replays.replayed == 1, steps.replays.lines
    assert gpu.waits == []


@pytest.mark.parametrize(
    "settings", [{"ema_decay": 0.9}, {"objective": "pcd", "negatives": PERSISTENT}], ids=["average", "chains"]
)
def test_a_replayed_alternation_waits_for_nothing(gpu, settings):
    model = on_device(family_model(), gpu)
    trainer, batches = trainer_of(model, cuda_graphs="true", **settings), batches_of(model)
    for _ in range(4):
        gpu.clear()
        before = trainer.replayed.replays.replayed
        trainer.step(batches, torch.Generator().manual_seed(0))
    # The folding of the base, two energy steps and the base step.
    assert trainer.replayed.replays.replayed - before == 4, trainer.replayed.replays.lines
    assert gpu.waits == []


def test_a_chain_that_diverges_restarts_without_a_wait_as_on_the_cpu(gpu):
    def cliff(z: Tensor) -> Tensor:
        return z.square().sum(1) / 2 + torch.where(z[:, 0] > 0.5, torch.nan, 0.0)

    for kernel in (samplers.UnadjustedLangevin(0.1), samplers.KineticLangevin(0.3, 1.0), samplers.GradientDescent(0.1)):
        ends = []
        for place in (torch.device("cpu"), device()):
            state = kernel.init(torch.full((20, 3), 0.4).to(place), cliff)
            gpu.clear()
            ends.append(
                samplers.run(
                    kernel, cliff, None, 9, generator=torch.Generator().manual_seed(1), prior=Normal(), state=state
                )
            )
        assert gpu.waits == []
        assert isinstance(kernel, samplers.GradientDescent) or (ends[0].divergences > 0).any()
        torch.testing.assert_close(on_cpu(tuple(ends[1])), tuple(ends[0]), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), skipped=st.integers(0, 2100))
def test_a_key_is_a_function_of_the_generators_seed_and_position_alone(seed, skipped):
    with pretended_gpu():
        on_host, there = torch.Generator().manual_seed(seed), DeviceGenerator().manual_seed(seed)
        for _ in range(skipped):
            philox.draw_key(on_host, "cpu")
        there.set_offset(4 * skipped)
        for place in ("cpu", device()):
            keys = [int(on_cpu(philox.draw_key(generator, place))) for generator in (on_host, there)]
            assert keys[0] == keys[1]


def test_keys_are_those_of_one_draw_in_any_order():
    """Of a generator that is continued in blocks, and of one that goes back."""
    with pretended_gpu():
        count = 5000
        expected = philox._random_words(count, torch.Generator().manual_seed(8))
        there = DeviceGenerator().manual_seed(8)
        for index in (0, 1023, 1024, 4999, 2047, 2048, 0, 3000):
            there.set_offset(4 * index)
            assert int(on_cpu(philox.draw_key(there, "cpu"))) == int(expected[index])


def test_latents_of_a_seed_are_the_same_on_any_device(gpu):
    here, there = family_model().prior, on_device(family_model(), gpu).prior
    expected = here.sample(5, torch.Generator().manual_seed(3))
    for generator in (torch.Generator(), DeviceGenerator()):
        torch.testing.assert_close(on_cpu(there.sample(5, generator.manual_seed(3))), expected, rtol=0, atol=0)
    torch.manual_seed(7)
    expected = here.sample(5)
    torch.manual_seed(7)
    torch.testing.assert_close(on_cpu(there.sample(5)), expected, rtol=0, atol=0)
    assert gpu.waits == []
