"""Training that does not fit the memory: one line with a batch size that does."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import ray.train
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gebm import Trainer
from pipeline import config as schema
from pipeline.runtime.errors import UserError
from pipeline.sweep.trainable import _cause
from pipeline.training.fitting_batch import out_of_memory_as_error
from pipeline.training.worker import Worker
from tests.helpers.trainers import linear_model, trainer_of
from tests.training.test_sampler_trials import Trial, toy_config

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> schema.Config:
    """The config of a trial on points, of two base steps."""
    return toy_config(tmp_path_factory.mktemp("fitting"))


class Small(nn.Linear):
    """An energy that fits a number of rows."""

    def __init__(self, rows: int, error: Exception) -> None:
        super().__init__(2, 1)
        self.rows, self.error = rows, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.rows:
            raise self.error
        return super().forward(x)


def config_of(data: int, latents: int | None, workers: int = 1) -> schema.Config:
    values = {"name": "x", "data": {"store": "s", "source": {"kind": "digits"}}, "model": {"networks": "dcgan"}}
    keys = {"train.batch_size": data, "train.latent_batch_size": latents, "scale.num_workers": workers}
    return schema.apply(schema.from_dict(values), keys)


def train(rows: int, error: Exception, workers: int = 1, data: int = 64, latents: int | None = None) -> None:
    trainer = trainer_of(linear_model(energy=Small(rows, error)), latent_batch_size=latents or data)
    config, worker = config_of(data, latents, workers), Worker(0, workers, torch.device("cpu"))
    batches = itertools.repeat(torch.zeros(data, 2))
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


def named(line: str) -> tuple[int, int | None]:
    """The sizes that a line says to set."""
    match = re.search(r"set train\.batch_size=(\d+)(?: and train\.latent_batch_size=(\d+))?, which", line)
    assert match is not None, line
    return int(match[1]), None if match[2] is None else int(match[2])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 96), st.none() | st.integers(1, 96), st.integers(2, 95), st.integers(1, 3))
def test_data_and_latents_are_halved_in_proportion_until_both_fit(data, latents, rows, workers):
    data, latents = data * workers, latents and latents * workers
    # Data and as many base samples as there are latents at once.
    if data + (latents or data) <= rows:
        return
    with pytest.raises(UserError) as refusal:
        train(rows, ERRORS[0], workers, data, latents)
    if workers > 1:
        if max(data, latents or 1) == workers:
            assert "neither does a single sample" in str(refusal.value)
            return
        # Without a try, and what they can share out.
        fitting, latents_named = named(str(refusal.value))
        assert fitting == max(data // workers // 2, 1) * workers and "which may" in str(refusal.value)
        assert latents_named == (latents and max(latents // workers // 2, 1) * workers)
        return
    fitting, latents_named = named(str(refusal.value))
    assert (latents_named is None) == (latents is None) and fitting + (latents_named or fitting) <= rows
    halvings = next(count for count in range(10) if max(data >> count, 1) == fitting)
    if latents is not None:
        assert latents_named in {max(latents >> count, 1) for count in range(10) if max(data >> count, 1) == fitting}
    # One halving less does not fit.
    before = max(data >> halvings - 1, 1) if halvings else data
    assert halvings == 0 or before + (max(latents >> halvings - 1, 1) if latents else before) > rows


@pytest.mark.parametrize(("failing", "error"), [(1, UserError), (2, torch.OutOfMemoryError)])
def test_only_the_first_alternation_of_a_process_says_that_the_batch_is_too_large(toy, tmp_path, failing, error):
    """Once one has fitted, somebody else has the memory, and the trial is started again as after a crash."""
    calls = itertools.count(1)

    def step(self: Trainer, *arguments: Any) -> Any:
        if next(calls) == failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return taken(self, *arguments)

    taken = Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(error, match=r"set train\.batch_size=16|CUDA out of memory"):
            Trial(toy, tmp_path)
    assert _cause(ray.train.WorkerGroupError("", {0: error("CUDA out of memory")}))[0] is (
        UserError if failing == 1 else Exception
    )


def test_what_fits_nowhere_is_a_line():
    with pytest.raises(UserError, match="neither does a single sample"):
        train(1, ERRORS[0])


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(40, RuntimeError("CUDA error: an illegal memory access was encountered"))
