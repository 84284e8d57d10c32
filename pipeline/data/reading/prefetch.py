"""Shards that are read before they are wanted, so that nobody waits for a storage that is far away."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.data.reading.batch_order import WINDOW_BYTES
from pipeline.data.reading.shard import DecodedShard, read_shard
from pipeline.data.store import Store

__all__ = ["ShardPrefetcher"]

_THREADS = 4  # one connection to an object storage carries less than the network does


class ShardPrefetcher:
    """Reads shards of a store, and in threads those that are wanted next.

    What comes out is what would have come without: a shard, or the error of reading it now. The threads end when
    nothing is left for them to do and the reading is closed.

    Args:
        store: The store.
        depth: How many shards may be on their way or wait at most, beside the one that is wanted now; 0 reads each when
            it is wanted. None takes a window's of a network storage, and 0 of all others.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(
        ...     sources.make("digits"), "memory://docs/ahead", resolution=8, channels=1, samples_per_shard=600
        ... )
        >>> ahead = ShardPrefetcher(open_store("memory://docs/ahead"), depth=1)
        >>> ahead.read(0, then=[1, 2]).num_samples, ahead.read(1).num_samples
        (600, 600)
        >>> ahead.close()
    """

    def __init__(self, store: Store, depth: int | None = None) -> None:
        self._store = store
        # What is asked in other threads is asked at once: file systems that are not made for that may not stand it.
        self._depth = 0 if depth is None and not store.fs.async_impl else depth
        self._coming: dict[int, Future[DecodedShard]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def read(self, place: int, then: Sequence[int] = ()) -> DecodedShard:
        """A shard.

        Args:
            place: Its index in the manifest.
            then: Those that will be wanted after it, in their order. Any other that is on its way is given up.

        Raises:
            UserError: If it is damaged or cannot be reached.
        """
        future = self._coming.pop(place, None)
        self._fetch(then, place)
        # A storage that failed before anybody waited may answer now.
        if future is None or (future.done() and future.exception()):
            return self._read(place)
        return future.result()

    def close(self) -> None:
        """Give up what is on its way. A request that has been made ends with its answer, or when its time is up."""
        self._coming.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _fetch(self, places: Sequence[int], now: int) -> None:
        for given_up in [place for place in self._coming if place not in places]:
            self._coming.pop(given_up).cancel()
        for place in places:
            if place == now or place in self._coming:
                continue
            if not self._room(place):
                break
            if self._threads is None:
                self._threads = ThreadPoolExecutor(min(self._depth or _THREADS, _THREADS), "read-ahead")
            self._coming[place] = self._threads.submit(self._read, place)

    def _room(self, place: int) -> bool:
        if self._depth is not None:
            return len(self._coming) < self._depth
        manifest = self._store.manifest
        samples = sum(manifest.shards[shard].num_samples for shard in (*self._coming, place))
        return not self._coming or samples * manifest.sample_bytes <= WINDOW_BYTES

    def _read(self, place: int) -> DecodedShard:
        return read_shard(self._store, self._store.manifest.shards[place])

    def __getstate__(self) -> dict[str, object]:
        # A loader worker has threads of its own.
        return self.__dict__ | {"_coming": {}, "_threads": None}
