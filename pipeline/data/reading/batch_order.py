"""Samples of each batch of each rank, whatever reads them.

The order of an epoch is fixed by (seed, epoch, manifest, lanes), see ``pipeline.data.reading.shuffle``. Global batch g
is the g-th slices of all lanes, lane after lane, and rank r takes the r-th part of it; the remainder of the epoch, less
than a batch, is dropped. So every rank gets the same number of batches, and a number of ranks that divides the lanes
shares them out: no two ranks read a lane, nor a shard, but for those at the cuts between two lanes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.manifest import Manifest
from pipeline.data.reading.shuffle import LaneOrder, Position, Window, order_lanes
from pipeline.data.store import Store
from pipeline.runtime.errors import UserError

__all__ = ["LANES_BYTES", "WINDOW_BYTES", "Batch", "BatchOrder", "BatchSpec", "count_lanes"]

WINDOW_BYTES = 128 * 2**20
LANES_BYTES = 2**32
"""Memory that a shard of each lane may take, decoded, in a process that reads all lanes."""


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
        position: Position of the first batch, with the largest number of lanes; see ``count_lanes``.
        shuffle: False for the plain order of the store.
        window: Largest size of the windows of shards of all lanes, in bytes of decoded samples. Samples are mixed
            inside a window, so a larger one mixes better and needs more memory.
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
        if self.position.lanes < 1:
            raise UserError(f"{self.position.lanes} lanes are none: choose 1 or more")

    @property
    def rank_batch_size(self) -> int:
        """Number of samples of a batch that each rank has."""
        return self.batch_size // self.world_size

    def split(self, parts: int) -> list[BatchSpec]:
        """Return the settings of equal parts of this rank's batches, which together are these.

        Args:
            parts: Number of parts; divides the number of this rank's samples of a batch.

        Example:
            >>> [(part.rank, part.rank_batch_size) for part in BatchSpec(batch_size=8, rank=1, world_size=2).split(2)]
            [(2, 2), (3, 2)]
        """
        ranks = range(self.rank * parts, (self.rank + 1) * parts)
        return [replace(self, rank=rank, world_size=self.world_size * parts) for rank in ranks]


def count_lanes(manifest: Manifest, batch_size: int, most: int) -> int:
    """Return the number of lanes that a store is read in.

    It is the largest divisor of ``most`` and of the batch size for which each lane has a shard's worth of samples, and
    one shard of each lane takes no more than ``LANES_BYTES``. The number of ranks plays no part, so that the batches
    are the same for any.

    Args:
        manifest: The store's manifest.
        batch_size: Size of the global batch.
        most: Largest number of lanes.

    Example:
        >>> from pipeline.data.manifest import Shard, Source
        >>> shards = tuple(Shard(f"{i}.tar", num_samples=3, bytes=1, sha256="") for i in range(12))
        >>> manifest = Manifest(8, 1, "blocks", None, Source("digits"), num_samples=36, shards=shards)
        >>> [count_lanes(manifest, batch_size=32, most=lanes) for lanes in (1, 4, 6, 64)]
        [1, 4, 2, 8]
    """
    shard_bytes = max(shard.num_samples for shard in manifest.shards) * manifest.sample_bytes
    largest = max(1, min(len(manifest.shards), LANES_BYTES // shard_bytes))
    common = math.gcd(most, batch_size)
    return max(lanes for lanes in range(1, min(largest, common) + 1) if common % lanes == 0)


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
        (449, 449, Position(epoch=1, step=0, lanes=1))
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
        self.lanes = count_lanes(manifest, spec.batch_size, spec.position.lanes)
        self.position = replace(spec.position, lanes=self.lanes)
        self._manifest = manifest
        self._lane_rows = spec.batch_size // self.lanes
        self._own_lanes = list(self._find_own_lanes())
        self._epochs: dict[int, list[LaneOrder]] = {}

    @property
    def window_bytes(self) -> int:
        """Size of the windows that this rank reads from at a time, decoded, in bytes: an upper limit."""
        largest = max(shard.num_samples for shard in self._manifest.shards) * self._manifest.sample_bytes
        return len(self._own_lanes) * max(self.spec.window // self.lanes, largest)

    def count_groups(self, num_workers: int) -> int:
        """Return the number of groups of lanes that loader workers of this rank can share out among them.

        It is the largest number of equal groups that there are workers for, and one where ranks share a lane. Where
        there are more workers than groups, those that have a group in common take turns with its batches.

        Args:
            num_workers: Number of loader workers of this rank.
        """
        own, shared = divmod(self.lanes, self.spec.world_size)
        if shared or own == 0:
            return 1
        return max(groups for groups in range(1, min(own, max(num_workers, 1)) + 1) if own % groups == 0)

    def positions(self) -> Iterator[Position]:
        """Yield all positions from the first batch's on, without end."""
        number = self.position.epoch * self.batches_per_epoch + self.position.step
        while True:
            yield Position(*divmod(number, self.batches_per_epoch), self.lanes)
            number += 1

    def after(self, position: Position) -> Position:
        """Return the position after the batch at this one."""
        last = position.step + 1 == self.batches_per_epoch
        epoch, step = (position.epoch + 1, 0) if last else (position.epoch, position.step + 1)
        return Position(epoch, step, self.lanes)

    def samples(self, position: Position) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of this rank's part of the batch at a position, in their order.

        Returns:
            For each sample the index of its shard in the manifest, int64 (n,), and its index in that shard, int64 (n,).
        """
        pieces = [lane.samples(start, stop) for lane, start, stop in self._lanes_at(position)]
        if len(pieces) == 1:
            return pieces[0]
        shards, indices = zip(*pieces, strict=True)
        return np.concatenate(shards), np.concatenate(indices)

    def shards(self, position: Position) -> list[int]:
        """Return the shards of the windows that hold those samples, as indices in the manifest."""
        shards = [shard for lane, start, stop in self._lanes_at(position) for shard in lane.shards(start, stop)]
        return list(dict.fromkeys(shards))

    def shards_after(self, position: Position, at_least: int = 1) -> list[int]:
        """Return the shards of the windows that follow, in this epoch and then in the next, by when they are needed.

        Args:
            position: Position of a batch.
            at_least: Smallest number of shards to return, as far as the two epochs have them. If it is not 0, as many
                windows are returned as this rank reads from at a time, in any case.

        Returns:
            The shards of whole windows, as indices in the manifest.
        """
        shards: dict[int, None] = {}
        upcoming = [self._windows_after(position, own) for own in self._own_lanes]
        for number, window in enumerate(heapq.merge(*upcoming, key=lambda window: window.first)):
            if len(shards) >= at_least and (number >= len(self._own_lanes) or not at_least):
                break
            shards |= dict.fromkeys(window.shards)
        return list(shards)

    def _windows_after(self, position: Position, own: _OwnLane) -> Iterator[Window]:
        """Yield the windows of a lane after those of a batch; the next epoch's samples are counted on from this one."""
        end = self.batches_per_epoch * self._lane_rows
        stop = position.step * self._lane_rows + own.stop
        yield from self._order(position.epoch)[own.lane].windows_after(stop, end)
        for window in self._order(position.epoch + 1)[own.lane].windows_after(0, end):
            yield window._replace(first=window.first + end)

    def _find_own_lanes(self) -> Iterator[_OwnLane]:
        part, rows = self.spec.rank_batch_size, self._lane_rows
        first, end = self.spec.rank * part, (self.spec.rank + 1) * part
        for lane in range(first // rows, (end - 1) // rows + 1):
            yield _OwnLane(lane, max(first - lane * rows, 0), min(end - lane * rows, rows))

    def _lanes_at(self, position: Position) -> list[tuple[LaneOrder, int, int]]:
        """Return this rank's lanes, each with the half-open range of its samples in a batch."""
        order, before = self._order(position.epoch), position.step * self._lane_rows
        return [(order[own.lane], before + own.start, before + own.stop) for own in self._own_lanes]

    def _order(self, epoch: int) -> list[LaneOrder]:
        if epoch not in self._epochs:
            order = order_lanes(
                self._manifest, self.spec.seed, epoch, self.spec.window, self.spec.shuffle, lanes=self.lanes
            )
            # The order of the next epoch is needed already at the end of this one.
            self._epochs = {known: self._epochs[known] for known in (epoch - 1, epoch + 1) if known in self._epochs}
            self._epochs[epoch] = order
        return self._epochs[epoch]


class _OwnLane(NamedTuple):
    """Lane of a rank, with the half-open range of the rank's rows among those that a batch has of the lane."""

    lane: int
    start: int
    stop: int
