"""Shuffle of a store's samples: a pure function of (seed, epoch, manifest).

An epoch permutes the shards, cuts their sequence into windows of a bounded size, and permutes the samples inside each
window. So a reader holds one or two windows in memory, whatever the size of the store, and computes any batch of any
epoch without those before it. Ranks and loader workers do not appear here, which is why the global batches are the
same for any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.permutation import permutation

__all__ = ["EpochOrder", "Position"]


@dataclass(frozen=True)
class Position:
    """Position of a run in its data: the next batch is number ``step`` of epoch ``epoch``.

    Args:
        epoch: Number of finished passes over the store.
        step: Number of batches taken in this pass.
    """

    epoch: int = 0
    step: int = 0


class EpochOrder:
    """Order of the samples in one epoch.

    Args:
        manifest: The store's manifest.
        seed: The run's seed.
        epoch: Number of the epoch.
        window: Largest size of a window of shards, in bytes of decoded samples. A window has one shard at least.
        shuffle: False for the plain order of the store.

    Example:
        >>> from pipeline.data.manifest import Shard, Source
        >>> shards = tuple(Shard(f"{i}.tar", num_samples=3, bytes=1, sha256="") for i in range(4))
        >>> manifest = Manifest(8, 1, "blocks", None, Source("digits"), num_samples=12, shards=shards)
        >>> shard, index = EpochOrder(manifest, seed=0, epoch=0, window=384).samples(0, 12)
        >>> sorted(zip(shard.tolist(), index.tolist()))[:4]
        [(0, 0), (0, 1), (0, 2), (1, 0)]
    """

    def __init__(self, manifest: Manifest, seed: int, epoch: int, window: int, shuffle: bool = True) -> None:
        self._key = (seed, epoch)
        self._shuffle = shuffle
        shards = np.arange(len(manifest.shards))
        self._shards = permutation(len(shards), *self._key) if shuffle else shards
        self._counts = np.array([manifest.shards[shard].num_samples for shard in self._shards], np.int64)
        # The first shard of each window, as an index of the permuted sequence of shards.
        first_shards = [0]
        in_window = 0
        for index, count in enumerate(self._counts):
            if in_window and (in_window + count) * manifest.sample_bytes > window:
                first_shards.append(index)
                in_window = 0
            in_window += int(count)
        self._first_shards = np.array([*first_shards, len(shards)])
        self._first_samples = np.concatenate([[0], np.cumsum(self._counts)])[self._first_shards]
        self._windows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def samples(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples from ``start`` to ``stop`` in the order.

        Args:
            start: Index of the first one.
            stop: Index after the last one.

        Returns:
            For each sample the index of its shard in the manifest, int64 (n,), and its index in that shard, int64 (n,).
        """
        windows = self._windows_of(start, stop)
        parts = []
        for window in windows:
            shard, index = self._window(window)
            offset = self._first_samples[window]
            inside = slice(max(start - offset, 0), min(stop - offset, len(shard)))
            parts.append((shard[inside], index[inside]))
        # A batch is inside one window or crosses into the next: no other is needed again.
        self._windows = {window: self._windows[window] for window in windows}
        shards, indices = zip(*parts, strict=True)
        return np.concatenate(shards), np.concatenate(indices)

    def shards(self, start: int, stop: int) -> list[int]:
        """Return the shards of the windows that hold the samples ``start`` to ``stop``, as indices in the manifest."""
        windows = self._windows_of(start, stop)
        return self._in_windows(windows)

    def shards_after(self, stop: int, end: int, at_least: int) -> list[int]:
        """Return the shards of the next windows after the one that holds the sample before ``stop``.

        Args:
            stop: Index in the order, or the one after the last; 0 begins with the first window.
            end: Index after the last sample that is read.
            at_least: Smallest number of shards to return, as far as the windows up to ``end`` have them.

        Returns:
            Whole windows, as indices in the manifest.
        """
        last = self._windows_of(0, end)[-1]
        first = self._windows_of(0, stop)[-1] + 1 if stop else 0
        shards: list[int] = []
        for window in range(first, last + 1):
            if len(shards) >= at_least:
                break
            shards += self._in_windows(range(window, window + 1))
        return shards

    def _in_windows(self, windows: range) -> list[int]:
        return self._shards[self._first_shards[windows[0]] : self._first_shards[windows[-1] + 1]].tolist()

    def _windows_of(self, start: int, stop: int) -> range:
        first, last = np.searchsorted(self._first_samples, [start, stop - 1], side="right") - 1
        return range(int(first), int(last) + 1)

    def _window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        if window not in self._windows:
            inside = slice(self._first_shards[window], self._first_shards[window + 1])
            counts = self._counts[inside]
            shard = np.repeat(self._shards[inside], counts)
            index = np.concatenate([np.arange(count) for count in counts])
            if self._shuffle:
                # Counted from one: the permutation of the shards has the key without a window.
                mixed = permutation(len(shard), *self._key, window + 1)
                shard, index = shard[mixed], index[mixed]
            self._windows[window] = shard, index
        return self._windows[window]
