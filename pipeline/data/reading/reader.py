"""Reader of batches for training, with a window of shards in memory at a time.

The samples of a batch are fixed by ``pipeline.data.reading.batch_order``, so batches are the same for any number of
loader workers, and a reader built at a position yields the same as an uninterrupted one. Loader workers share out the
lanes of their rank, and each reads those that are its own.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from multiprocessing import util
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.reading.batch_order import WINDOW_BYTES, Batch, BatchOrder, BatchSpec
from pipeline.data.reading.fault_tolerance import FaultTolerantShards
from pipeline.data.reading.shard import DecodedShard
from pipeline.data.reading.shuffle import Position
from pipeline.data.store import Store, is_process_local
from pipeline.runtime.errors import UserError
from pipeline.runtime.processes import exit_with_parent

__all__ = ["CACHE_BYTES", "Reader", "iter_images", "load_images", "load_last_images", "load_rows"]

CACHE_BYTES = 512 * 2**20


class Reader:
    """Endless batches of a store: epoch after epoch, from a position on.

    Every iterator starts at the reader's position. Each loader worker holds the shards of the current windows of its
    lanes and a cache of its own, so the memory of a rank grows with ``num_workers`` by the caches alone. Workers that
    are more than the rank's lanes take turns, and then read the same shards.

    Args:
        store: The store.
        spec: Settings of the batches.
        num_workers: Number of loader processes of this rank. 0 reads in the calling process.
        cache_bytes: Largest size of the shards that each process keeps in memory, in bytes. A store that is smaller is
            read once.
        max_bad_shards: Number of shards that may be bad, in each process that reads; see
            ``pipeline.data.reading.fault_tolerance``.
        prefetch_shards: Number of shards that each process fetches before they are needed, and has memory for.
            ``None`` (default) takes those of a window of a network storage, and none of others; see
            ``pipeline.data.reading.prefetch``.

    Raises:
        UserError: If the store is smaller than a batch, the number of workers is negative, or they cannot see the
            store.

    Example:
        >>> from pipeline.data import BatchSpec, open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/reader", resolution=8, channels=1)
        >>> reader = Reader(open_store("memory://docs/reader"), BatchSpec(batch_size=128))
        >>> reader.batches_per_epoch
        14
        >>> batch = next(iter(reader))
        >>> batch.images.shape, batch.position
        (torch.Size([128, 1, 8, 8]), Position(epoch=0, step=1, lanes=1))
    """

    def __init__(
        self,
        store: Store,
        spec: BatchSpec,
        *,
        num_workers: int = 0,
        cache_bytes: int = CACHE_BYTES,
        max_bad_shards: int = 0,
        prefetch_shards: int | None = None,
    ) -> None:
        order = BatchOrder(store, spec)
        if num_workers < 0:
            raise UserError("a number of workers is 0 or more: choose another")
        if num_workers and is_process_local(store.fs):
            raise UserError(f"loader workers cannot see the store {store.url}: read it with 0 workers")
        self.store = store
        self.batches_per_epoch = order.batches_per_epoch
        self.position = order.position
        groups = order.count_groups(num_workers)
        self._num_workers = num_workers // groups
        self._groups: list[_Batches] = []
        for part in spec.split(groups):
            of_group = BatchOrder(store, part)
            room = max(WINDOW_BYTES, of_group.window_bytes)
            shards = FaultTolerantShards(store, max_bad_shards, prefetch_shards, room)
            ahead = 1 if prefetch_shards is None else prefetch_shards
            self._groups.append(_Batches(of_group, _CachedShards(shards, cache_bytes), ahead))

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end, from the reader's position on."""
        try:
            for parts in zip(*map(self._loader, self._groups), strict=True):
                yield _merge([_raise_failure(part) for part in parts])
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a loader worker of the store {self.store.url} was killed, most likely out of memory: "
                "use fewer workers or a smaller batch"
            ) from error
        finally:
            for group in self._groups:
                group.close()

    def _loader(self, group: _Batches) -> DataLoader[Batch | _Failure]:
        return DataLoader(
            group,
            batch_size=None,
            sampler=group.order.positions(),
            num_workers=self._num_workers,
            # Without a batch size torch passes the function one sample; its annotation has the list of a batch only.
            collate_fn=_identity,  # pyright: ignore[reportArgumentType]
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: each iterator would otherwise draw from torch's and shift a run's random numbers.
            generator=torch.Generator(),
            # Not fork: this process may hold threads and a CUDA context, and neither survives one. Not a fork server:
            # it keeps the environment of its start, and so old credentials.
            multiprocessing_context="spawn" if self._num_workers else None,
            prefetch_factor=4 if self._num_workers else None,
            worker_init_fn=_initialize_worker if self._num_workers else None,
        )


