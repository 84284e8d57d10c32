"""Arithmetic that is counted while it trains: as much as there is by hand, and nothing is changed by it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gebm import GEBM, Alternation, StandardNormal, Trainer, networks, objectives, penalties, samplers
from pipeline.training.throughput import PEAKS, Throughput, fraction_of_peak
from tests.helpers.trainers import trainer_of

CPU = torch.device("cpu")


def rows(size: int, dim: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(size, dim, generator=generator)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    data=st.integers(1, 6),
    latents=st.integers(1, 6),
    latent_dim=st.integers(1, 5),
    dim=st.integers(1, 5),
    hidden=st.integers(1, 5),
    energy_steps=st.integers(1, 3),
    penalised=st.booleans(),
)
def test_an_alternation_is_counted_as_by_hand(data, latents, latent_dim, dim, hidden, energy_steps, penalised):
    """A linear base, an energy of two layers; a product of (a, b) and (b, c) is ``2 a b c`` operations."""
    energy = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    model = GEBM(nn.Linear(latent_dim, dim), energy, StandardNormal(latent_dim))
    trainer = trainer_of(
        model,
        penalty=penalties.make("gradient" if penalised else "none"),
        alternation=Alternation(energy_steps, warmup_energy_steps=energy_steps),
        latent_batch_size=latents,
    )
    throughput = Throughput(trainer, CPU)
    with throughput.count_step():
        trainer.step(rows(data, dim), torch.Generator().manual_seed(0))
    through_base, first, second = latent_dim * dim, dim * hidden, hidden  # multiplications a row, layer by layer
    both = data + latents
    # Forward; then both layers' weights, and the way back from the second layer to the first.
    energy_step = latents * through_base + both * (first + second) + both * (first + second + second)
    # Forward, the gradient, and the gradient of that: twice by either layer's weight in the gradient, by the slope at
    # the hidden layer once more through the first layer, to its weight and to the point.
    penalty = (first + second) + (second + first) + (2 * first + second) + 2 * first
    energy_step += min(data, latents) * penalty * penalised
    # The base forward and the gradient of its weights; the fixed energy, forward and backward.
    base_step = 2 * latents * through_base + 2 * latents * (first + second)
    assert throughput.compute(1.0) == {"flops_per_second": 2 * (energy_steps * energy_step + base_step)}


def images(batch_size: int = 4) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.rand(batch_size, 1, 8, 8, generator=generator) * 2 - 1


def digits_model() -> GEBM:
    torch.manual_seed(0)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=4)
    return GEBM(base, energy, StandardNormal(4)).to(memory_format=torch.channels_last)


class Always:
    """Every alternation is counted anew."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self.total = trainer, 0.0

    @contextlib.contextmanager
    def count_step(self) -> Iterator[None]:
        once = Throughput(self._trainer, CPU)
        with once.count_step():
            yield
        self.total += once.compute(1.0)["flops_per_second"]


@settings(max_examples=5)
@given(
    energy_steps=st.integers(0, 3),
    warmup_energy_steps=st.integers(0, 5),
    warmup_every=st.integers(1, 4),
    penalty_every=st.integers(1, 5),
    objective=st.sampled_from(["kale_fenchel", "pcd"]),
    workers=st.integers(1, 3),
    seconds=st.floats(0.1, 10.0),
)
@example(1, 4, 2, 2, "pcd", 2, 0.5)
def test_alternations_of_one_kind_cost_the_same(
    energy_steps, warmup_energy_steps, warmup_every, penalty_every, objective, workers, seconds
):
    """So counting each kind once is counting them all, in whatever parts the rate is asked for."""
    kernel = samplers.make("ula", step_size=1e-3)
    trainer = trainer_of(
        digits_model(),
        penalty=penalties.make("gradient", every=penalty_every),
        alternation=Alternation(energy_steps, warmup_energy_steps, warmup_base_steps=1, warmup_every=warmup_every),
        objective=objectives.make(objective, kernel=kernel, num_steps=2),
        latent_batch_size=4,
    )
    throughput, always = Throughput(trainer, CPU, workers), Always(trainer)
    batches, generator = images(), torch.Generator().manual_seed(0)
    total = 0.0
    for step in range(9):
        # The outer one sees what the inner one sees: modes are stacked.
        with always.count_step(), throughput.count_step():
            trainer.step(batches, generator)
        if step % 4 == 0:
            total += throughput.compute(seconds)["flops_per_second"] * seconds
    assert total == pytest.approx(always.total * workers, rel=1e-12)


