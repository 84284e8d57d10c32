"""Nearest training images of a sample, which show whether the model makes images or copies them.

Distances are Euclidean, between the embeddings of an extractor. Those of training images, up to 10,000 of them, are
there for precision and recall; the same images themselves are saved next to them, to be drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data import Store
from pipeline.evaluation.metrics.reference_statistics import MAX_FEATURES, SEED, Reference
from pipeline.evaluation.metrics.saved_tensors import SavedTensors
from pipeline.evaluation.metrics.subsets import evenly_spaced, iter_subset

__all__ = [
    "NUM_MEASURED",
    "has_reference_images",
    "mean_nn_distance",
    "nearest",
    "nn_distance_ratio",
    "reference_images",
]

NUM_MEASURED = 2_000
"""Number of samples, and of images of the data, in a mean distance: enough for a percent or two."""
_BATCH_SIZE = 500


def reference_images(store: Store) -> Tensor:
    """Return the training images of :attr:`pipeline.evaluation.metrics.Reference.features`, in the same order.

    They are read from ``<store>/statistics/``, or from the store in one pass and then saved there.

    Args:
        store: The store; its reference has to be of all of it.

    Returns:
        uint8 (M, C, H, W), M at most 10,000: in color at 64 pixels 120 MB, however large the store.

    Raises:
        UserError: The store is damaged.
    """
    manifest = store.manifest
    count = min(manifest.num_samples, MAX_FEATURES)
    saved, key = _saved_images(store, count), {"data": manifest.digest, "num_samples": count}

    def are_valid(tensors: dict[str, Tensor]) -> bool:
        images = tensors.get("images")
        return images is not None and images.dtype == torch.uint8 and images.shape == (count, *manifest.sample_shape)

    tensors = saved.read(key, are_valid)
    if tensors is not None:
        return tensors["images"]
    # Of all samples, the reference keeps the features of those that this very permutation begins with.
    images = torch.cat([batch for batch, _ in iter_subset(store, count, seed=SEED, batch_size=1000)])
    saved.write({"images": images}, key)
    return images


def has_reference_images(store: Store) -> bool:
    """Return whether the images of :func:`reference_images` are saved with a store, unread."""
    return _saved_images(store, min(store.manifest.num_samples, MAX_FEATURES)).exists()


def _saved_images(store: Store, count: int) -> SavedTensors:
    return SavedTensors(store, f"images-{count}", "the reference images")


def nearest(embedding: Tensor, data: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the nearest rows of the data, for each sample.

    Args:
        embedding: Features of samples (N, F).
        data: Features of the data (M, F), M at least ``count``.
        count: How many.

    Returns:
        Distances and row numbers in the data, both (N, ``count``), the nearest first.

    Example:
        >>> data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        >>> nearest(torch.tensor([[5.0, 4.0]]), data, count=2)
        (tensor([[1.0000, 5.8310]]), tensor([[2, 1]]))
    """
    # Relative to their mean: far from it, the distance between two close rows is lost to rounding.
    mean = data.mean(0)
    data = data - mean
    # Sorted, as ``topk`` returns them.
    parts = [torch.cdist(part - mean, data).topk(count, largest=False) for part in embedding.split(_BATCH_SIZE)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def mean_nn_distance(data: Tensor) -> float:
    """Return the mean distance of a datum to its nearest neighbor, over 2,000 evenly spaced rows.

    Args:
        data: Features of the data (M, F), M at least 2.

    Example:
        >>> mean_nn_distance(torch.tensor([[0.0], [1.0], [3.0]]))
        1.3333333333333333
    """
    distances, _ = nearest(evenly_spaced(data, NUM_MEASURED), data, count=2)
    # The first is a row itself, but for rounding, or but for a second one that is the same to the last bit.
    return float(distances[:, 1].double().mean())


def nn_distance_ratio(embedding: Tensor, reference: Reference, among_data: float) -> float:
    """Return the samples' mean distance to the nearest training image, relative to training images among themselves.

    One: as far as these are from one another. Well below one: the samples are copies. Above one: they are no images of
    this kind. Where the store has more images than the reference keeps features of, a model that copies them all shows
    in that part of its samples whose originals are among those.

    Args:
        embedding: Features of samples (N, F), of which 2,000 evenly spaced ones are used.
        reference: Of the data, by the same extractor.
        among_data: The :func:`mean_nn_distance` of the reference's features.

    Returns:
        The ratio; infinite, or not a number, where training images are all the same.

    Example:
        >>> rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> data = Reference("any", 1000, rows.double().mean(0), rows.double().T.cov(), rows)
        >>> round(nn_distance_ratio(rows[:500] + 1e-3, data, mean_nn_distance(rows)), 1)
        0.0
    """
    distances, _ = nearest(evenly_spaced(embedding, NUM_MEASURED), reference.features)
    return float(distances.double().mean() / torch.tensor(among_data, dtype=torch.float64))
