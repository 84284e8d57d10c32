"""Device-resident reader: the same batches as the reader's, of a store that is on the device whole.

The shards are read once, with the reader's checks, and the images are on the device as uint8 from then on. A batch is
fixed by ``pipeline.data.reading.batch_order``, so the order, the ranks' parts and the positions are the reader's. A
batch is an indexing on the device, and only the indices are copied there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.data.reading.batch_order import Batch, BatchOrder, BatchSpec
from pipeline.data.reading.fault_tolerance import FaultTolerantShards
from pipeline.data.reading.reader import CACHE_BYTES, load_images
from pipeline.data.store import Store

__all__ = ["DeviceResidentReader", "fits_on_device"]


class DeviceResidentReader:
    """Endless batches of a store in a device's memory: epoch after epoch, from a position on.

    Each rank holds the whole store, though it takes a part of each batch only: over the epochs it takes all of it.
    Several ranks on one machine so hold it several times, on a GPU each or in the machine's memory, which is nothing
    for a small store and bounded by ``fits_on_device`` for a larger one.

    Args:
        store: The store. It is read when the first batch is requested, so a run that only samples does not read it.
        device: Device of the store's samples and of the batches.
        spec: Settings of the batches. Its window bounds no memory here, but fixes the order.
        max_bad_shards: Number of shards that may be bad; see ``pipeline.data.reading.fault_tolerance``.
        prefetch_shards: Number of shards that are fetched before they are needed, as for ``Reader``.

    Raises:
        UserError: If the store is smaller than a batch; and with the first batch, if the device has no memory for the
            store or any of its shards is damaged.

    Example:
        >>> from pipeline.data import BatchSpec, Reader, open_store, sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/resident", resolution=8, channels=1)
        >>> store, spec = open_store("memory://docs/resident"), BatchSpec(batch_size=128)
        >>> resident, read = next(iter(DeviceResidentReader(store, "cpu", spec))), next(iter(Reader(store, spec)))
        >>> torch.equal(resident.images, read.images), resident.position
        (True, Position(epoch=0, step=1, lanes=1))
    """

    def __init__(
        self,
        store: Store,
        device: torch.device | str,
        spec: BatchSpec,
        *,
        max_bad_shards: int = 0,
        prefetch_shards: int | None = None,
    ) -> None:
        self._order = BatchOrder(store, spec)
        self.store = store
        self.batches_per_epoch = self._order.batches_per_epoch
        self.position = self._order.position
        self._device = device
        self._shards = FaultTolerantShards(store, max_bad_shards, prefetch_shards)
        counts = [shard.num_samples for shard in store.manifest.shards]
        self._first_samples = np.concatenate([[0], np.cumsum(counts)])

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end, from the reader's position on."""
        images, labels = self._resident
        for position in self._order.positions():
            shards, indices = self._order.samples(position)
            chosen = torch.from_numpy(self._first_samples[shards] + indices)
            if images.is_cuda:
                # From pinned memory: the copy would otherwise wait for all work that is queued on the device.
                chosen = chosen.pin_memory().to(images.device, non_blocking=True)
            # Not ``images[chosen]``, which on the CPU copies number by number where this copies image by image.
            batch_labels = None if labels is None else labels.index_select(0, chosen)
            notes, bad = self._shards.notes, len(self._shards.bad)
            yield Batch(images.index_select(0, chosen), batch_labels, self._order.after(position), notes, bad)

    @functools.cached_property
    def _resident(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return load_images(self.store, device=self._device, shards=self._shards)


def fits_on_device(store: Store, device: torch.device) -> bool:
    """Return whether a store is small enough to be device-resident by default.

    On a GPU it may take a quarter of the memory that is free and this process may use, for the networks' activations
    need the rest. In the processor's memory it may take as much as a reader's cache would.

    Args:
        store: The store. Only its manifest is read.
        device: The device.
    """
    limit = CACHE_BYTES
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        limit = min(free, int(total * torch.cuda.get_per_process_memory_fraction(device))) // 4
    return store.manifest.num_samples * store.manifest.sample_bytes <= limit
