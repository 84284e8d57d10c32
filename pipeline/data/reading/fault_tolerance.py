"""Fault tolerance of training to shards that cannot be read.

A run of days over an object store meets a shard that was damaged, replaced or deleted since it began. It may continue
without a few: their positions in the order are filled with samples of other shards, so that the number of batches,
their shapes and all samples of other shards stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.data.reading.batch_order import WINDOW_BYTES
from pipeline.data.reading.prefetch import ShardPrefetcher
from pipeline.data.reading.shard import DecodedShard
from pipeline.data.store import Store
from pipeline.runtime.errors import UserError

__all__ = ["FaultTolerantShards"]


class FaultTolerantShards:
    """Shards of a store, with substitutes for those that cannot be read, up to a limit.

    A bad shard's sample i is the sample i modulo n of the next good shard, which has n, in the manifest's order. A
    shard that is bad for one process may be good for another that has read it before; once bad, it is not retried.

    Args:
        store: The store.
        max_bad: Largest number of bad shards; 0 refuses the first.
        prefetch_shards: Number of shards that are fetched before they are needed; see
            ``pipeline.data.reading.prefetch``.
        room: Memory for these where their number is None, in bytes.

    Example:
        >>> from pipeline.data import open_store, sources, write_store
        >>> report = write_store(
        ...     sources.make("digits"), "memory://docs/bad", resolution=8, channels=1, samples_per_shard=600
        ... )
        >>> store = open_store("memory://docs/bad")
        >>> store.fs.rm(store.shard_path(store.manifest.shards[1]))
        >>> shards = FaultTolerantShards(store, max_bad=1)
        >>> shards.read(1).gather(np.arange(5)).shape, len(shards.bad)
        ((5, 1, 8, 8), 1)
    """

    def __init__(
        self, store: Store, max_bad: int = 0, prefetch_shards: int | None = None, room: int = WINDOW_BYTES
    ) -> None:
        self.store = store
        self._prefetcher = ShardPrefetcher(store, prefetch_shards, room)
        self._max_bad = max_bad
        self.bad: dict[int, str] = {}
        """Error of each bad shard, by its index in the manifest."""

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on each bad shard, and on each error of the store's cache."""
        skipped = tuple(f"skipped: {reason}" for reason in self.bad.values())
        return skipped if self.store.cache is None else skipped + self.store.cache.notes

    def read(self, index: int, then: Sequence[int] = ()) -> DecodedShard:
        """Read a shard, or its substitute if it is bad.

        Args:
            index: Index of the shard in the manifest.
            then: Indices of those that will be read after it, in their order.

        Raises:
            UserError: If more shards are bad than allowed, or none can be read.
        """
        shards = self.store.manifest.shards
        if self.bad:
            then = [other for other in then if other not in self.bad]
        for candidate in [*range(index, len(shards)), *range(index)]:
            if candidate in self.bad:
                continue
            try:
                shard = self._prefetcher.read(candidate, then)
            except UserError as error:
                if self._max_bad == 0:
                    raise
                self.bad[candidate] = str(error)
                if len(self.bad) > self._max_bad:
                    raise UserError(
                        f"{error}; it is one more than the data.max_bad_shards={self._max_bad} that may be bad"
                    ) from None
                continue
            return shard if candidate == index else _Substitute(shard, shards[index].num_samples)
        raise UserError(f"no shard of the store {self.store.url} can be read: make the store again")

    def close(self) -> None:
        """Cancel the pending fetches."""
        self._prefetcher.close()


class _Substitute:
    """Shard in place of another that has another number of samples."""

    def __init__(self, shard: DecodedShard, num_samples: int) -> None:
        self._shard = shard
        self.num_samples = num_samples
        self.nbytes = shard.nbytes
        self.labels = None if shard.labels is None else shard.labels[np.arange(num_samples) % shard.num_samples]

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return self._shard.gather(indices % self._shard.num_samples)
