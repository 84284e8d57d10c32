"""Store of an experiment: opened as its config says, and written at first use where that is possible."""

from __future__ import annotations

from pathlib import Path

from pipeline import tasks
from pipeline.config import Config, Data, invocation
from pipeline.config.printed_commands import format_command
from pipeline.data import (
    MissingStore,
    ShardCache,
    Splits,
    Store,
    load_rows,
    open_store,
    sources,
    split_rows,
    write_store,
)
from pipeline.runtime.errors import UserError

__all__ = [
    "ensure_store",
    "open_data",
    "split_store",
]


def open_data(data: Data) -> Store:
    """Open the store of an experiment; see :func:`pipeline.data.open_store`.

    Args:
        data: ``store``, ``max_bad_shards``, ``cache``, ``cache_limit_gib`` and ``timeout``.

    Raises:
        UserError: There is no finished store, it is damaged, or its storage does not answer.
    """
    cache = None
    if data.cache is not None:
        cache = ShardCache(Path(data.cache).expanduser(), limit=int(data.cache_limit_gib * 2**30))
    return open_store(data.store, data.max_bad_shards, cache=cache, timeout=data.timeout)


def ensure_store(config: Config) -> Store:
    """Open the experiment's store; data that come with a package are written at first use.

    Args:
        config: ``data``.

    Raises:
        UserError: There is no store, and the message names the command that makes it; or it does not fit the
            experiment.
    """
    data = config.data
    try:
        store = open_data(data)
    except MissingStore as error:
        if not sources.comes_without_url(data.source.kind):
            keys = invocation.current().experiment_keys(config.name) | {"data.store": data.store}
            make = format_command("shards", keys)
            raise UserError(f"{error}; make it with `{make} data.source.url=<where the published files are>`") from None
        write_store(
            sources.make(data.source.kind),
            data.store,
            resolution=data.resolution,
            # A table keeps all of its columns.
            channels=None if data.encoding == "rows" else data.channels,
            encoding=data.encoding,
            resize_filter=data.resize_filter,
            samples_per_shard=data.samples_per_shard,
        )
        store = open_data(data)
    tasks.make(config).check(store)
    return store


def split_store(config: Config, store: Store) -> Splits:
    """Return the store's rows, prepared and split as the experiment says; another seed is another split.

    Args:
        config: ``data``; and ``seed`` where ``data.split_seed`` is not set, as before a model is trained.
        store: A store of rows.

    Raises:
        UserError: The store is damaged, or holds no rows.
    """
    data = config.data
    seed = config.seed if data.split_seed is None else data.split_seed
    return split_rows(load_rows(store), seed, dequantise=data.dequantise, max_correlation=data.max_correlation)
