"""Sources: published data sets, in the files of their publishers.

A source of images reads one at a time, in any order, and can be sent to another process: it opens its files again
there. A table gives all its rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from gebm.registry import REQUIRED, Part
from pipeline.data.sources.archives import archive_errors
from pipeline.data.sources.base import BrokenImage, Source, Table
from pipeline.data.sources.file_list import divide_list
from pipeline.data.sources.images.celeba import CelebA
from pipeline.data.sources.images.cifar10 import Cifar10
from pipeline.data.sources.images.digits import Digits
from pipeline.data.sources.images.folder import Images
from pipeline.data.sources.images.imagenet32 import ImageNet32
from pipeline.data.sources.images.label_fields import AUTO
from pipeline.data.sources.images.lsun import LSUN
from pipeline.data.sources.images.parquet import Parquet
from pipeline.data.sources.images.webdataset import WebDataset
from pipeline.data.sources.own import OwnSource, SourceArguments, own_table
from pipeline.data.sources.published import check_counts
from pipeline.data.sources.registry import NAMES, register
from pipeline.data.sources.tables import toy
from pipeline.data.sources.tables.uci import hepmass, miniboone, parkinsons, redwine, whitewine
from pipeline.runtime.errors import UserError

__all__ = [
    "NAMES",
    "BrokenImage",
    "Source",
    "Table",
    "check_counts",
    "comes_without_url",
    "has_fields",
    "make",
    "register",
]

# Images in files whose samples have several fields: the URL may be a list, and the field of the label is a setting.
register("parquet")(Parquet)
register("webdataset")(WebDataset)
# Each other is made of the URL of the publisher's files, where it has one, and a split or None.
register("celeba")(CelebA)
register("cifar10")(Cifar10)
register("digits", without_url="the digits come with scikit-learn")(Digits)
register("imagenet32")(ImageNet32)
register("images")(Images)
register("lsun")(LSUN)
register("hepmass", of="rows")(hepmass)
register("miniboone", of="rows")(miniboone)
register("parkinsons", of="rows")(parkinsons)
register("redwine", of="rows")(redwine)
register("toy", of="rows", without_url="the toy data are made here")(toy.table)
register("whitewine", of="rows")(whitewine)


def has_fields(kind: str) -> bool:
    """Return whether the samples of a kind have several fields, one of which may be the label."""
    return "label_field" in NAMES.part(kind).parameters


def comes_without_url(kind: str) -> bool:
    """Return whether the data of a kind come with a package, so that a store of them is made at first use."""
    return kind in NAMES and bool(NAMES.part(kind).facts["without_url"])


def make(
    kind: str, url: str | Sequence[str] | None = None, split: str | None = None, label_field: str | None = AUTO
) -> Source | Table:
    """Open a source.

    Args:
        kind: A name of ``NAMES``.
        url: A path or any fsspec URL of the publisher's file or folder. Only "digits" and "toy" have none. For a kind
            with fields, also a pattern or a list, see ``pipeline.data.sources.file_list.list_files``; a plugin's source
            gets a pattern as it is, and a list as one.
        split: The split to take, by the publisher's name for it. ``None`` (default) for everything.
        label_field: Where the label of a sample is, for a kind with fields: a name, None for no labels, or "auto"
            (default), with which a plugin's source has its own default.

    Returns:
        The source of images, or the table.

    Raises:
        UserError: If the kind is unknown, the URL is missing, the files are damaged or not of this format, or the disk
            is too full to unpack them.

    Example:
        >>> len(make("digits"))
        1797
    """
    if kind not in NAMES:
        raise UserError(f"no data source of kind {kind!r}: choose one of {', '.join(sorted(NAMES))}")
    part = NAMES.part(kind)
    if part.facts["without_url"]:
        if url:
            raise UserError(f"{part.facts['without_url']}: leave the source's url empty")
    elif not url and (part.builtin or part.parameters.get("url") is REQUIRED):
        raise UserError(f"a source of kind {kind!r} needs a url: give the path or URL of its files")
    if not has_fields(kind):
        if label_field != AUTO:
            fields = ", ".join(name for name in NAMES if has_fields(name))
            raise UserError(
                f"data.source.label_field={label_field}: a source of kind {kind!r} has no fields; leave it out, or "
                f"choose one of {fields}"
            )
        if not isinstance(url or "", str):
            raise UserError(f"a source of kind {kind!r} has one url, not a list: give one file or folder")
    if not part.builtin:
        return _make_own(part, SourceArguments(_urls(kind, url or ""), split or None, label_field))
    settings = {"label_field": label_field} if has_fields(kind) else {}
    with archive_errors(str(url)):
        return NAMES[kind](url or "", split or None, **settings)


def _urls(kind: str, url: str | Sequence[str]) -> str | list[str]:
    """Return the URL of a source, or those of a list, as a sequence or as the text ``[a.tar,b.tar]``."""
    if not has_fields(kind):
        return str(url)
    parts = [part for text in ([url] if isinstance(url, str) else url) for part in divide_list(text)]
    return parts[0] if isinstance(url, str) and parts == [url.strip()] else parts


def _make_own(part: Part, arguments: SourceArguments) -> Source | Table:
    for name, value in (("url", arguments.url), ("split", arguments.split)):
        if value and name not in part.parameters:
            raise UserError(f"data.source.{name}={value}: {part.name} has no {name}; leave it out")
    return own_table(part, arguments) if part.facts["of"] == "rows" else OwnSource(part, arguments)
