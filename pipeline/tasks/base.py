"""What a task has to be: the only place where images, tables and points of space differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from gebm import GEBM
from pipeline.data import Position, Store
from pipeline.evaluation.evaluator import Evaluation

__all__ = ["Batches", "Task", "TaskWorker"]


class Batches(Protocol):
    """Data as the networks take them, for ever."""

    position: Position
    """The position after the last batch that was taken."""

    notes: tuple[str, ...]
    """A line on each shard that was skipped so far, and on what went wrong with the store's cache."""

    bad_shards: int
    """How many shards were skipped."""

    def __next__(self) -> Tensor:
        """This worker's part of the next global batch, float32 (n, ...), on its device."""
        ...

    def __iter__(self) -> Iterator[Tensor]: ...


class TaskWorker(Protocol):
    """A task on one worker of a trial, its data at hand."""

    label: str | None
    """What the scores depend on besides model and data: the feature extractor; None where there is nothing."""

    held_out: Tensor
    """Data (M, ...) that no training step sees, as the networks take them; none where none are held out."""

    seen: Tensor
    """As many data of the training set."""

    reference: Tensor
    """Features of the data (M, F), by which the learning rates' schedule knows whether the base still improves."""

    def batches(self, position: Position) -> Batches:
        """Batches from a position on."""
        ...

    def features(self, samples: Tensor) -> Tensor:
        """The same features of samples (N, ...), as the base makes them: (N, F)."""
        ...

    def evaluate(self, model: GEBM, advance: Callable[[int], None] = ...) -> Evaluation:
        """Score base and GEBM, and draw them; the scores are the same on every rank."""
        ...


class Task(Protocol):
    """What an experiment is about, before any data are touched."""

    def check(self, store: Store) -> None:
        """Refuse a store that is not what the experiment asks for.

        Raises:
            UserError: One line that names the key.
        """
        ...

    def prepare(self, store: Store, device: torch.device) -> str | None:
        """Make what all trials need, once, and give the label of the scores."""
        ...

    def measure(self, label: str | None) -> str:
        """What trials are compared by, in words, for the head of a table."""
        ...

    def open(self, rank: int, world_size: int, device: torch.device) -> TaskWorker:
        """The task on one worker."""
        ...

    def show(self, samples: Tensor) -> Tensor:
        """Samples as a base makes them, in the form in which they are saved."""
        ...

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """Pictures of samples, shown, from the same latents before and after the chain: file name to PNG."""
        ...
