"""Rows of a table, in memory: base classes of the tasks over vectors."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.config.schema import Sampler
from pipeline.data import Position, Store
from pipeline.data.classes import Classes
from pipeline.runtime.errors import UserError
from pipeline.tasks.base import Report
from pipeline.tasks.open_store import open_data, split_store

__all__ = [
    "RowBatches",
    "TableTask",
    "TableTaskWorker",
]

# Rows that the learning-rate schedule compares the base to.
_MAX_REFERENCE = 10_000


class RowBatches(Iterator[Tensor]):
    """Endless batches of rows, epoch after epoch, from a position on.

    The order of an epoch is a function of seed and epoch. Global batch g is the g-th slice of it, and rank r takes the
    r-th part of that slice; the remainder of the epoch, less than a batch, is dropped.

    Args:
        rows: Float32 (N, D), on any device, where the batches will be.
        batch_size: Size of the global batch, a multiple of ``world_size`` and at most N.
        rank: This rank, from 0.
        world_size: Number of ranks.
        seed: Of the order.
        position: Position of the first batch.

    Attributes:
        position: Position after the last batch that was taken.
        notes: Empty: rows are in memory.
        bad_shards: Zero, for the same reason.

    Example:
        >>> batches = RowBatches(torch.arange(10.0)[:, None], batch_size=4)
        >>> next(batches).shape, batches.position
        (torch.Size([4, 1]), Position(epoch=0, step=1, lanes=1))
    """

    def __init__(
        self,
        rows: Tensor,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        position: Position | None = None,
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self.bad_shards = 0
        start, per_epoch = position or Position(), len(rows) // batch_size
        # A position of a smaller batch may lie beyond the end of an epoch of this one.
        self.position = Position(*divmod(start.epoch * per_epoch + start.step, per_epoch))
        self._rows, self._seed = rows, seed
        self._batch_size, self._part = batch_size, batch_size // world_size
        self._offset = rank * self._part
        self._order: tuple[int, Tensor] | None = None

    def __next__(self) -> Tensor:
        epoch, step = self.position.epoch, self.position.step
        if self._order is None or self._order[0] != epoch:
            digest = hashlib.sha256(f"{self._seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            self._order = epoch, torch.randperm(len(self._rows), generator=generator).to(self._rows.device)
        start = step * self._batch_size + self._offset
        last = step + 1 == len(self._rows) // self._batch_size
        self.position = Position(epoch + 1, 0) if last else Position(epoch, step + 1)
        return self._rows[self._order[1][start : start + self._part]]


class TableTask:
    """Base class of the tasks over rows, before any data are read.

    A subclass has ``measure``, ``open`` and ``pictures``, see :class:`pipeline.tasks.base.Task`.

    Args:
        config: The experiment.

    Attributes:
        config: The same.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def check(self, store: Store) -> None:
        """Refuse a store of another number of columns, or one with less than a batch to train on.

        Raises:
            UserError: The store does not fit; one line names the key.
        """
        config, train = self.config, split_store(self.config, store).train
        if train.shape[1] != config.data.channels:
            raise UserError(
                f"the store {store.url} has {train.shape[1]} columns as conf={config.name} prepares them, and "
                f"data.channels={config.data.channels}: set data.channels={train.shape[1]}"
            )
        if len(train) < config.train.batch_size:
            raise UserError(
                f"the store {store.url} has {len(train)} rows to train on, fewer than train.batch_size="
                f"{config.train.batch_size}"
            )

    def is_prepared(self, store: Store) -> bool:
        """Return True: there is nothing to prepare."""
        return True

    def prepare(self, store: Store, device: torch.device, report: Report | None = None) -> None:
        """Do nothing: rows are split in an instant, and measured without an extractor."""

    def show(self, samples: Tensor) -> Tensor:
        """Return rows (N, D) in the units of the table."""
        return split_store(self.config, open_data(self.config.data)).restore(samples)


class TableTaskWorker:
    """Base class of the tasks over rows, on one worker.

    A subclass has ``evaluate``, see :class:`pipeline.tasks.base.TaskWorker`.

    Args:
        config: The experiment.
        rank: This worker.
        world_size: Number of workers.
        device: Where batches are.

    Attributes:
        config: The experiment.
        rank: This worker.
        world_size: Number of workers.
        device: Where batches are.
        splits: The rows, as the networks take them; ``splits.restore`` maps rows to the units of the table.
        label: ``None``: rows are scored without a feature extractor.
        classes: ``None``: rows have no labels.
        reference: The first training rows (M, D), at most 10,000.
        held_out: The validation rows.
        seen: As many training rows.
    """

    label: str | None = None
    classes: Classes | None = None

    def __init__(self, config: Config, rank: int, world_size: int, device: torch.device) -> None:
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.splits = split_store(config, open_data(config.data))
        self.reference = self.splits.train[:_MAX_REFERENCE]
        self.held_out = self.splits.validation
        self.seen = self.splits.train[: len(self.held_out)]

    @property
    def lanes(self) -> int:
        """One: the rows are held."""
        return 1

    def batches(self, position: Position) -> RowBatches:
        """Return batches of whitened training rows from a position on."""
        return RowBatches(
            self.splits.train.to(self.device),
            batch_size=self.config.train.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.config.seed,
            position=position,
        )

    def with_sampler(self, sampler: Sampler) -> Self:
        """Return the same rows, sampled with other settings."""
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, sampler=sampler)
        return other

    def features(self, samples: Tensor) -> Tensor:
        """Return the rows themselves."""
        return samples.cpu()
