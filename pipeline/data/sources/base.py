"""Protocol of the sources of images, and the table of a source of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.data.ledger import Group
from pipeline.data.sources.published import Part
from pipeline.runtime.errors import UserError

__all__ = ["BrokenImage", "FileSource", "Source", "Table", "choose"]


class BrokenImage(Exception):
    """One image cannot be read, and the others can. The message is its name.

    Args:
        name: Name of the image.
        reason: The reason in a few words, the same for all images of its kind.
    """

    def __init__(self, name: str, reason: str = "damaged") -> None:
        super().__init__(name)
        self.reason = reason


class Source(Protocol):
    """Images of a published data set."""

    @property
    def kind(self) -> str:
        """Name of the format."""
        ...

    @property
    def url(self) -> str | None:
        """URL of the files, or None."""
        ...

    @property
    def split(self) -> str | None:
        """The split that was chosen, or None for everything."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, or None."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the files as they are now, or None where they come with a library."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the publisher's name of an image, for a report."""
        ...

    def read(self, index: int) -> tuple[bytes | np.ndarray, int | None]:
        """Read one image, in any order.

        Args:
            index: Index of the image, from 0 to the number of images less one.

        Returns:
            The encoded image or uint8 pixels (H, W, C), and its label or None.

        Raises:
            BrokenImage: If this image cannot be read.
        """
        ...

    def close(self) -> None:
        """Close the files and delete temporary copies."""
        ...


@runtime_checkable
class FileSource(Protocol):
    """What a source of images in files has besides. Python 3.11 evaluates each property that ``isinstance`` checks."""

    @property
    def passed_over(self) -> tuple[Group, ...]:
        """Files that are not images of this source, with their reasons."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user, such as where the labels are from."""
        ...


# Without a comparison: arrays compare number by number.
@dataclass(frozen=True, eq=False)
class Table:
    """All rows of a published table in memory: the largest is a few dozen megabytes.

    Args:
        kind: Name of the format.
        url: URL of the file, or None.
        split: The split that was chosen, or None for everything.
        rows: float32 (N, D), all finite, in the order of their publisher. N and D are 1 or more.
        fingerprint: Fingerprint of the file, or None where the rows come with a library.
        parts: What of the file has a published size.
    """

    kind: str
    url: str | None
    split: str | None
    rows: np.ndarray
    fingerprint: str | None = None
    parts: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def close(self) -> None:
        """Do nothing: no file is open."""


def choose(split: str | None, choices: Sequence[str], kind: str) -> str | None:
    """Return a split that exists.

    Args:
        split: The user's setting.
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
