"""Training that does not fit the memory: one line with a batch size that does."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.runtime.errors import UserError
from pipeline.training.fitting_batch import out_of_memory_as_error
from pipeline.training.pacing import Pace
from pipeline.training.worker import Worker
from tests.helpers.trainers import linear_model, trainer_of

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
]


class Small(nn.Linear):
    """An energy that fits a number of rows."""

    def __init__(self, rows: int, error: Exception) -> None:
        super().__init__(2, 1)
        self.rows, self.error = rows, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.rows:
            raise self.error
        return super().forward(x)


def train(rows: int, error: Exception, world_size: int = 1, latents: int | None = None) -> None:
    trainer = trainer_of(linear_model(energy=Small(rows, error)), latent_batch_size=latents or 64)
    config = SimpleNamespace(seed=0, train=SimpleNamespace(batch_size=64, latent_batch_size=latents))
    worker = Worker(0, world_size, torch.device("cpu"))
    batches = itertools.repeat(torch.zeros(64, 2))
    with out_of_memory_as_error(trainer, batches, config, worker):
        trainer.step(batches, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_alternation_that_does_not_fit_is_a_line_with_a_batch_size_that_does(error):
    # Data and as many base samples at once: 40 rows hold batches of 20, of which 16 is a half of a half of 64.
    with pytest.raises(
        UserError, match=r"train\.batch_size=64 does not fit .*: set train\.batch_size=16, which does"
    ) as line:
        train(40, error)
    assert "\n" not in str(line.value)


@pytest.mark.parametrize("rows", [2, 8, 64, 127])
def test_what_is_named_fits(rows):
    with pytest.raises(UserError) as line:
        train(rows, ERRORS[0])
    named = int(str(line.value).split("set train.batch_size=")[1].split(",")[0])
    assert 2 * named <= rows < 4 * named


def test_latents_that_are_too_many_are_named_as_well():
    with pytest.raises(UserError, match=r"train\.batch_size=16 and train\.latent_batch_size=16"):
        train(40, ERRORS[0], latents=64)


def test_several_workers_do_not_try_what_fits():
    with pytest.raises(UserError, match=r"set train\.batch_size=32, which may"):
        train(40, ERRORS[0], world_size=2)


def test_what_fits_nowhere_is_a_line():
    with pytest.raises(UserError, match="neither does a single sample"):
        train(1, ERRORS[0])


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(40, RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("seconds_a_step", [0.001, 0.1, 7.0])
def test_a_question_is_asked_by_seconds_and_at_the_same_steps_by_all(seconds_a_step):
    """Of two workers with clocks of their own, both ask when the first one's says so."""
    now, decided, asked = [0.0], [], []
    first = Pace(1.0, 5, largest=50, from_first=lambda value: decided.append(value) or value, clock=lambda: now[0])
    second = Pace(1.0, 5, largest=50, from_first=lambda _: decided[-1], clock=lambda: 3 * now[0])
    for step in range(1, 1000):
        now[0] += seconds_a_step
        assert first.is_due(step) == second.is_due(step)
        if first.is_due(step):
            asked.append(step)
            first.asked(step)
            second.asked(step)
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    expected = min(50, max(1, round(1.0 / seconds_a_step)))
    assert asked[0] == 5 and abs(gaps[-1] - expected) <= 1 and max(gaps) <= 50
