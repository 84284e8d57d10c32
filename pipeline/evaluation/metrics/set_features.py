"""Features of whole sets of images, as torch-fidelity extracts them; those of a store are saved with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.data import Store
from pipeline.evaluation.metrics.extractors import Extractor
from pipeline.evaluation.metrics.saved_tensors import SavedTensors
from pipeline.runtime.errors import UserError

__all__ = ["MAX_COMPARED", "extract_all", "store_embedding"]

MAX_COMPARED = 100_000
"""Images of a set that are compared with all of another; with 2,048 features each they take 820 MB."""

# Torch-fidelity's default: the last bits of a feature may depend on the number of images in a batch.
_BATCH_SIZE = 64

Batches = Callable[[int], Iterator[Tensor]]
"""Yields images, uint8 (n, C, H, W), of a number at a time."""


def extract_all(
    batches: Batches, extractor: Extractor, advance: Callable[[int], None], kept: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the features of all images of a set, which are read once.

    Args:
        batches: The images.
        extractor: The feature extractor.
        advance: Called with a number of images whenever that many more are done.
        kept: Which images to return as well, bool (N,); ``None`` (default) for none.

    Returns:
        ``embedding`` (N, F) and, where it has them, ``logits`` (N, K), float32, on the CPU; and ``images``, uint8
        (M, C, H, W), where some are kept.
    """
    parts: dict[str, list[Tensor]] = {}
    done = 0
    for images in batches(_BATCH_SIZE):
        for name, tensor in extractor(images).items():
            parts.setdefault(name, []).append(tensor.cpu())
        if kept is not None:
            parts.setdefault("images", []).append(images[kept[done : done + len(images)]])
        done += len(images)
        advance(len(images))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def store_embedding(store: Store, batches: Batches, extractor: Extractor, advance: Callable[[int], None]) -> Tensor:
    """Return the embeddings of all images of a store: read from ``<store>/statistics/``, or extracted and saved there.

    A file counts only if it names the same data, extractor weights and number of images; one that is damaged is made
    again, with a warning.

    Args:
        store: The store.
        batches: All of its images.
        extractor: The feature extractor.
        advance: Called with a number of images whenever that many more are done.

    Returns:
        Embeddings float32 (N, F), in the order of ``batches``.
    """
    count = store.manifest.num_samples
    saved = SavedTensors(store, f"{extractor.label}-features-{count}", "the features")
    key = {
        "extractor": extractor.label,
        "weights": extractor.digest,
        "data": store.manifest.digest,
        "num_features": count,
    }
    tensors = saved.read(key, lambda tensors: _is_valid(tensors.get("embedding"), count))
    if tensors is not None:
        advance(count)
        return tensors["embedding"]
    embedding = extract_all(batches, extractor, advance)["embedding"]
    if len(embedding) != count:
        raise UserError(f"{store.url} does not hold the {count} samples its manifest lists: make the store again")
    saved.write({"embedding": embedding}, key)
    return embedding


def _is_valid(embedding: Tensor | None, count: int) -> bool:
    return (
        embedding is not None
        and embedding.dtype == torch.float32
        and embedding.dim() == 2
        and len(embedding) == count
        and bool(embedding.isfinite().all())
    )
