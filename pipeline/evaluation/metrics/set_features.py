"""Features of whole sets of images, as torch-fidelity extracts them; those of a store are saved with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.data import Store
from pipeline.evaluation.metrics.extractors import Extractor
from pipeline.runtime import safetensors_io
from pipeline.runtime.errors import UserError

__all__ = ["MAX_COMPARED", "extract_all", "store_embedding"]

MAX_COMPARED = 100_000
"""Images of a set that are compared with all of another; with 2,048 features each they take 820 MB."""

# Torch-fidelity's default: the last bits of a feature may depend on the number of images in a batch.
_BATCH_SIZE = 64

Batches = Callable[[int], Iterator[Tensor]]
"""Yields images, uint8 (n, C, H, W), of a number at a time."""


def extract_all(batches: Batches, extractor: Extractor, advance: Callable[[int], None]) -> dict[str, Tensor]:
    """Return the features of all images of a set.

    Args:
        batches: The images.
        extractor: The feature extractor.
        advance: Called with a number of images whenever that many more are done.

    Returns:
        ``embedding`` (N, F) and ``logits`` (N, K), float32, on the CPU.
    """
    parts: dict[str, list[Tensor]] = {"embedding": [], "logits": []}
    for images in batches(_BATCH_SIZE):
        layers = extractor(images)
        for name, tensors in parts.items():
            tensors.append(layers[name].cpu())
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
    url, count = _url(store, extractor.label), store.manifest.num_samples
    key = {
        "extractor": extractor.label,
        "weights": extractor.digest,
        "data": store.manifest.digest,
        "num_features": count,
    }
    saved = _read(url, key, count)
    if saved is not None:
        advance(count)
        return saved
    embedding = extract_all(batches, extractor, advance)["embedding"]
    if len(embedding) != count:
        raise UserError(f"{store.url} does not hold the {count} samples its manifest lists: make the store again")
    try:
        safetensors_io.write(url, {"embedding": embedding}, key)
    except safetensors_io.TensorFileError as error:
        warnings.warn(f"the features cannot be saved and will be extracted again: {error}", stacklevel=2)
    return embedding


def _url(store: Store, label: str) -> str:
    return f"{store.url.rstrip('/')}/statistics/{label}-features-{store.manifest.num_samples}.safetensors"


def _read(url: str, key: dict[str, object], count: int) -> Tensor | None:
    try:
        file = safetensors_io.read(url)
    except FileNotFoundError:
        return None
    except safetensors_io.TensorFileError as error:
        warnings.warn(f"the saved features cannot be read and are extracted again: {error}", stacklevel=3)
        return None
    embedding = file.tensors.get("embedding")
    if (
        file.header != key
        or embedding is None
        or embedding.dtype != torch.float32
        or embedding.dim() != 2
        or len(embedding) != count
        or not bool(embedding.isfinite().all())
    ):
        warnings.warn(f"{url} is damaged, or of other data or weights: the features are extracted again", stacklevel=3)
        return None
    return embedding
