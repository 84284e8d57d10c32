"""Preflight of a sweep: notes on settings that are often wrong."""

from __future__ import annotations

import torch

from pipeline import config as schema
from pipeline.config.tasks import facts_of
from pipeline.data import Store, fits_on_device
from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.sweep.cluster import Capacity

__all__ = ["preflight_notes"]


def preflight_notes(config: schema.Config, capacity: Capacity, store: Store) -> list[str]:
    """Return a line on each setting that need not be wrong, and often is, and on where shards are cached.

    Args:
        config: The experiment.
        capacity: Resources of the cluster and of a worker.
        store: Training data.
    """
    return [*_cache_notes(config, capacity, store), *_path_notes(config, capacity)]


def _cache_notes(config: schema.Config, capacity: Capacity, store: Store) -> list[str]:
    data = config.data
    if is_local(filesystem(store.url)[0]):
        return []
    if data.cache is not None:
        return [f"shards are kept in {data.cache} of each machine, up to {data.cache_limit_gib:g} GiB"]
    # Only its worker knows how much room a GPU has, so that one counts as large enough.
    resident = (
        facts_of(config.task).of == "rows"
        or data.device_resident
        or "GPU" in capacity.worker
        or fits_on_device(store, torch.device("cpu"))
    )
    if resident:
        return []
    return [
        f"note: {store.url} is read anew in each epoch and by each trial; data.cache=/a/folder/of/each/machine "
        f"keeps its shards there"
    ]


def _path_notes(config: schema.Config, capacity: Capacity) -> list[str]:
    nodes = len(capacity.nodes)
    if nodes < 2:
        return []
    return [
        f"note: {key}={url} is a local path and the cluster has {nodes} nodes: all of them have to see it there, as on "
        f"a network file system; otherwise use a URL such as s3://bucket/..."
        for key, url in (("output", str(config.output)), ("data.store", config.data.store))
        if is_local(filesystem(url)[0])
    ]
