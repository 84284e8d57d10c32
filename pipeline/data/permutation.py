"""Permutation that is determined by its key, in every version of NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["mixing_order", "permutation"]

_MIXING_SEED = 0


def permutation(size: int, *key: int) -> np.ndarray:
    """Return the permutation of a key: NumPy keeps the stream of ``RandomState``, and not that of ``Generator``.

    Args:
        size: Number of elements.
        key: Integers from 0 up.

    Returns:
        The permutation, int64 (size,).

    Example:
        >>> permutation(5, 0).tolist()
        [3, 0, 2, 1, 4]
    """
    bits = np.random.MT19937(np.random.SeedSequence(key))
    return np.random.RandomState(bits).permutation(size)


def mixing_order(size: int) -> np.ndarray:
    """Return the order in which a store has the images of a source, int64 (size,): a fixed permutation.

    Published files are often sorted by class, and each shard mixes all of them.

    Args:
        size: Number of images of the source.
    """
    return permutation(size, _MIXING_SEED)