def _initialize_worker(_worker: int) -> None:
    """Make a loader worker exit with its parent, and without a shutdown of its libraries.

    C++ aborts a process whose threads outlive their owner, and the training process would then report that a worker
    was killed.
    """
    exit_with_parent()
    # After multiprocessing's own finalizers, which empty the queues.
    util.Finalize(None, os._exit, (0,), exitpriority=-100)


class _Failure(NamedTuple):
    """Message of a user's error in a loader worker, which would wrap an exception in its traceback."""

    message: str


class _Batches(Dataset[Batch | _Failure]):
    """Batch at each position, for one rank or for a part of one."""

    def __init__(self, order: BatchOrder, shards: _CachedShards, prefetch_shards: int) -> None:
        self.order = order
        self._shards = shards
        self._manifest = shards.source.store.manifest
        self._prefetch_shards = prefetch_shards

    def __getitem__(self, position: Position) -> Batch | _Failure:
        try:
            images, labels = self._read(position)
        except UserError as error:
            return _Failure(str(error))
        after = self.order.after(position)
        source = self._shards.source
        return Batch(torch.from_numpy(images), _to_tensor(labels), after, source.notes, len(source.bad))

    def close(self) -> None:
        self._shards.source.close()

    def _read(self, position: Position) -> tuple[np.ndarray, np.ndarray | None]:
        shards, indices = self.order.samples(position)
        images = np.empty((len(shards), *self._manifest.sample_shape), self._manifest.dtype)
        labels = np.empty(len(shards), np.int64) if self._manifest.labels is not None else None
        of_batch = np.unique(shards).tolist()
        if not all(index in self._shards for index in of_batch):
            of_windows = self.order.shards(position)
            upcoming = [*of_batch, *of_windows, *self.order.shards_after(position, self._prefetch_shards)]
            self._shards.plan(pinned=set(of_windows), upcoming=upcoming)
        for index in of_batch:
            rows = _rows_of(shards == index)
            shard = self._shards[index]
            images[rows] = shard.gather(indices[rows])
            if labels is not None and shard.labels is not None:
                labels[rows] = shard.labels[indices[rows]]
        return images, labels


def _rows_of(mask: np.ndarray) -> np.ndarray | slice:
    """Return the rows of a mask, as a slice where they are next to one another, for which a copy is faster."""
    rows = np.flatnonzero(mask)
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


class _CachedShards:
    """LRU cache of decoded shards, by their indices in the manifest.

    Args:
        source: Reads the shards.
        limit: Largest size of the cached shards, in bytes. Those that are pinned may exceed it.
    """

    def __init__(self, source: FaultTolerantShards, limit: int) -> None:
        self.source = source
        self._limit = limit
        self._cached: OrderedDict[int, DecodedShard] = OrderedDict()
        self._pinned: set[int] = set()
        self._upcoming: list[int] = []

    def plan(self, pinned: set[int], upcoming: list[int]) -> None:
        """Set the shards that are never evicted, and those that will be read, in their order."""
        self._pinned, self._upcoming = pinned, upcoming

    def __contains__(self, index: int) -> bool:
        return index in self._cached

    def __getitem__(self, index: int) -> DecodedShard:
        if index not in self._cached:
            then = [other for other in self._upcoming if other not in self._cached]
            self._cached[index] = self.source.read(index, then)
            self._evict()
        self._cached.move_to_end(index)
        return self._cached[index]

    def _evict(self) -> None:
        excess = sum(shard.nbytes for shard in self._cached.values()) - self._limit
        for oldest in [index for index in self._cached if index not in self._pinned]:
            if excess <= 0:
                break
            excess -= self._cached.pop(oldest).nbytes

    def __getstate__(self) -> dict[str, Any]:
        # A loader worker fills a cache of its own.
        return self.__dict__ | {"_cached": OrderedDict()}


def _identity(batch: Batch | _Failure) -> Batch | _Failure:
    return batch


