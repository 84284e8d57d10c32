"""Store of images or rows: tar shards in webdataset's format and a manifest, behind any fsspec URL.

``sources`` reads published data sets and ``write_store`` makes a store of one. ``Reader`` yields batches for training,
as a ``BatchSpec`` says, and ``DeviceResidentReader`` the same ones from a device's memory. ``load_images`` returns
images for metrics, ``load_rows`` the rows of a table and ``split_rows`` its parts.
"""

from __future__ import annotations

from pipeline.data.manifest import Manifest, Shard
from pipeline.data.reading.batch_order import Batch, BatchSpec
from pipeline.data.reading.device_reader import DeviceResidentReader, fits_on_device
from pipeline.data.reading.reader import Reader, iter_images, load_images, load_last_images, load_rows
from pipeline.data.reading.shuffle import Position
from pipeline.data.shard_cache import ShardCache
from pipeline.data.splits import Splits, split_rows
from pipeline.data.store import MissingStore, Store, open_store, resolve_url
from pipeline.data.writing.writer import Report, write_store

__all__ = [
    "Batch",
    "BatchSpec",
    "DeviceResidentReader",
    "Manifest",
    "MissingStore",
    "Position",
    "Reader",
    "Report",
    "Shard",
    "ShardCache",
    "Splits",
    "Store",
    "fits_on_device",
    "iter_images",
    "load_images",
    "load_last_images",
    "load_rows",
    "open_store",
    "resolve_url",
    "split_rows",
    "write_store",
]
