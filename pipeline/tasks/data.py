"""An experiment's store, opened as its config says."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Data
from pipeline.stores import ShardCache, Store, open_store

__all__ = ["open_data"]


def open_data(data: Data) -> Store:
    """The store of an experiment; see :func:`pipeline.stores.open_store`.

    Args:
        data: ``store``, ``max_bad_shards``, ``cache``, ``cache_limit_gib`` and ``timeout``.

    Raises:
        UserError: there is no finished store, it is damaged, or its storage does not answer.
    """
    cache = None
    if data.cache is not None:
        cache = ShardCache(Path(data.cache).expanduser(), limit=int(data.cache_limit_gib * 2**30))
    return open_store(data.store, data.max_bad_shards, cache=cache, timeout=data.timeout)