KINDS = [
    (family, penalty, precision)
    for family, penalty in [
        *itertools.product(["dcgan", "sngan_convnet", "sngan_resnet"], ["gradient"]),
        *itertools.product(["dcgan"], ["wgan_gp", "r1", "l2", "none"]),
        *itertools.product(["mlp", "realnvp", "maf"], ["gradient"]),
    ]
    for precision in (torch.float32, torch.bfloat16)
    if precision == torch.float32 or family in ("dcgan", "sngan_resnet")
]


@pytest.mark.parametrize("family, penalty, precision", KINDS)
def test_counting_does_not_change_what_is_trained(family, penalty, precision):
    """Bit for bit, weights and optimizers and losses."""

    def trained(counted: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(0)
        of_rows = family in networks.NAMES.having("tasks", "points")
        resolution, channels, width = (0, 3, None) if of_rows else (8 if family == "dcgan" else 32, 3, 4)
        base, energy = networks.make(family, resolution=resolution, channels=channels, latent_dim=3, width=width)
        model = GEBM(base, energy, StandardNormal(3))
        if not of_rows:
            model = model.to(memory_format=torch.channels_last)
        alternation = Alternation(2, warmup_energy_steps=3, warmup_base_steps=1)
        trainer = trainer_of(
            model, penalty=penalties.make(penalty, every=2), alternation=alternation, precision=precision
        )
        generator = torch.Generator().manual_seed(2)
        shape = (4, 3) if of_rows else (4, 3, resolution, resolution)
        batches = iter([torch.rand(shape, generator=generator) * 2 - 1 for _ in range(20)])
        throughput = Throughput(trainer, CPU)
        losses = []
        for _ in range(4):
            with throughput.count_step() if counted else contextlib.nullcontext():
                info = trainer.step(batches, generator)
            losses += [info.energy_loss, info.base_loss]
        assert (throughput.compute(1.0)["flops_per_second"] > 0) is counted
        return {**model.state_dict(), **trainer.state_dict()["tensors"]}, losses

    (state, losses), (counted_state, counted_losses) = trained(False), trained(True)
    assert state.keys() == counted_state.keys()
    assert all(torch.equal(state[name], counted_state[name]) for name in state)
    assert all(torch.equal(*pair) for pair in zip(losses, counted_losses, strict=True))


@given(
    gpu=st.sampled_from(sorted(PEAKS)),
    seconds=st.floats(1e-3, 1e3),
    share=st.floats(0.0, 1.0),
    fraction=st.floats(1e-3, 1.0),
)
def test_a_gpu_that_works_at_its_peak_reaches_it(gpu, seconds, share, fraction):
    """Whatever part of the time goes to which arithmetic."""
    times = {"tf32": share * seconds, "float32": (1 - share) * seconds}
    flops = {name: fraction * PEAKS[gpu][name] * 1e12 * time for name, time in times.items()}
    for name in (gpu, f"NVIDIA {gpu}"):
        assert fraction_of_peak(flops, seconds, name) == pytest.approx(fraction)


@pytest.mark.parametrize(
    "gpu", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "AMD MI300X"]
)
def test_a_gpu_that_is_not_known_has_no_fraction(gpu):
    assert fraction_of_peak({"float32": 1}, 1.0, gpu) is None
    assert fraction_of_peak({"float64": 1}, 1.0, "NVIDIA L4") is None
