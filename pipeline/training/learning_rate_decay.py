"""Decay of both learning rates when the base has stopped improving, decided by the first worker for all."""

from __future__ import annotations

from typing import Any

import torch

from gebm.allocator import malloc_trim
from gebm.training import Trainer
from gebm.training.plateau_decay import PlateauDecay
from pipeline import config as schema
from pipeline.tasks.base import TaskWorker
from pipeline.training.worker import Worker

__all__ = ["LearningRateDecay"]


class LearningRateDecay:
    """Relative-similarity test of the base, and the decay that it triggers.

    Args:
        config: ``train.learning_rate_decay``, ``train.train_base``, ``evaluation.batch_size`` and ``seed``.
        task: Features of the data, and of samples.
        trainer: The trainer whose learning rates decay.
        worker: This worker.
    """

    def __init__(self, config: schema.Config, task: TaskWorker, trainer: Trainer, worker: Worker) -> None:
        self._config, self._task, self._trainer, self._worker = config, task, trainer, worker
        decay = config.train.learning_rate_decay
        self._plateau = PlateauDecay(
            task.reference[: decay.num_samples],
            factor=decay.factor,
            every=decay.every,
            lag=decay.lag,
            patience=decay.patience,
            significance=decay.significance,
            unconditional_every=decay.unconditional_every,
        )

    def due(self, base_step: int) -> bool:
        """Return whether there is a test after ``base_step`` base steps."""
        return self._plateau.due(base_step)

    def update(self) -> None:
        """Lower both learning rates if a test is due and says so, or if they fall at this step without one."""
        # A base that is not trained does not stop improving.
        if not self._config.train.train_base:
            return
        step = self._trainer.base_step
        if self._is_on_plateau() if self.due(step) else self._plateau.is_unconditional(step):
            self._trainer.scale_learning_rates(self._plateau.factor, self._plateau.factor)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the tests so far."""
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state_dict`."""
        self._plateau.load_state_dict(state)

    def _is_on_plateau(self) -> bool:
        """Return whether the base has stopped improving, by samples from the same latents each time.

        The first worker decides for all: two that computed it for themselves could come to differ in their rates.
        """
        decision = 0.0
        if self._worker.is_first:
            count = min(self._config.train.learning_rate_decay.num_samples, len(self._task.reference))
            generator = torch.Generator().manual_seed(self._config.seed)
            batch_size = self._config.evaluation.batch_size
            samples = self._trainer.sampling_model().sample_base(count, generator, batch_size=batch_size)
            decision = float(self._plateau.update(self._trainer.base_step, self._task.features(samples)))
            malloc_trim()
        return bool(self._worker.from_first(decision))
