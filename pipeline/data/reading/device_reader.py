"""The same batches as the reader's, of a store that is held on the device whole.

The shards are read once, with the reader's checks, and the images lie on the device as uint8 from then on. A batch is
what `pipeline.data.reading.batch_order` says it is, so the order, the ranks' parts and the positions are the reader's;
it is had by indexing on the device, and only the indices travel there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.data.reading.batch_order import WINDOW_BYTES, Batch, BatchOrder
from pipeline.data.reading.fault_tolerance import FaultTolerantShards
from pipeline.data.reading.reader import CACHE_BYTES, load_images
from pipeline.data.reading.shuffle import Position
from pipeline.data.store import Store

__all__ = ["DeviceResidentReader", "fits_on_device"]


class DeviceResidentReader:
    """Batches of a store that is held on a device, for ever: epoch after epoch, from a position on.

    Each rank holds the whole store, though it takes a part of each batch only: over the epochs it takes all of it.
    Several ranks on one machine so hold it several times, on a GPU each or in the machine's memory, which is nothing
    for a small store and what `fits_on_device` bounds for a larger one.

    Args:
        store: The store. It is read when the first batch is asked for, so a run that only samples does not read it.
        device: Where it is held and the batches are.
        batch_size: As all that follows, what it is to `Reader`.
        rank: This rank, from 0.
        world_size: Number of ranks.
        seed: Seed of the order.
        position: Where to begin.
        shuffle: False for the plain order of the store.
        window: Largest size of a window of shards, in bytes. Nothing is bounded by it here, but it fixes the order.
        max_bad_shards: How many shards may turn out bad; see `pipeline.data.reading.fault_tolerance`.
        read_ahead: How many shards are fetched before they are wanted, as it is to `Reader`.
        held_out: Samples at the end of the store that are in no batch.

    Raises:
        UserError: If the batch size is no multiple of the number of ranks, the store is smaller than a batch, or a
            number is out of its range; and with the first batch, if the device has no memory for the store or any of
            its shards is damaged.

    Example:
        >>> from pipeline.data import Reader, open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/held", resolution=8, channels=1)
        >>> store = open_store("memory://docs/held")
        >>> held = next(iter(DeviceResidentReader(store, "cpu", batch_size=128)))
        >>> read = next(iter(Reader(store, batch_size=128)))
        >>> torch.equal(held.images, read.images), held.position
        (True, Position(epoch=0, step=1))
    """

    def __init__(
        self,
        store: Store,
        device: torch.device | str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        position: Position | None = None,
        shuffle: bool = True,
        window: int = WINDOW_BYTES,
        max_bad_shards: int = 0,
        read_ahead: int | None = None,
        held_out: int = 0,
    ) -> None:
        start = position or Position()
        self._order = BatchOrder(store, batch_size, rank, world_size, seed, start, shuffle, window, held_out)
        self.store = store
        self.batches_per_epoch = self._order.batches_per_epoch
        self.position = self._order.start
        self._device = device
        self._shards = FaultTolerantShards(store, max_bad_shards, read_ahead)
        counts = [shard.num_samples for shard in store.manifest.shards]
        self._first_samples = np.concatenate([[0], np.cumsum(counts)])

    def __iter__(self) -> Iterator[Batch]:
        """Gives batches for ever, from the reader's position on."""
        images, labels = self._held
        for position in self._order.positions():
            shards, indices = self._order.samples(position)
            chosen = torch.from_numpy(self._first_samples[shards] + indices)
            if images.is_cuda:
                # From pinned memory, or the copy would wait for all that the device has still to do.
                chosen = chosen.pin_memory().to(images.device, non_blocking=True)
            # Not `images[chosen]`, which on the CPU goes number by number where this copies image by image.
            batch_labels = None if labels is None else labels.index_select(0, chosen)
            notes, bad = self._shards.notes, len(self._shards.bad)
            yield Batch(images.index_select(0, chosen), batch_labels, self._order.after(position), notes, bad)

    @functools.cached_property
    def _held(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return load_images(self.store, device=self._device, shards=self._shards)


def fits_on_device(store: Store, device: torch.device) -> bool:
    """Whether a store is small enough to be held on a device unasked.

    On a GPU it may take a quarter of the memory that is free, for the rest is wanted by the networks' activations. In
    the processor's memory it may take what a reader's cache would come to hold anyway.

    Args:
        store: The store. Only its manifest is looked at.
        device: Where it would be held.
    """
    most = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else CACHE_BYTES
    return store.manifest.num_samples * store.manifest.sample_bytes <= most
