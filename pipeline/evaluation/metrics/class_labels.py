"""Labels of a store's images, in the store's order: read once without decoding an image, and saved with the store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gebm.classes import MAX_CLASSES
from pipeline.data import Store
from pipeline.data.classes import Classes
from pipeline.data.reading.fault_tolerance import FaultTolerantShards
from pipeline.evaluation.metrics.reference_statistics import MAX_FEATURES, SEED
from pipeline.evaluation.metrics.saved_tensors import SavedTensors
from pipeline.evaluation.metrics.subsets import draw_subset
from pipeline.runtime.errors import UserError

__all__ = ["class_labels", "classes_of", "has_class_labels", "reference_labels", "require_classes"]


def require_classes(store: Store) -> tuple[str, ...]:
    """Return the names of a store's classes; only the manifest is read.

    Args:
        store: The store.

    Raises:
        UserError: Its images have no labels, or there are too many classes.
    """
    labels = store.manifest.labels
    if labels is None:
        raise UserError(
            f"the images of the store {store.url} have no labels, which conditional networks learn from: choose other "
            "model.networks, or a store whose source has labels"
        )
    if len(labels) > MAX_CLASSES:
        raise UserError(
            f"the store {store.url} has {len(labels):,} classes, and conditional networks take {MAX_CLASSES:,} at "
            "most: choose other model.networks, or a store with fewer classes"
        )
    return labels


def class_labels(store: Store, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Return the labels of all images (N,), int64.

    They are read from ``<store>/statistics/``, or from the shards and then saved there.

    Args:
        store: A store of labeled images.
        progress: Called with (images done, images in all).

    Raises:
        UserError: The images have no labels, one of them has none, or a shard is damaged.
    """
    num_classes, count = len(require_classes(store)), store.manifest.num_samples
    saved, key = _saved(store), {"data": store.manifest.digest, "num_samples": count}

    def are_valid(tensors: dict[str, Tensor]) -> bool:
        labels = tensors.get("labels")
        return labels is not None and labels.dtype == torch.int64 and _are_classes(labels, count, num_classes)

    tensors = saved.read(key, are_valid)
    if tensors is not None:
        return tensors["labels"]
    labels = _read(store, progress)
    if not _are_classes(labels, count, num_classes):
        raise UserError(f"some images of the store {store.url} have no label: make the store again")
    saved.write({"labels": labels}, key)
    return labels


def has_class_labels(store: Store) -> bool:
    """Return whether the labels of :func:`class_labels` are saved with a store, unread."""
    return _saved(store).exists()


def classes_of(store: Store, labels: Tensor) -> Classes:
    """Return the classes of a store, with their numbers of images.

    Args:
        store: The store.
        labels: Those of all its images (N,), by :func:`class_labels`.

    Raises:
        UserError: As :func:`require_classes`.
    """
    names = require_classes(store)
    return Classes.of(names, torch.bincount(labels, minlength=len(names)).tolist())


def reference_labels(labels: Tensor) -> Tensor:
    """Return the labels of :attr:`pipeline.evaluation.metrics.Reference.features`, in the same order (M,).

    Args:
        labels: Those of all images of the store (N,), by :func:`class_labels`.
    """
    return labels[draw_subset(len(labels), MAX_FEATURES, SEED)]


def _are_classes(labels: Tensor, count: int, num_classes: int) -> bool:
    return labels.shape == (count,) and bool(((labels >= 0) & (labels < num_classes)).all())


def _read(store: Store, progress: Callable[[int, int], None] | None) -> Tensor:
    shards, parts, done = FaultTolerantShards(store), [], 0
    try:
        for index, shard in enumerate(store.manifest.shards):
            labels = shards.read(index, then=range(index + 1, len(store.manifest.shards))).labels
            parts.append(np.empty(0, np.int64) if labels is None else labels)
            done += shard.num_samples
            if progress is not None:
                progress(done, store.manifest.num_samples)
    finally:
        shards.close()
    return torch.from_numpy(np.concatenate(parts))


def _saved(store: Store) -> SavedTensors:
    return SavedTensors(store, "labels", "the labels")
