"""Preflight of a sweep: notes on settings that are often wrong, and the work that all trials share."""

from __future__ import annotations

import logging
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Store, fits_on_device
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.sweep.cluster import Capacity

__all__ = ["preflight_notes", "prepare_shared"]

log = logging.getLogger(__name__)


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
        config.task != "images"
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


def prepare_shared(config: schema.Config, capacity: Capacity) -> str | None:
    """Make what all trials need, once, on the cluster: the feature extractor and the data's statistics.

    Args:
        config: The experiment.
        capacity: Resources of the cluster.

    Returns:
        The label of the scores, such as the feature extractor's name; None where they have none.

    Raises:
        UserError: The data or the extractor cannot be used.
    """
    log.info("preparing what %s is measured with, from %s ...", config.name, config.data.store)
    gpus = capacity.preparation.get("GPU", 0)
    remote = ray.remote(num_cpus=capacity.preparation["CPU"], num_gpus=gpus)(_prepare_task)
    try:
        return ray.get(remote.remote(schema.to_dict(config), "cuda" if gpus else "cpu"))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _prepare_task(values: dict[str, Any], device: str) -> str | None:
    config = schema.from_dict(values)
    return tasks.make(config).prepare(tasks.open_data(config.data), torch.device(device))
