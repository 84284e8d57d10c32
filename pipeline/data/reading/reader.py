"""Batches for training, read from the shards, a window of them in memory at a time.

Which samples a batch holds is fixed by `pipeline.data.reading.batch_order`, so batches are the same for any number of
loader workers, and a reader built at a position gives what an uninterrupted one would have given.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from multiprocessing import util
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.reading.batch_order import WINDOW_BYTES, Batch, BatchOrder
from pipeline.data.reading.fault_tolerance import FaultTolerantShards
from pipeline.data.reading.shard import DecodedShard
from pipeline.data.reading.shuffle import Position
from pipeline.data.store import Store, is_process_local
from pipeline.runtime.errors import UserError
from pipeline.runtime.processes import exit_with_parent

__all__ = ["CACHE_BYTES", "Reader", "iter_images", "load_images", "load_last_images", "load_rows"]

CACHE_BYTES = 512 * 2**20


class Reader:
    """Batches of a store, for ever: epoch after epoch, from a position on.

    Every iterator starts at the reader's position. With loader workers, each holds the shards of the current window and
    its own cache, so the memory of a rank is `num_workers` times that of one.

    Args:
        store: The store.
        batch_size: Size of the global batch, over all ranks. Must be a multiple of `world_size`.
        rank: This rank, from 0.
        world_size: Number of ranks.
        seed: Seed of the order.
        position: Where to begin.
        num_workers: Number of processes that read ahead for this rank. 0 reads in the calling process.
        shuffle: False for the plain order of the store.
        window: Largest size of a window of shards, in bytes of decoded samples. They are mixed inside a window, so a
            larger one mixes better and needs more memory. It is part of what fixes the order.
        cache: Largest size of the shards kept in memory by each process, in bytes. A smaller store is read once.
        max_bad_shards: How many shards may turn out bad, in each process that reads; see
            `pipeline.data.reading.fault_tolerance`.
        read_ahead: How many shards each process fetches before they are wanted; by default those of a window of a
            network storage, and none of others. It needs memory for them. See `pipeline.data.reading.prefetch`.
        held_out: Samples at the end of the store that are in no batch.

    Raises:
        UserError: If the batch size is no multiple of the number of ranks, the store is smaller than a batch, or a
            number is out of its range.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/reader", resolution=8, channels=1)
        >>> reader = Reader(open_store("memory://docs/reader"), batch_size=128)
        >>> reader.batches_per_epoch
        14
        >>> batch = next(iter(reader))
        >>> batch.images.shape, batch.position
        (torch.Size([128, 1, 8, 8]), Position(epoch=0, step=1))
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        position: Position | None = None,
        num_workers: int = 0,
        shuffle: bool = True,
        window: int = WINDOW_BYTES,
        cache: int = CACHE_BYTES,
        max_bad_shards: int = 0,
        read_ahead: int | None = None,
        held_out: int = 0,
    ) -> None:
        start = position or Position()
        self._order = BatchOrder(store, batch_size, rank, world_size, seed, start, shuffle, window, held_out)
        if num_workers < 0:
            raise UserError("a number of workers is 0 or more: choose another")
        if num_workers and is_process_local(store.fs):
            raise UserError(f"loader workers cannot see the store {store.url}: read it with 0 workers")
        self.store = store
        self.batches_per_epoch = self._order.batches_per_epoch
        self.position = self._order.start
        self._batches = _Batches(self._order, FaultTolerantShards(store, max_bad_shards, read_ahead), cache, read_ahead)
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        """Gives batches for ever, from the reader's position on."""
        workers = {}
        if self._num_workers:
            # Not fork: this process may hold threads and a CUDA context, and neither survives one. Not a fork server:
            # it keeps the environment of its start, and so old credentials.
            workers = {"multiprocessing_context": "spawn", "prefetch_factor": 4, "worker_init_fn": _begin}
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._order.positions(),
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own, or each iterator would draw from torch's and move every run's random numbers.
            generator=torch.Generator(),
            **workers,
        )
        try:
            for batch in loader:
                if isinstance(batch, _Failure):
                    raise UserError(batch.message)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a loader worker of the store {self.store.url} was killed, most likely for want of memory: "
                "use fewer workers or a smaller batch"
            ) from error
        finally:
            self._batches.close()


