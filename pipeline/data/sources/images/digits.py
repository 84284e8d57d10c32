"""Digits source: the 1,797 handwritten digits of 8x8 that come with scikit-learn."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from pipeline.data.sources.base import choose

__all__ = ["Digits"]


class Digits:
    """The test part of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), as in scikit-learn.

    Args:
        url: Ignored: the digits come with scikit-learn.
        split: None: there is one split only.

    Example:
        >>> image, label = Digits(None, None).read(0)
        >>> image.shape, image.max(), label
        ((8, 8, 1), np.uint8(239), 0)
    """

    kind = "digits"

    def __init__(self, url: str | None, split: str | None) -> None:
        # Imported here, for it takes most of a second and every command imports every source.
        from sklearn.datasets import load_digits

        self.url = None
        self.split = choose(split, (), self.kind)
        self.fingerprint = None
        self.labels = tuple(str(digit) for digit in range(10))
        # scikit-learn's annotation leaves out the attributes of the result.
        published = cast("Any", load_digits())
        # Published as counts from 0 to 16.
        self._images = np.rint(published.images * (255 / 16)).astype(np.uint8)[..., None]
        self._digits = published.target

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Return the image's number."""
        return f"digit {index}"

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Return the pixels, uint8 (8, 8, 1), and the digit."""
        return self._images[index], int(self._digits[index])

    def close(self) -> None:
        """Do nothing: no file is open."""