def _raise_failure(batch: Batch | _Failure) -> Batch:
    if isinstance(batch, _Failure):
        raise UserError(batch.message)
    return batch


def _merge(parts: list[Batch]) -> Batch:
    """Return the batch of which several processes have read a part each."""
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        _concatenate([part.images for part in parts]),
        _concatenate(labels) if labels else None,
        parts[0].position,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        sum(part.bad_shards for part in parts),
    )


def _concatenate(parts: list[torch.Tensor]) -> torch.Tensor:
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    # The copy to a GPU would wait for it if it were not pinned.
    return torch.cat(parts, out=parts[0].new_empty(shape, pin_memory=parts[0].is_pinned()))


def _to_tensor(labels: np.ndarray | None) -> torch.Tensor | None:
    return None if labels is None else torch.from_numpy(labels)


def iter_images(
    store: Store, batch_size: int, shards: FaultTolerantShards | None = None, limit: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield the images or rows of a store once, in store order, with one shard and the prefetched ones in memory.

    Args:
        store: The store.
        batch_size: Number of images or rows at a time. The last of each shard are fewer.
        shards: Reads the shards. By default no bad shard is allowed.
        limit: Largest number of images or rows, from the first on. ``None`` (default) for all.

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
    required = range(int(np.searchsorted(firsts, left)))
    try:
        for index in required:
            shard = shards.read(index, then=required[index + 1 :])
            count = min(store.manifest.shards[index].num_samples, left)
            for start in range(0, count, batch_size):
                indices = np.arange(start, min(start + batch_size, count))
                labels = None if shard.labels is None else shard.labels[indices]
                yield torch.from_numpy(shard.gather(indices)), _to_tensor(labels)
            left -= count
    finally:
        shards.close()


def load_images(
    store: Store,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    shards: FaultTolerantShards | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Load the first images of a store, in store order. The writer has mixed them, so the first are a sample of all.

    It loads rows too, but these are in the order of their publisher: the first are no sample of all.

    Args:
        store: The store.
        limit: Largest number of images. ``None`` (default) for all.
        device: Device of the result. One shard at a time is in the memory of the processor in between.
        shards: Reads the shards. By default no bad shard is allowed.

    Returns:
        Images, uint8 (N, C, H, W), or rows, float32 (N, D), and labels, int64 (N,), or None where the store has none.

    Raises:
        UserError: If a shard is damaged, or the device is out of memory.
    """
    manifest = store.manifest
    count = manifest.num_samples if limit is None else min(limit, manifest.num_samples)
    dtype = torch.float32 if manifest.encoding == "rows" else torch.uint8
    # Before anything is read: a store that is too large is refused at once.
    try:
        images = torch.empty((count, *manifest.sample_shape), dtype=dtype, device=device)
        labels = None if manifest.labels is None else torch.empty(count, dtype=torch.int64, device=device)
    except RuntimeError as error:
        raise UserError(
            f"{count} {manifest.unit} of the store {store.url} take {count * manifest.sample_bytes / 2**30:.1f} GiB, "
            f"more memory than {device} has free: take fewer, or train with "
            "data.device_resident=false, which reads as it goes"
        ) from error
    done = 0
    for batch, batch_labels in iter_images(store, 1024, shards, count):
        images[done : done + len(batch)] = batch
        if labels is not None and batch_labels is not None:
            labels[done : done + len(batch)] = batch_labels
        done += len(batch)
    return images, labels


def load_last_images(store: Store, count: int, shards: FaultTolerantShards | None = None) -> torch.Tensor:
    """Load the last images of a store, those that a reader with ``held_out=count`` leaves out.

    Args:
        store: The store.
        count: Number of images.
        shards: Reads the shards. By default no bad shard is allowed.

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
    remaining = store.manifest.without_last(count).shards
    shards = FaultTolerantShards(store) if shards is None else shards
    parts = [torch.empty((0, *store.manifest.sample_shape), dtype=torch.uint8)]
    try:
        for index, shard in enumerate(store.manifest.shards):
            first = remaining[index].num_samples if index < len(remaining) else 0
            if first < shard.num_samples:
                parts.append(torch.from_numpy(shards.read(index).gather(np.arange(first, shard.num_samples))))
    finally:
        shards.close()
    return torch.cat(parts)


def load_rows(store: Store) -> torch.Tensor:
    """Load all rows of a table's store, in the order of their publisher.

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
