"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8."""

from __future__ import annotations

import numpy as np

from pipeline.data.sources.base import choose

__all__ = ["Digits"]


class Digits:
    """The test part of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), as in scikit-learn.

    Args:
        url: None.
        split: None: there is one split only.

    Example:
        >>> image, label = Digits(None, None).read(0)
        >>> image.shape, image.max(), label
        ((8, 8, 1), np.uint8(239), 0)
    """

    kind = "digits"

    def __init__(self, url: str | None, split: str | None) -> None:
        from sklearn.datasets import load_digits  # takes most of a second, and every source is imported by every verb

        self.url = None
        self.split = choose(split, (), self.kind)
        self.labels = tuple(str(digit) for digit in range(10))
        published = load_digits()
        # Published as counts from 0 to 16.
        self._images = np.rint(published.images * (255 / 16)).astype(np.uint8)[..., None]
        self._digits = published.target

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The image's number."""
        return f"digit {index}"

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Pixels, uint8 (8, 8, 1), and the digit."""
        return self._images[index], int(self._digits[index])

    def close(self) -> None:
        """Nothing is held open."""
