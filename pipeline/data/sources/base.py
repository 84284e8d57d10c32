"""What every source of images can do, and what a table is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.runtime.errors import UserError

__all__ = ["BrokenImage", "Source", "Table", "choose"]


class BrokenImage(Exception):
    """One image cannot be read, and the others can. The message is its name."""


class Source(Protocol):
    """The images of a published data set.

    Args:
        kind: Name of the format.
        url: Where its files are, or None.
        split: The split that was chosen, or None for everything.
        labels: Class names, or None.
    """

    kind: str
    url: str | None
    split: str | None
    labels: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the publisher calls an image, for a report."""
        ...

    def read(self, index: int) -> tuple[bytes | np.ndarray, int | None]:
        """One image, in any order.

        Args:
            index: From 0 to the number of images less one.

        Returns:
            The encoded image or uint8 pixels (H, W, C), and its label or None.

        Raises:
            BrokenImage: If this image cannot be read.
        """
        ...

    def close(self) -> None:
        """Closes the files and deletes temporary copies."""
        ...


@dataclass(frozen=True, eq=False)  # arrays compare number by number
class Table:
    """The rows of a published table, all at once: the largest is a few dozen megabytes.

    Args:
        kind: Name of the format.
        url: Where its file is, or None.
        split: The split that was chosen, or None for everything.
        rows: float32 (N, D), all finite, in the order of their publisher. N and D are 1 or more.
    """

    kind: str
    url: str | None
    split: str | None
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def close(self) -> None:
        """Nothing is held open."""


def choose(split: str | None, choices: Sequence[str], kind: str) -> str | None:
    """A split that exists.

    Args:
        split: What the user wrote.
        choices: The splits of the data set.
        kind: The source's kind, for the message.

    Returns:
        The same split.

    Raises:
        UserError: If the data set has no such split.

    Example:
        >>> choose("train", ("train", "test"), "cifar10")
        'train'
    """
    if split is not None and split not in choices:
        raise UserError(f"{kind} has no split {split!r}: choose {', '.join(choices)}; data.source.split=null takes all")
    return split
