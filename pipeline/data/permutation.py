"""A permutation that is fixed for ever by its key."""

from __future__ import annotations

import numpy as np

__all__ = [
    "permutation",
]


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation that is fixed for ever by its key: numpy keeps the stream of `RandomState`, not of `Generator`.

    Args:
        size: Number of things to permute.
        key: Whole numbers from 0 up.

    Returns:
        The permutation, int64 (size,).

    Example:
        >>> permutation(5, 0).tolist()
        [3, 0, 2, 1, 4]
    """
    bits = np.random.MT19937(np.random.SeedSequence(key))
    return np.random.RandomState(bits).permutation(size)
