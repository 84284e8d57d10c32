"""Which samples each batch of each rank holds, whatever reads them.

The order of an epoch is fixed by (seed, epoch, manifest), see `pipeline.data.reading.shuffle`. Global batch g is the
g-th slice of it and rank r takes the r-th part of that slice; the remainder of the epoch, less than a batch, is
dropped. So every rank gets the same number of batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.reading.shuffle import EpochOrder, Position
from pipeline.data.store import Store
from pipeline.runtime.errors import UserError

__all__ = ["WINDOW_BYTES", "Batch", "BatchOrder"]

WINDOW_BYTES = 128 * 2**20


class Batch(NamedTuple):
    """One rank's part of a global batch.

    Args:
        images: uint8 (n, C, H, W), with n the global batch size divided by the number of ranks. Of a store of rows,
            float32 (n, D).
        labels: int64 (n,), or None where the store has no labels.
        position: The position after this batch. A reader built there gives the next batch.
        notes: A line on each shard that was skipped so far, and on what went wrong with the store's cache.
        bad_shards: How many were skipped.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    position: Position
    notes: tuple[str, ...] = ()
    bad_shards: int = 0


class BatchOrder:
    """The samples of the batch at each position, for one rank.

    Args:
        store: The store. Only its manifest is looked at.
        batch_size: Size of the global batch, over all ranks. Must be a multiple of `world_size`.
        rank: This rank, from 0.
        world_size: Number of ranks.
        seed: Seed of the order.
        start: Where to begin.
        shuffle: False for the plain order of the store.
        window: Largest size of a window of shards, in bytes of decoded samples.
        held_out: Samples at the end of the store that are in no batch.

    Raises:
        UserError: If the batch size is no multiple of the number of ranks, the store is smaller than a batch, or a
            number is out of its range.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/batches", resolution=8, channels=1)
        >>> order = BatchOrder(open_store("memory://docs/batches"), 898, 0, 2, 0, Position(), True, WINDOW_BYTES)
        >>> shards, indices = order.samples(Position(epoch=0, step=1))
        >>> len(shards), len(indices), order.after(Position(epoch=0, step=1))
        (449, 449, Position(epoch=1, step=0))
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start: Position,
        shuffle: bool,
        window: int,
        held_out: int = 0,
    ) -> None:
        manifest = store.manifest.without_last(held_out) if held_out else store.manifest
        num_samples = manifest.num_samples
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise UserError(
                f"the global batch size {batch_size} is no multiple of the number of ranks {world_size}: choose one"
            )
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks: count them from 0")
        if num_samples < batch_size:
            raise UserError(
                f"the store {store.url} has {num_samples} {manifest.unit}, fewer than a batch of {batch_size}: "
                "choose a smaller batch size"
            )
        if min(seed, start.epoch, start.step) < 0:
            raise UserError("a seed and a position are 0 or more: choose another")
        self.batches_per_epoch = num_samples // batch_size
        self.start = start
        self._manifest = manifest
        self._batch_size = batch_size
        self._part = batch_size // world_size
        self._offset = rank * self._part
        self._seed = seed
        self._shuffle = shuffle
        self._window = window
        self._epochs: dict[int, EpochOrder] = {}

    def positions(self) -> Iterator[Position]:
        """All positions from the start on, for ever."""
        number = self.start.epoch * self.batches_per_epoch + self.start.step
        while True:
            yield Position(*divmod(number, self.batches_per_epoch))
            number += 1

    def after(self, position: Position) -> Position:
        """The position after the batch at this one."""
        last = position.step + 1 == self.batches_per_epoch
        return Position(position.epoch + 1, 0) if last else Position(position.epoch, position.step + 1)

    def samples(self, position: Position) -> tuple[np.ndarray, np.ndarray]:
        """The samples of this rank's part of the batch at a position, in their order.

        Returns:
            For each sample the index of its shard in the manifest, int64 (n,), and its index in that shard, int64 (n,).
        """
        return self._order(position.epoch).samples(*self._places(position))

    def shards(self, position: Position) -> list[int]:
        """The shards of the windows that hold them, as indices in the manifest."""
        return self._order(position.epoch).shards(*self._places(position))

    def shards_after(self, position: Position, at_least: int = 1) -> list[int]:
        """The shards of the windows that come then, of this epoch or else of the next: of so many shards, or one."""
        end = self.batches_per_epoch * self._batch_size
        rest = self._order(position.epoch).shards_after(self._places(position)[1], end, at_least)
        missing = at_least - len(rest)
        return rest + self._order(position.epoch + 1).shards_after(0, end, missing) if missing > 0 else rest

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._epochs:
            order = EpochOrder(self._manifest, self._seed, epoch, self._window, self._shuffle)
            # That of the next epoch is asked for at the end of this one.
            self._epochs = {known: self._epochs[known] for known in (epoch - 1, epoch + 1) if known in self._epochs}
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def _places(self, position: Position) -> tuple[int, int]:
        start = position.step * self._batch_size + self._offset
        return start, start + self._part
