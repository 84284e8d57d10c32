"""The image store: tar shards in webdataset's format and a manifest, behind any fsspec URL.

`sources` reads what was published, `write_store` makes a store of it, `Reader` gives batches for training and
`load_images` gives images for metrics.
"""

from __future__ import annotations

from pipeline.stores.location import MissingStore, Store, locate, open_store
from pipeline.stores.manifest import Manifest, Shard
from pipeline.stores.order import Position
from pipeline.stores.reader import Batch, Reader, iter_images, load_images
from pipeline.stores.writer import Report, write_store

__all__ = [
    "Batch",
    "Manifest",
    "MissingStore",
    "Position",
    "Reader",
    "Report",
    "Shard",
    "Store",
    "iter_images",
    "load_images",
    "locate",
    "open_store",
    "write_store",
]
