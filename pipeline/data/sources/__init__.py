"""Sources: published data sets, in the files of their publishers.

A source of images reads one at a time, in any order, and can be sent to another process: it opens its files again
there. A table gives all its rows at once.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.data.sources.archives import archive_errors
from pipeline.data.sources.base import BrokenImage, Source, Table
from pipeline.data.sources.images.celeba import CelebA
from pipeline.data.sources.images.cifar10 import Cifar10
from pipeline.data.sources.images.digits import Digits
from pipeline.data.sources.images.folder import Images
from pipeline.data.sources.images.imagenet32 import ImageNet32
from pipeline.data.sources.images.lsun import LSUN
from pipeline.data.sources.published import check_counts
from pipeline.data.sources.tables import toy
from pipeline.data.sources.tables.uci import hepmass, miniboone, parkinsons, redwine, whitewine
from pipeline.runtime.errors import UserError

__all__ = ["BUILTIN", "IMAGES", "KINDS", "TABLES", "BrokenImage", "Source", "Table", "check_counts", "make"]

# Each is made of the URL of the publisher's files, empty for those in BUILTIN, and a split or None.
IMAGES: dict[str, Callable[[str, str | None], Source]] = {
    "celeba": CelebA,
    "cifar10": Cifar10,
    "digits": Digits,
    "imagenet32": ImageNet32,
    "images": Images,
    "lsun": LSUN,
}
TABLES: dict[str, Callable[[str, str | None], Table]] = {
    "hepmass": hepmass,
    "miniboone": miniboone,
    "parkinsons": parkinsons,
    "redwine": redwine,
    "toy": toy.table,
    "whitewine": whitewine,
}
KINDS: dict[str, Callable[[str, str | None], Source | Table]] = {**IMAGES, **TABLES}

BUILTIN = {"digits": "the digits come with scikit-learn", "toy": "the toy data are made here"}


def make(kind: str, url: str | None = None, split: str | None = None) -> Source | Table:
    """Open a source.

    Args:
        kind: A name of ``KINDS``.
        url: A path or any fsspec URL of the publisher's file or folder. Only "digits" and "toy" have none.
        split: The split to take, by the publisher's name for it. ``None`` (default) for everything.

    Returns:
        The source of images, or the table.

    Raises:
        UserError: If the kind is unknown, the URL is missing, the files are damaged or not of this format, or the disk
            is too full to unpack them.

    Example:
        >>> len(make("digits"))
        1797
    """
    if kind not in KINDS:
        raise UserError(f"no data source of kind {kind!r}: choose one of {', '.join(sorted(KINDS))}")
    if kind in BUILTIN:
        if url:
            raise UserError(f"{BUILTIN[kind]}: leave the source's url empty")
    elif not url:
        raise UserError(f"a source of kind {kind!r} needs a url: give the path or URL of its files")
    with archive_errors(str(url)):
        return KINDS[kind](url or "", split or None)
