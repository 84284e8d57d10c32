"""Error of a training that does not fit the device's memory, with a batch size that does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from gebm import Trainer
from pipeline import config as schema
from pipeline.evaluation.out_of_memory import is_out_of_memory
from pipeline.runtime.errors import UserError
from pipeline.training.step_generator import step_generator
from pipeline.training.worker import Worker

__all__ = ["out_of_memory_as_error"]


@contextlib.contextmanager
def out_of_memory_as_error(
    trainer: Trainer, batches: Iterator[Any], config: schema.Config, worker: Worker
) -> Iterator[None]:
    """Raise a UserError for an alternation inside the block that does not fit: another try would not fit either.

    A single worker finds a batch size that fits by alternations of smaller and smaller batches; its trainer is not to
    be used any more. Several workers would wait for each other: half of the batch is named without a try.

    Args:
        trainer: What trains in the block.
        batches: Its data.
        config: The experiment.
        worker: This worker.

    Raises:
        UserError: The alternation does not fit the memory.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only out here is the exception gone, whose frames hold the very tensors that were too many.
    size, latents = config.train.batch_size, config.train.latent_batch_size
    fitting = size // 2 if worker.world_size > 1 else _fitting_size(trainer, batches, config, size)
    where = "of the GPU" if worker.device.type == "cuda" else "of the machine"
    problem = f"train.batch_size={size} does not fit the memory {where}"
    if not fitting:
        raise UserError(
            f"{problem}, and neither does a single sample: lower model.width, end what else runs there, or take a "
            "device with more memory"
        )
    fits = "does" if worker.world_size == 1 else "may"
    also = "" if latents is None else f" and train.latent_batch_size={min(latents, fitting)}"
    raise UserError(f"{problem}: set train.batch_size={fitting}{also}, which {fits}, or train.precision=bfloat16")


def _fitting_size(trainer: Trainer, batches: Iterator[Any], config: schema.Config, size: int) -> int:
    """Return the largest of the halves of a batch size with which an alternation fits; 0 if no half does."""
    while size := size // 2:
        _free(trainer)
        trainer.latent_batch_size = size
        if _fits(trainer, (batch[:size] for batch in batches), config):
            return size
    return 0


def _fits(trainer: Trainer, batches: Iterator[Any], config: schema.Config) -> bool:
    try:
        trainer.step(batches, step_generator(config, "step", trainer.base_step))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _free(trainer: Trainer) -> None:
    """Free the device memory of the alternation before."""
    for parameter in trainer.gebm.parameters():
        parameter.grad = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
