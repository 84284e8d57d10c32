"""What becomes of a shard that cannot be read while a model is trained on its store.

A run of days over an object store meets a shard that was damaged, replaced or deleted since it began. It may go on
without a few: their places in the order are filled with samples of other shards, so that the number of batches, their
shapes and all that other shards give stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.data.reading.prefetch import ShardPrefetcher
from pipeline.data.reading.shard import DecodedShard
from pipeline.data.store import Store
from pipeline.runtime.errors import UserError

__all__ = ["FaultTolerantShards"]


class FaultTolerantShards:
    """The shards of a store, with others in place of those that cannot be read, as many as a limit allows.

    A bad shard's sample i is the sample i modulo n of the next good shard, which has n, in the manifest's order. What
    is bad for one process may still be good for another that has read it before; once bad, it is not tried again.

    Args:
        store: The store.
        max_bad: How many may be bad; 0 refuses the first.
        read_ahead: How many are fetched before they are wanted; see `pipeline.data.reading.prefetch`.

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

    def __init__(self, store: Store, max_bad: int = 0, read_ahead: int | None = None) -> None:
        self.store = store
        self._ahead = ShardPrefetcher(store, read_ahead)
        self._max_bad = max_bad
        self.bad: dict[int, str] = {}
        """Why each bad shard is bad, by its index in the manifest."""

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on each bad shard, and on what went wrong with the store's cache."""
        skipped = tuple(f"skipped: {reason}" for reason in self.bad.values())
        return skipped if self.store.cache is None else skipped + self.store.cache.notes

    def read(self, shard: int, then: Sequence[int] = ()) -> DecodedShard:
        """What takes the place of a shard: itself, if it can be read.

        Args:
            shard: Its index in the manifest.
            then: Those that will be wanted after it, in their order.

        Raises:
            UserError: If more shards are bad than may be, or none can be read.
        """
        shards = self.store.manifest.shards
        if self.bad:
            then = [place for place in then if place not in self.bad]
        for place in [*range(shard, len(shards)), *range(shard)]:
            if place in self.bad:
                continue
            try:
                contents = self._ahead.read(place, then)
            except UserError as error:
                if self._max_bad == 0:
                    raise
                self.bad[place] = str(error)
                if len(self.bad) > self._max_bad:
                    raise UserError(
                        f"{error}; it is one more than the data.max_bad_shards={self._max_bad} that may be bad"
                    ) from None
                continue
            return contents if place == shard else _Substitute(contents, shards[shard].num_samples)
        raise UserError(f"no shard of the store {self.store.url} can be read: make the store again")

    def close(self) -> None:
        """Give up what is fetched and not yet wanted."""
        self._ahead.close()


class _Substitute:
    """A shard in the place of another that has another number of samples."""

    def __init__(self, contents: DecodedShard, num_samples: int) -> None:
        self._contents = contents
        self.num_samples = num_samples
        self.nbytes = contents.nbytes
        places = np.arange(num_samples) % contents.num_samples
        self.labels = None if contents.labels is None else contents.labels[places]

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return self._contents.gather(indices % self._contents.num_samples)
