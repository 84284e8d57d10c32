"""Shuffle of a store's samples: a pure function of (seed, epoch, manifest, lanes).

An epoch permutes the shards and cuts their sequence into lanes, ranges with equal numbers of samples. Each lane cuts
its own part of the sequence into windows of a bounded size, and permutes the samples inside each window. A batch takes
the same number of samples from each lane. So a process reads only the lanes that its samples are in, holds one or two
windows of each, and computes any batch of any epoch without those before it. Ranks and loader workers do not appear
here, which is why the global batches are the same for any number of them.

Every second lane runs backwards. The shard at a cut is then needed by both of its lanes at the same time, at the start
or at the end of the epoch, and a process that reads both lanes reads it once.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.data.manifest import Manifest
from pipeline.data.permutation import permutation

__all__ = ["LaneOrder", "Position", "Window", "order_lanes"]


@dataclass(frozen=True)
class Position:
    """Position of a run in its data: the next batch is number ``step`` of epoch ``epoch``.

    Args:
        epoch: Number of finished passes over the store.
        step: Number of batches taken in this pass.
        lanes: Number of lanes of the order in which they were taken. Runs of before there were lanes have one.
    """

    epoch: int = 0
    step: int = 0
    lanes: int = 1


class Window(NamedTuple):
    """Window of a lane.

    Args:
        first: Index of its first sample in the order of the lane.
        shards: Its shards, as indices in the manifest.
    """

    first: int
    shards: list[int]


def order_lanes(
    manifest: Manifest, seed: int, epoch: int, window: int, shuffle: bool = True, lanes: int = 1
) -> list[LaneOrder]:
    """Return the order of each lane in one epoch.

    Args:
        manifest: The store's manifest.
        seed: The run's seed.
        epoch: Number of the epoch.
        window: Largest size of the windows of all lanes together, in bytes of decoded samples. A window has one shard,
            or the part of one that is in its lane, at least.
        shuffle: False for the plain order of the store, cut into lanes.
        lanes: Number of lanes, at most that of the shards.

    Example:
        >>> from pipeline.data.manifest import Shard, Source
        >>> shards = tuple(Shard(f"{i}.tar", num_samples=3, bytes=1, sha256="") for i in range(4))
        >>> manifest = Manifest(8, 1, "blocks", None, Source("digits"), num_samples=12, shards=shards)
        >>> [lane] = order_lanes(manifest, seed=0, epoch=0, window=384)
        >>> shard, index = lane.samples(0, 12)
        >>> sorted(zip(shard.tolist(), index.tolist()))[:4]
        [(0, 0), (0, 1), (0, 2), (1, 0)]
        >>> [lane.samples(0, 4)[0].tolist() for lane in order_lanes(manifest, 0, 0, 0, shuffle=False, lanes=3)]
        [[0, 0, 0, 1], [2, 2, 1, 1], [2, 3, 3, 3]]
    """
    key = (seed, epoch)
    shards = np.arange(len(manifest.shards))
    if shuffle:
        shards = permutation(len(shards), *key)
    edges = np.cumsum([0, *(manifest.shards[shard].num_samples for shard in shards)])
    cuts = [int(edges[-1]) * lane // lanes for lane in range(lanes + 1)]
    orders = []
    for lane, (start, stop) in enumerate(itertools.pairwise(cuts)):
        inside = slice(np.searchsorted(edges, start, side="right") - 1, np.searchsorted(edges, stop))
        begins, ends = np.maximum(edges[:-1][inside], start), np.minimum(edges[1:][inside], stop)
        parts = _Parts(shards[inside], begins - edges[:-1][inside], ends - begins)
        if lane % 2:
            parts = _Parts(*(column[::-1] for column in parts))
        # The one lane of before there were lanes has the key of then.
        suffix = (lane + 1,) if lanes > 1 else ()
        orders.append(LaneOrder(parts, window // lanes // manifest.sample_bytes, key if shuffle else None, suffix))
    return orders


class _Parts(NamedTuple):
    """Parts of shards, in order: index of each shard in the manifest, index of the first sample there, and number."""

    shards: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray


class LaneOrder:
    """Order of the samples of one lane in one epoch; see ``order_lanes``.

    Args:
        parts: Parts of shards.
        window: Largest number of samples of a window that has more than one part.
        key: Seed and epoch of the permutations, or None for no permutation.
        suffix: End of the key of each permutation.
    """

    def __init__(self, parts: _Parts, window: int, key: tuple[int, int] | None, suffix: tuple[int, ...]) -> None:
        self._parts, self._key, self._suffix = parts, key, suffix
        # The first part of each window, as an index of the parts.
        first_parts = [0]
        in_window = 0
        for index, count in enumerate(parts.counts.tolist()):
            if in_window and in_window + count > window:
                first_parts.append(index)
                in_window = 0
            in_window += count
        self._first_parts = [*first_parts, len(parts.counts)]
        # A list, for in one so short Python's own search is ten times as fast as NumPy's.
        self._first_samples: list[int] = np.concatenate([[0], np.cumsum(parts.counts)])[self._first_parts].tolist()
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
        pieces = []
        for window in windows:
            shard, index = self._window(window)
            offset = self._first_samples[window]
            inside = slice(max(start - offset, 0), min(stop - offset, len(shard)))
            pieces.append((shard[inside], index[inside]))
        # A batch is inside one window or crosses into the next: no other is needed again.
        self._windows = {window: self._windows[window] for window in windows}
        if len(pieces) == 1:
            return pieces[0]
        shards, indices = zip(*pieces, strict=True)
        return np.concatenate(shards), np.concatenate(indices)

    def shards(self, start: int, stop: int) -> list[int]:
        """Return the shards of the windows that hold the samples ``start`` to ``stop``, as indices in the manifest."""
        windows = self._windows_of(start, stop)
        return self._in_windows(windows)

    def windows_after(self, stop: int, end: int) -> Iterator[Window]:
        """Yield the windows after the one that holds the sample before ``stop``.

        Args:
            stop: Index in the order, or the one after the last; 0 begins with the first window.
            end: Index after the last sample that is read.
        """
        last = self._windows_of(0, end)[-1]
        first = self._windows_of(0, stop)[-1] + 1 if stop else 0
        for window in range(first, last + 1):
            yield Window(self._first_samples[window], self._in_windows(range(window, window + 1)))

    def _in_windows(self, windows: range) -> list[int]:
        return self._parts.shards[self._first_parts[windows[0]] : self._first_parts[windows[-1] + 1]].tolist()

    def _windows_of(self, start: int, stop: int) -> range:
        return range(bisect.bisect(self._first_samples, start) - 1, bisect.bisect(self._first_samples, stop - 1))

    def _window(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        if window not in self._windows:
            inside = slice(self._first_parts[window], self._first_parts[window + 1])
            shards, firsts, counts = (column[inside] for column in self._parts)
            shard = np.repeat(shards, counts)
            index = np.concatenate([np.arange(first, first + n) for first, n in zip(firsts, counts, strict=True)])
            if self._key is not None:
                # Counted from one: the permutation of the shards has the key without a window.
                mixed = permutation(len(shard), *self._key, window + 1, *self._suffix)
                shard, index = shard[mixed], index[mixed]
            self._windows[window] = shard, index
        return self._windows[window]
