"""Prefetching of shards, which hides the latency of a remote storage."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.data.reading.batch_order import WINDOW_BYTES
from pipeline.data.reading.shard import DecodedShard, read_shard
from pipeline.data.store import Store

__all__ = ["ShardPrefetcher"]

# More than one, for a single connection to an object storage does not fill the network.
_THREADS = 4


class ShardPrefetcher:
    """Reader of a store's shards that fetches the next ones in threads.

    The results are the same as without: a shard, or the error of reading it now. The threads end when nothing is left
    for them to do and the prefetcher is closed.

    Args:
        store: The store.
        depth: Largest number of shards that are fetched or waiting, in addition to the current one; 0 reads each when
            it is needed. ``None`` (default) takes as many as have room of a network storage, and 0 of all others.
        room: Memory for the shards that are fetched or waiting where ``depth`` is None, decoded, in bytes.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(
        ...     sources.make("digits"), "memory://docs/prefetch", resolution=8, channels=1, samples_per_shard=600
        ... )
        >>> shards = ShardPrefetcher(open_store("memory://docs/prefetch"), depth=1)
        >>> shards.read(0, then=[1, 2]).num_samples, shards.read(1).num_samples
        (600, 600)
        >>> shards.close()
    """

    def __init__(self, store: Store, depth: int | None = None, room: int = WINDOW_BYTES) -> None:
        self._store, self._room = store, room
        # Threads make requests at the same time, which only asynchronous file systems are known to support.
        self._depth = 0 if depth is None and not store.fs.async_impl else depth
        self._pending: dict[int, Future[DecodedShard]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def read(self, index: int, then: Sequence[int] = ()) -> DecodedShard:
        """Read a shard, and start to fetch those that follow.

        Args:
            index: Index of the shard in the manifest.
            then: Indices of those that will be read after it, in their order. Any other pending fetch is canceled.

        Raises:
            UserError: If it is damaged or cannot be reached.
        """
        future = self._pending.pop(index, None)
        self._fetch(then, index)
        # A storage that failed earlier may answer now.
        if future is None or (future.done() and future.exception()):
            return self._read(index)
        return future.result()

    def close(self) -> None:
        """Cancel the pending fetches. A request that is sent already ends with its answer or its timeout."""
        self._pending.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _fetch(self, indices: Sequence[int], current: int) -> None:
        for canceled in [index for index in self._pending if index not in indices]:
            self._pending.pop(canceled).cancel()
        for index in indices:
            if index == current or index in self._pending:
                continue
            if not self._has_room_for(index):
                break
            if self._threads is None:
                self._threads = ThreadPoolExecutor(min(self._depth or _THREADS, _THREADS), "prefetch")
            self._pending[index] = self._threads.submit(self._read, index)

    def _has_room_for(self, index: int) -> bool:
        if self._depth is not None:
            return len(self._pending) < self._depth
        manifest = self._store.manifest
        samples = sum(manifest.shards[shard].num_samples for shard in (*self._pending, index))
        return not self._pending or samples * manifest.sample_bytes <= self._room

    def _read(self, index: int) -> DecodedShard:
        return read_shard(self._store, self._store.manifest.shards[index])

    def __getstate__(self) -> dict[str, object]:
        # A loader worker has threads of its own.
        return self.__dict__ | {"_pending": {}, "_threads": None}
