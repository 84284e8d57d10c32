"""Subsets: a seeded, uniform one of a store, streamed, and evenly spaced rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.data import Store, iter_images
from pipeline.runtime.errors import UserError

__all__ = ["evenly_spaced", "iter_subset"]


def iter_subset(
    store: Store, num_samples: int, *, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Stream a uniform subset of a store's samples, in the store's order.

    A published store is often sorted by class, so the first ``num_samples`` would be another distribution.

    Args:
        store: The store.
        num_samples: How many samples, at most what the store holds.
        seed: Which subset.
        batch_size: Samples read at a time, and the most that a yielded batch has.

    Yields:
        Images uint8 (N, C, H, W) and labels int64 (N,), or ``None`` where the store has no labels.

    Raises:
        UserError: The store has fewer samples, or yields a number of them that its manifest does not promise.
    """
    total = store.manifest.num_samples
    if not 0 < num_samples <= total:
        raise UserError(f"{store.url} has {total} samples, {num_samples} were requested: take 1 to {total}")
    in_subset = torch.zeros(total, dtype=torch.bool)
    in_subset[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:num_samples]] = True
    position = 0
    for images, labels in iter_images(store, batch_size):
        keep = in_subset[position : position + len(images)]
        position += len(images)
        if position > total:
            break
        if keep.all():
            yield images, labels
        elif keep.any():
            yield images[keep], None if labels is None else labels[keep]
    if position != total:
        raise UserError(f"{store.url} does not hold the {total} samples its manifest lists: make the store again")


def evenly_spaced(rows: Tensor, count: int) -> Tensor:
    """Return ``count`` evenly spaced rows, for they may be sorted by class or by chain; all, if there are no more.

    Example:
        >>> evenly_spaced(torch.arange(10), 4).tolist(), evenly_spaced(torch.arange(2), 4).tolist()
        ([0, 3, 6, 9], [0, 1])
    """
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]