def _begin(_worker: int) -> None:
    """Makes a loader worker end with its parent, and one that is done without taking its libraries down.

    That has been seen to go wrong: C++ aborts a process whose threads outlive their owner, and the training process
    is then told that a worker was killed.
    """
    exit_with_parent()
    util.Finalize(None, os._exit, (0,), exitpriority=-100)  # after multiprocessing's own, which empty the queues


class _Failure(NamedTuple):
    """A user's error on its way out of a loader worker, which would wrap an exception in its traceback."""

    message: str


class _Batches(Dataset[Batch | _Failure]):
    """The batch at each position, for one rank."""

    def __init__(self, order: BatchOrder, shards: FaultTolerantShards, cache: int, read_ahead: int | None) -> None:
        self._shards = _Shards(shards, cache)
        self._manifest = shards.store.manifest
        self._order = order
        self._ahead = 1 if read_ahead is None else read_ahead

    def __getitem__(self, position: Position) -> Batch | _Failure:
        try:
            images, labels = self._read(position)
        except UserError as error:
            return _Failure(str(error))
        after = self._order.after(position)
        labels = None if labels is None else torch.from_numpy(labels)
        return Batch(torch.from_numpy(images), labels, after, self._shards.all.notes, len(self._shards.all.bad))

    def close(self) -> None:
        self._shards.all.close()

    def _read(self, position: Position) -> tuple[np.ndarray, np.ndarray | None]:
        shards, indices = self._order.samples(position)
        images = np.empty((len(shards), *self._manifest.sample_shape), self._manifest.dtype)
        labels = np.empty(len(shards), np.int64) if self._manifest.labels is not None else None
        wanted, windows = np.unique(shards).tolist(), self._order.shards(position)
        self._shards.keep = set(windows)
        self._shards.coming = [*wanted, *windows, *self._order.shards_after(position, self._ahead)]
        for shard in wanted:
            places = np.flatnonzero(shards == shard)
            contents = self._shards[shard]
            images[places] = contents.gather(indices[places])
            if labels is not None:
                labels[places] = contents.labels[indices[places]]
        return images, labels


class _Shards:
    """The shards last used, as many as fit in a number of bytes; those in `keep` always.

    `coming` are those that will be wanted, in their order.
    """

    def __init__(self, shards: FaultTolerantShards, limit: int) -> None:
        self.all = shards
        self._limit = limit
        self._contents: OrderedDict[int, DecodedShard] = OrderedDict()
        self.keep: set[int] = set()
        self.coming: list[int] = []

    def __getitem__(self, shard: int) -> DecodedShard:
        if shard not in self._contents:
            then = [other for other in self.coming if other not in self._contents]
            self._contents[shard] = self.all.read(shard, then)
            excess = sum(contents.nbytes for contents in self._contents.values()) - self._limit
            for old in [old for old in self._contents if old not in self.keep]:
                if excess <= 0:
                    break
                excess -= self._contents.pop(old).nbytes
        self._contents.move_to_end(shard)
        return self._contents[shard]

    def __getstate__(self) -> dict[str, object]:
        # A loader worker fills its own.
        return self.__dict__ | {"_contents": OrderedDict()}


def _as_it_is(batch: Batch | _Failure) -> Batch | _Failure:
    return batch


