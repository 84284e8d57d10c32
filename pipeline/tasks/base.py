"""Protocols of a task: the only part in which images, tables and points in space differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, Self

import torch
from torch import Tensor

from gebm import GEBM
from pipeline.config.schema import Sampler
from pipeline.data import Position, Store
from pipeline.data.classes import Classes
from pipeline.evaluation.base import Evaluation, EvaluationRun

__all__ = ["Batches", "Report", "Task", "TaskWorker"]

Report = Callable[[str, int, int], None]
"""Callback for the progress of a preparation: what is made, the samples that are done, and all there are."""


class Batches(Protocol):
    """Endless batches of data, as the networks take them."""

    @property
    def position(self) -> Position:
        """Position after the last batch that was taken."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """One-line messages on each shard skipped so far, and on errors of the store's cache."""
        ...

    @property
    def bad_shards(self) -> int:
        """Number of shards skipped so far."""
        ...

    def __next__(self) -> Tensor:
        """Return this worker's part of the next global batch, float32 (n, ...), on its device.

        For conditional networks images have their classes, see :mod:`gebm.classes`.
        """
        ...

    def __iter__(self) -> Iterator[Tensor]: ...


class TaskWorker(Protocol):
    """A task on one worker of a trial, with its data."""

    @property
    def label(self) -> str | None:
        """The feature extractor's label, which the scores depend on; ``None`` where there is no extractor."""
        ...

    @property
    def classes(self) -> Classes | None:
        """Classes of the data, where the networks are conditional; ``None`` for others."""
        ...

    @property
    def held_out(self) -> Tensor:
        """Data (M, ...) that no training step sees, as the networks take them; M may be 0."""
        ...

    @property
    def seen(self) -> Tensor:
        """As many data of the training set, (M, ...)."""
        ...

    @property
    def reference(self) -> Tensor:
        """Features of the data (M, F), to which the learning-rate schedule compares the base."""
        ...

    @property
    def lanes(self) -> int:
        """Largest number of lanes that a new run reads its data in."""
        ...

    def batches(self, position: Position) -> Batches:
        """Return the batches from a position on."""
        ...

    def features(self, samples: Tensor) -> Tensor:
        """Return the features, as those of :attr:`reference`, of a base's samples (N, ...): (N, F)."""
        ...

    def with_sampler(self, sampler: Sampler) -> Self:
        """Return the same task on the same data, whose evaluations sample with other settings.

        Args:
            sampler: The kernel and its settings.
        """
        ...

    def draw_start(self, model: GEBM) -> dict[str, bytes]:
        """Return a first picture for each that evaluations draw, of the base alone: nothing is sampled by a chain.

        Args:
            model: The model that a trial starts from.

        Returns:
            File name to PNG, of every PNG that an evaluation has.
        """
        ...

    def evaluate(self, model: GEBM, run: EvaluationRun | None = None) -> Evaluation:
        """Score base and GEBM; the scores are the same on every rank, and the first one can draw them.

        Args:
            model: The model to evaluate.
            run: Its progress, and what it shares with others.
        """
        ...


class Task(Protocol):
    """Subject of an experiment, before any data are read."""

    def check(self, store: Store) -> None:
        """Refuse a store that does not fit the experiment.

        Raises:
            UserError: The store does not fit; one line names the key.
        """
        ...

    def is_prepared(self, store: Store) -> bool:
        """Return whether all that :meth:`prepare` makes is there, so that it only reads a few files."""
        ...

    def prepare(self, store: Store, device: torch.device, report: Report | None = None) -> str | None:
        """Make what all trials need, once, and return the label of the scores.

        Args:
            store: Training data.
            device: Where to compute.
            report: Called with the name of what is made, the samples that are done, and all there are.
        """
        ...

    def measure(self, label: str | None) -> str:
        """Return the name of the score that trials are compared by, for the head of a table."""
        ...

    def open(self, rank: int, world_size: int, device: torch.device) -> TaskWorker:
        """Return the task on one worker."""
        ...

    def show(self, samples: Tensor) -> Tensor:
        """Return a base's samples in the form in which they are saved."""
        ...

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """Return pictures of samples from the same latents before and after the chain: file name to PNG.

        Args:
            base: Samples of the base, as :meth:`show` returns them.
            gebm: Samples at the chain's end, in the same order.
        """
        ...
