"""Samples of each batch of each rank, whatever reads them.

The order of an epoch is fixed by (seed, epoch, manifest), see ``pipeline.data.reading.shuffle``. Global batch g is the
g-th slice of it and rank r takes the r-th part of that slice; the remainder of the epoch, less than a batch, is
dropped. So every rank gets the same number of batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.reading.shuffle import EpochOrder, Position
from pipeline.data.store import Store
from pipeline.runtime.errors import UserError

__all__ = ["WINDOW_BYTES", "Batch", "BatchOrder", "BatchSpec"]

WINDOW_BYTES = 128 * 2**20


class Batch(NamedTuple):
    """One rank's part of a global batch.

    Args:
        images: uint8 (n, C, H, W), with n the global batch size divided by the number of ranks. Of a store of rows,
            float32 (n, D).
        labels: int64 (n,), or None where the store has no labels.
        position: The position after this batch. A reader built there gives the next batch.
        notes: A line on each shard that was skipped so far, and on each error of the store's cache.
        bad_shards: Number of shards that were skipped so far.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    position: Position
    notes: tuple[str, ...] = ()
    bad_shards: int = 0


@dataclass(frozen=True)
class BatchSpec:
    """Settings that fix which samples each batch of a rank holds.

    Args:
        batch_size: Size of the global batch, over all ranks. Must be a multiple of ``world_size``.
        rank: This rank, from 0.
        world_size: Number of ranks.
        seed: Seed of the order, from 0 up.
        position: Position of the first batch.
        shuffle: False for the plain order of the store.
        window: Largest size of a window of shards, in bytes of decoded samples. Samples are mixed inside a window, so
            a larger one mixes better and needs more memory.
        held_out: Number of samples at the end of the store that are in no batch.

    Raises:
        UserError: If the batch size is no multiple of the number of ranks, or a number is out of its range.

    Example:
        >>> BatchSpec(batch_size=8, world_size=2).rank_batch_size
        4
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    position: Position = field(default_factory=Position)
    shuffle: bool = True
    window: int = WINDOW_BYTES
    held_out: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1 or self.batch_size % self.world_size:
            raise UserError(
                f"the global batch size {self.batch_size} is no multiple of the number of ranks {self.world_size}: "
                "choose one"
            )
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} is not one of {self.world_size} ranks: count them from 0")
        if min(self.seed, self.position.epoch, self.position.step) < 0:
            raise UserError("a seed and a position are 0 or more: choose another")

    @property
    def rank_batch_size(self) -> int:
        """Number of samples of a batch that each rank has."""
        return self.batch_size // self.world_size


class BatchOrder:
    """Samples of the batch at each position, for one rank.

    Args:
        store: The store. Only its manifest is read.
        spec: Settings of the batches.

    Raises:
        UserError: If the store, without the samples that are held out, is smaller than a batch.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/batches", resolution=8, channels=1)
        >>> order = BatchOrder(open_store("memory://docs/batches"), BatchSpec(batch_size=898, world_size=2))
        >>> shards, indices = order.samples(Position(epoch=0, step=1))
        >>> len(shards), len(indices), order.after(Position(epoch=0, step=1))
        (449, 449, Position(epoch=1, step=0))
    """

    def __init__(self, store: Store, spec: BatchSpec) -> None:
        manifest = store.manifest.without_last(spec.held_out) if spec.held_out else store.manifest
        if manifest.num_samples < spec.batch_size:
            raise UserError(
                f"the store {store.url} has {manifest.num_samples} {manifest.unit}, fewer than a batch of "
                f"{spec.batch_size}: choose a smaller batch size"
            )
        self.spec = spec
        self.batches_per_epoch = manifest.num_samples // spec.batch_size
        self._manifest = manifest
        self._epochs: dict[int, EpochOrder] = {}

    def positions(self) -> Iterator[Position]:
        """Yield all positions from the first batch's on, without end."""
        first = self.spec.position
        number = first.epoch * self.batches_per_epoch + first.step
        while True:
            yield Position(*divmod(number, self.batches_per_epoch))
            number += 1

    def after(self, position: Position) -> Position:
        """Return the position after the batch at this one."""
        last = position.step + 1 == self.batches_per_epoch
        return Position(position.epoch + 1, 0) if last else Position(position.epoch, position.step + 1)

    def samples(self, position: Position) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of this rank's part of the batch at a position, in their order.

        Returns:
            For each sample the index of its shard in the manifest, int64 (n,), and its index in that shard, int64 (n,).
        """
        return self._order(position.epoch).samples(*self._bounds(position))

    def shards(self, position: Position) -> list[int]:
        """Return the shards of the windows that hold those samples, as indices in the manifest."""
        return self._order(position.epoch).shards(*self._bounds(position))

    def shards_after(self, position: Position, at_least: int = 1) -> list[int]:
        """Return the shards of the windows that follow, in this epoch and then in the next.

        Args:
            position: Position of a batch.
            at_least: Smallest number of shards to return, as far as the two epochs have them.

        Returns:
            The shards of whole windows, as indices in the manifest.
        """
        end = self.batches_per_epoch * self.spec.batch_size
        rest = self._order(position.epoch).shards_after(self._bounds(position)[1], end, at_least)
        missing = at_least - len(rest)
        return rest + self._order(position.epoch + 1).shards_after(0, end, missing) if missing > 0 else rest

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._epochs:
            order = EpochOrder(self._manifest, self.spec.seed, epoch, self.spec.window, self.spec.shuffle)
            # The order of the next epoch is needed already at the end of this one.
            self._epochs = {known: self._epochs[known] for known in (epoch - 1, epoch + 1) if known in self._epochs}
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def _bounds(self, position: Position) -> tuple[int, int]:
        """Return the half-open range of this rank's samples in the order of the epoch."""
        part = self.spec.rank_batch_size
        start = position.step * self.spec.batch_size + self.spec.rank * part
        return start, start + part