def iter_images(
    store: Store, batch_size: int, shards: FaultTolerantShards | None = None, limit: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """All images or rows of a store once, in store order, one shard in memory at a time, and those that are read ahead.

    Args:
        store: The store.
        batch_size: Number of images or rows at a time. The last of each shard are fewer.
        shards: Reads the shards; by default one that takes no bad one.
        limit: Largest number of images or rows, the first, or None for all.

    Yields:
        Images, uint8 (n, C, H, W), or rows, float32 (n, D), and labels, int64 (n,), or None where the store has none.

    Raises:
        UserError: If a shard is damaged.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/iter", resolution=8, channels=1)
        >>> sum(len(images) for images, _ in iter_images(open_store("memory://docs/iter"), 256))
        1797
    """
    shards = FaultTolerantShards(store) if shards is None else shards
    left = store.manifest.num_samples if limit is None else limit
    firsts = np.cumsum([0, *(shard.num_samples for shard in store.manifest.shards[:-1])])
    wanted = range(int(np.searchsorted(firsts, left)))
    try:
        for place in wanted:
            contents = shards.read(place, then=wanted[place + 1 :])
            count = min(store.manifest.shards[place].num_samples, left)
            for start in range(0, count, batch_size):
                indices = np.arange(start, min(start + batch_size, count))
                labels = None if contents.labels is None else torch.from_numpy(contents.labels[indices])
                yield torch.from_numpy(contents.gather(indices)), labels
            left -= count
    finally:
        shards.close()


def load_images(
    store: Store,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    shards: FaultTolerantShards | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first images of a store, in store order. The writer has mixed them, so the first are a sample of all.

    Rows come as well, but in the order of their publisher: the first are no sample of all.

    Args:
        store: The store.
        limit: Largest number of images, or None for all.
        device: Where to put them. One shard at a time is in the memory of the processor on its way there.
        shards: Reads the shards; by default one that takes no bad one.

    Returns:
        Images, uint8 (N, C, H, W), or rows, float32 (N, D), and labels, int64 (N,), or None where the store has none.

    Raises:
        UserError: If a shard is damaged, or the device has no memory for so many.
    """
    manifest = store.manifest
    wanted = manifest.num_samples if limit is None else min(limit, manifest.num_samples)
    dtype = torch.float32 if manifest.encoding == "rows" else torch.uint8
    # Before anything is read: a store that is too large is refused at once.
    try:
        images = torch.empty((wanted, *manifest.sample_shape), dtype=dtype, device=device)
        labels = None if manifest.labels is None else torch.empty(wanted, dtype=torch.int64, device=device)
    except RuntimeError as error:
        raise UserError(
            f"{wanted} {manifest.unit} of the store {store.url} take {wanted * manifest.sample_bytes / 2**30:.1f} GiB, "
            f"more memory than {device} has free: take fewer, or train with "
            "data.device_resident=false, which reads as it goes"
        ) from error
    done = 0
    for batch, batch_labels in iter_images(store, 1024, shards, wanted):
        images[done : done + len(batch)] = batch
        if labels is not None:
            labels[done : done + len(batch)] = batch_labels
        done += len(batch)
    return images, labels


def load_last_images(store: Store, count: int, shards: FaultTolerantShards | None = None) -> torch.Tensor:
    """The last images of a store, those that a reader with ``held_out=count`` leaves out.

    Args:
        store: The store.
        count: How many.
        shards: Reads the shards; by default one that takes no bad one.

    Returns:
        Images, uint8 (count, C, H, W), in store order.

    Raises:
        UserError: If a shard is damaged, or the store has no more images than that.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/last", resolution=8, channels=1)
        >>> store = open_store("memory://docs/last")
        >>> torch.equal(load_last_images(store, 5), load_images(store)[0][-5:])
        True
    """
    kept = store.manifest.without_last(count)
    shards = FaultTolerantShards(store) if shards is None else shards
    parts = [torch.empty((0, *store.manifest.sample_shape), dtype=torch.uint8)]
    try:
        for index, shard in enumerate(store.manifest.shards):
            first = kept.shards[index].num_samples if index < len(kept.shards) else 0
            if first < shard.num_samples:
                parts.append(torch.from_numpy(shards.read(index).gather(np.arange(first, shard.num_samples))))
    finally:
        shards.close()
    return torch.cat(parts)


def load_rows(store: Store) -> torch.Tensor:
    """All rows of a store of a table, in the order of their publisher.

    Args:
        store: A store of rows.

    Returns:
        Rows, float32 (N, D).

    Raises:
        UserError: If the store holds images, or a shard is damaged.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(sources.make("toy"), "memory://docs/rows")
        >>> load_rows(open_store("memory://docs/rows")).shape
        torch.Size([10000, 3])
    """
    if store.manifest.encoding != "rows":
        raise UserError(f"the store {store.url} holds images, not rows of a table: give the store of a table")
    return load_images(store)[0]
