"""Sources: published data sets, in the files of their publishers.

A source of images reads one at a time, in any order, and can be sent to another process: it opens its files again
there. A table gives all its rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.data.sources.archives import archive_errors
from pipeline.data.sources.base import BrokenImage, Source, Table
from pipeline.data.sources.images.celeba import CelebA
from pipeline.data.sources.images.cifar10 import Cifar10
from pipeline.data.sources.images.digits import Digits
from pipeline.data.sources.images.folder import Images
from pipeline.data.sources.images.imagenet32 import ImageNet32
from pipeline.data.sources.images.label_fields import AUTO
from pipeline.data.sources.images.lsun import LSUN
from pipeline.data.sources.images.parquet import Parquet
from pipeline.data.sources.images.webdataset import WebDataset
from pipeline.data.sources.published import check_counts
from pipeline.data.sources.tables import toy
from pipeline.data.sources.tables.uci import hepmass, miniboone, parkinsons, redwine, whitewine
from pipeline.runtime.errors import UserError

__all__ = ["BUILTIN", "FIELDS", "IMAGES", "KINDS", "TABLES", "BrokenImage", "Source", "Table", "check_counts", "make"]

# Images in files whose samples have several fields: the URL may be a list, and the field of the label is a setting.
FIELDS: dict[str, Callable[[str | Sequence[str], str | None, str | None], Source]] = {
    "parquet": Parquet,
    "webdataset": WebDataset,
}
# Each other is made of the URL of the publisher's files, empty for those in BUILTIN, and a split or None.
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
KINDS: dict[str, Callable[..., Source | Table]] = {**IMAGES, **FIELDS, **TABLES}

BUILTIN = {"digits": "the digits come with scikit-learn", "toy": "the toy data are made here"}


def make(
    kind: str, url: str | Sequence[str] | None = None, split: str | None = None, label_field: str | None = AUTO
) -> Source | Table:
    """Open a source.

    Args:
        kind: A name of ``KINDS``.
        url: A path or any fsspec URL of the publisher's file or folder. Only "digits" and "toy" have none. For a kind
            of ``FIELDS``, also a pattern or a list, see ``pipeline.data.sources.file_list.list_files``.
        split: The split to take, by the publisher's name for it. ``None`` (default) for everything.
        label_field: Where the label of a sample is, for a kind of ``FIELDS``: a name, None for no labels, or "auto"
            (default).

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
    if kind not in FIELDS:
        if label_field != AUTO:
            raise UserError(
                f"data.source.label_field={label_field}: a source of kind {kind!r} has no fields; leave it out, or "
                f"choose one of {', '.join(FIELDS)}"
            )
        if not isinstance(url or "", str):
            raise UserError(f"a source of kind {kind!r} has one url, not a list: give one file or folder")
    settings = {"label_field": label_field} if kind in FIELDS else {}
    with archive_errors(str(url)):
        return KINDS[kind](url or "", split or None, **settings)
