"""Error of a training that does not fit the device's memory, with a batch size that does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gebm import Trainer
from pipeline import config as schema
from pipeline.config.worker_rules import required_multiple
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

    That is so of a process's first one. Where one has fitted, what another process has taken is missing, and a restart
    may find it free again; in a process that had another trial before, what that one has left. Such an error is to be
    left as it is.

    A single worker finds a batch size that fits by alternations of smaller and smaller batches; its trainer is not to
    be used any more. Several workers would wait for each other: half of the batch is named without a try.

    Args:
        trainer: What trains in the block, for the first time in this process.
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
    sizes = _Sizes(config.train.batch_size, config.train.latent_batch_size)
    if worker.world_size > 1:
        fitting = next(sizes.halves(required_multiple(config, "train.batch_size")), None)
    else:
        fitting = next((half for half in sizes.halves() if _fits(half, trainer, batches, config)), None)
    where = "of the GPU" if worker.device.type == "cuda" else "of the machine"
    problem = f"train.batch_size={sizes.data} does not fit the memory {where}"
    if fitting is None:
        raise UserError(
            f"{problem}, and neither does a single sample: lower model.width, end what else runs there, or take a "
            "device with more memory"
        )
    fits = "does" if worker.world_size == 1 else "may"
    raise UserError(f"{problem}: set {fitting}, which {fits}, or train.precision=bfloat16")


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a batch of data and of one of latents.

    Args:
        data: Number of data.
        latents: Number of latents; ``None`` for as many as data.
    """

    data: int
    latents: int | None

    def __str__(self) -> str:
        also = "" if self.latents is None else f" and train.latent_batch_size={self.latents}"
        return f"train.batch_size={self.data}{also}"

    def halves(self, multiple: int = 1) -> Iterator[_Sizes]:
        """Yield half of both, half of that and so on, down to the least that can be.

        Args:
            multiple: What both have to be a multiple of.
        """
        data, latents = self.data // multiple, self.latents and self.latents // multiple
        while max(data, latents or 1) > 1:
            data, latents = max(data // 2, 1), latents and max(latents // 2, 1)
            yield _Sizes(data * multiple, latents and latents * multiple)


def _fits(sizes: _Sizes, trainer: Trainer, batches: Iterator[Any], config: schema.Config) -> bool:
    """Return whether an alternation of such batches fits."""
    _free(trainer)
    trainer.latent_batch_size = sizes.latents or sizes.data
    try:
        part = (batch[: sizes.data] for batch in batches)
        trainer.step(part, step_generator(config, "step", trainer.base_step))
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
