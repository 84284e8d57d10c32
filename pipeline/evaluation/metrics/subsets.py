"""Subsets: a seeded, uniform one of a store, streamed, and evenly spaced rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.data import Store, iter_images
from pipeline.runtime.errors import UserError

__all__ = ["draw_subset", "evenly_spaced", "evenly_spaced_rows", "iter_subset"]


def draw_subset(total: int, count: int, seed: int) -> Tensor:
    """Return which of some rows are in a uniform subset, bool (total,).

    Of one seed, a smaller subset is a part of a larger one.

    Args:
        total: Number of rows.
        count: Rows of the subset; all, if there are no more.
        seed: Which subset.

    Example:
        >>> small, large = draw_subset(9, 2, seed=0), draw_subset(9, 5, seed=0)
        >>> int(small.sum()), int(large.sum()), bool((small <= large).all())
        (2, 5, True)
    """
    in_subset = torch.zeros(total, dtype=torch.bool)
    in_subset[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]] = True
    return in_subset


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
    in_subset = draw_subset(total, num_samples, seed)
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
    return rows[_spaced_indices(len(rows), count)]


def evenly_spaced_rows(total: int, count: int) -> Tensor:
    """Return which of some rows :func:`evenly_spaced` takes, bool (total,).

    Args:
        total: Number of rows.
        count: Rows to take.

    Example:
        >>> evenly_spaced_rows(5, 3).tolist(), evenly_spaced_rows(2, 3).tolist(), evenly_spaced_rows(2, 0).tolist()
        ([True, False, True, False, True], [True, True], [False, False])
    """
    taken = torch.zeros(total, dtype=torch.bool)
    taken[_spaced_indices(total, count)] = True
    return taken


def _spaced_indices(total: int, count: int) -> Tensor:
    return torch.linspace(0, total - 1, min(count, total)).round().long()
