"""Manifest of a store: ``manifest.json``.

    {
      "format_version": 1,
      "resolution": 32, "channels": 3, "encoding": "blocks",
      "labels": ["airplane", ...] or null,
      "resize_filter": "lanczos",
      "source": {"kind": "images", "url": "s3://bucket/cifar10.zip", "split": "train", "fingerprint": "5e0c..."},
      "num_samples": 50000,
      "ledger": {"taken": 50000, "broken": [{"reason": "cut short", "count": 1, "names": ["a"]}], "passed_over": []},
      "shards": [{"name": "shard-000000.tar", "num_samples": 4096, "bytes": 12636160, "sha256": "..."}, ...]
    }

A sample is one image, or one row of a table, so ``num_samples`` counts them and adds up over the shards. A store of
rows has ``"resolution": null``, its number of columns as ``channels``, and neither labels, a filter nor a ledger. Older
stores have no filter, which was Lanczos, no fingerprint and no ledger. The manifest is written after every shard: a
directory without one is not a store.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.data.ledger import Group, Ledger
from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name
from pipeline.runtime.untrusted import MANIFEST, parse_json

__all__ = [
    "ENCODINGS",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "Manifest",
    "Shard",
    "ShardEntry",
    "Source",
    "StrictModel",
    "Text",
    "describe",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
ENCODINGS = ("images", "blocks", "rows")
# A file in a tar file has a header and contents, in blocks of 512 bytes.
_MEMBER_BYTES = 1024
# Of deflate, by which PNG compresses, rounded up.
_BEST_COMPRESSION = 1100


@dataclass(frozen=True)
class Shard:
    """One tar file of a store.

    Args:
        name: File name, in the folder of the manifest.
        num_samples: Number of images or rows in it.
        bytes: Size of the file in bytes.
        sha256: SHA-256 of the file, in hexadecimal.
    """

    name: str
    num_samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Origin of the images or rows of a store.

    Args:
        kind: The published format, a name of ``pipeline.data.sources.NAMES``.
        url: URL of the publisher's files, or None where they come with a library.
        split: The split of the data set that was taken, or None for all of it.
        fingerprint: Fingerprint of the publisher's files, see ``pipeline.data.sources.fingerprint``, or None where it
            is unknown.
    """

    kind: str
    url: str | None = None
    split: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Description of a store and of each of its shards.

    Args:
        resolution: Height and width of every image, in pixels. None for rows.
        channels: 1 (gray) or 3 (RGB). For rows, the number of columns.
        encoding: "images" (one encoded image a tar sample), "blocks" (one uint8 array N x C x H x W a tar sample) or
            "rows" (one float32 array N x D a tar sample).
        labels: Class names, of which a label is the index, or None for a store without labels, such as one of rows.
        source: Origin of the images or rows.
        num_samples: Number of images or rows in the store.
        shards: The shards, in store order.
        resize_filter: Filter that the images were resized with, or None for rows, and where it is unknown.
        ledger: Account of the source's files, or None for rows and where it is unknown.

    Example:
        >>> shard = Shard("shard-000000.tar", num_samples=2, bytes=10240, sha256="0" * 64)
        >>> manifest = Manifest(8, 1, "blocks", None, Source("digits"), num_samples=2, shards=(shard,))
        >>> Manifest.from_json(manifest.to_json(), "memory://here") == manifest
        True
        >>> manifest.sample_shape, manifest.dtype
        ((1, 8, 8), dtype('uint8'))
    """

    resolution: int | None
    channels: int
    encoding: str
    labels: tuple[str, ...] | None
    source: Source
    num_samples: int
    shards: tuple[Shard, ...]
    resize_filter: str | None = None
    ledger: Ledger | None = None

    @property
    def digest(self) -> str:
        """Key of caches of this store: sixteen hexadecimal digits that change with any byte of its samples.

        The account of how the samples were made is not part of it.
        """
        made_anyhow = replace(self, resize_filter=None, ledger=None, source=replace(self.source, fingerprint=None))
        return hashlib.sha256(made_anyhow.to_json().encode()).hexdigest()[:16]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample in memory: (C, H, W) of an image, (D,) of a row."""
        if self.resolution is None:
            return (self.channels,)
        return self.channels, self.resolution, self.resolution

    @property
    def dtype(self) -> np.dtype:
        """Data type of a sample in memory: uint8 of an image, float32 of a row."""
        return np.dtype(np.float32 if self.encoding == "rows" else np.uint8)

    @property
    def sample_bytes(self) -> int:
        """Size of one decoded sample in bytes."""
        return math.prod(self.sample_shape) * self.dtype.itemsize

    @property
    def unit(self) -> str:
        """Noun for the samples in a message: "images" or "rows"."""
        return "rows" if self.encoding == "rows" else "images"

    def without_last(self, held_out: int) -> Manifest:
        """Return the manifest without the last samples, which are held out of training.

        The writer has mixed the images, so the last of them are a sample of all.

        Args:
            held_out: Number of samples to leave out.

        Raises:
            UserError: If no sample would be left.

        Example:
            >>> shards = tuple(Shard(f"{i}.tar", num_samples=3, bytes=1, sha256="") for i in range(2))
            >>> manifest = Manifest(8, 1, "blocks", None, Source("digits"), num_samples=6, shards=shards)
            >>> [shard.num_samples for shard in manifest.without_last(2).shards]
            [3, 1]
            >>> [shard.num_samples for shard in manifest.without_last(3).shards]
            [3]
        """
        if held_out >= self.num_samples:
            raise UserError(
                f"data.held_out={held_out}: the store has {self.num_samples} {self.unit}; hold out fewer than that"
            )
        shards, left = [], self.num_samples - held_out
        for shard in self.shards:
            if left <= 0:
                break
            shards.append(replace(shard, num_samples=min(shard.num_samples, left)))
            left -= shard.num_samples
        return replace(self, num_samples=self.num_samples - held_out, shards=tuple(shards))

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        document = {"format_version": FORMAT_VERSION, **asdict(self)}
        # What an older store does not say is left out again.
        source = document["source"]
        for entry, name in ((document, "resize_filter"), (document, "ledger"), (source, "fingerprint")):
            if entry[name] is None:
                del entry[name]
        # The list of shards is long, and comes last.
        document["shards"] = document.pop("shards")
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, url: str) -> Manifest:
        """Parse a manifest and validate every field.

        Args:
            text: The contents of ``manifest.json``.
            url: The store's URL, for the error message.

        Returns:
            The manifest.

        Raises:
            UserError: If the text is not a manifest of this format, or contradicts itself.
        """
        try:
            file = _ManifestFile.model_validate(parse_json(text, MANIFEST))
        except ValidationError as error:
            problem = describe(error)
        except (ValueError, RecursionError):
            problem = "is not JSON" if text.strip() else "is empty"
        else:
            return cls(
                resolution=file.resolution,
                channels=file.channels,
                encoding=file.encoding,
                labels=None if file.labels is None else tuple(file.labels),
                source=Source(**file.source.model_dump()),
                num_samples=sum(shard.num_samples for shard in file.shards),
                shards=tuple(Shard(**shard.model_dump()) for shard in file.shards),
                resize_filter=file.resize_filter,
                ledger=None if file.ledger is None else file.ledger.to_ledger(),
            )
        raise UserError(f"the manifest of the store {url} {problem}: make the store again")


class StrictModel(BaseModel):
    """Model of an untrusted JSON object: every key is required, no other is allowed, and no value is converted."""

    model_config = ConfigDict(strict=True, extra="forbid")


# Not ``str``: pydantic refuses a lone surrogate, which JSON may escape and the names of files may have.
Text = InstanceOf[str]


class ShardEntry(StrictModel):
    """Entry of one shard, see ``Shard``."""

    # A shard is in the folder of its manifest: a name with a slash could point a reader at any other object.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.tar$")]
    num_samples: PositiveInt
    bytes: PositiveInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _SourceEntry(StrictModel):
    kind: Text
    url: Text | None
    split: Text | None
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")] | None = None


def _check_version(value: object) -> object:
    if value != FORMAT_VERSION:
        raise _invalid(f"format_version should be {FORMAT_VERSION}, not {reprlib.repr(value)}")
    return value


def _invalid(message: str) -> PydanticCustomError:
    # The message is an argument of the template, or braces in it would be the template's own.
    return PydanticCustomError("invalid", "{message}", {"message": message})


class _LedgerGroup(StrictModel):
    reason: str
    count: PositiveInt
    names: Annotated[list[str], Field(min_length=1)]


class _LedgerEntry(StrictModel):
    taken: NonNegativeInt
    broken: list[_LedgerGroup]
    passed_over: list[_LedgerGroup]

    def to_ledger(self) -> Ledger:
        return Ledger(self.taken, _groups(self.broken), _groups(self.passed_over))


def _groups(entries: list[_LedgerGroup]) -> tuple[Group, ...]:
    return tuple(
        Group(printable_name(entry.reason), entry.count, tuple(map(printable_name, entry.names))) for entry in entries
    )


class _ManifestFile(StrictModel):
    format_version: Annotated[Any, AfterValidator(_check_version)]
    resolution: PositiveInt | None
    channels: PositiveInt
    encoding: Literal["images", "blocks", "rows"]
    labels: Annotated[list[Text], Field(min_length=1)] | None
    resize_filter: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")] | None = None
    source: _SourceEntry
    num_samples: Any
    shards: Annotated[list[ShardEntry], Field(min_length=1)]
    ledger: _LedgerEntry | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        rows = self.encoding == "rows"
        total = sum(shard.num_samples for shard in self.shards)
        num_samples = reprlib.repr(self.num_samples)
        rules = [
            (not rows or self.resolution is None, "resolution should be null, because rows have no pixels"),
            (not rows or self.labels is None, "labels should be null, because rows have none"),
            (rows or self.resolution is not None, "resolution should be a number of pixels"),
            (rows or self.channels in (1, 3), "channels should be 1 or 3"),
            (len({shard.name for shard in self.shards}) == len(self.shards), "shards should have different names"),
            (self.num_samples == total, f"num_samples should be {total} as in the shards, not {num_samples}"),
            (self.ledger is None or not rows, "ledger should be null, because rows have none"),
            (self.ledger is None or self.ledger.taken == total, f"ledger.taken should be {total} as in the shards"),
        ]
        for valid, message in rules:
            if not valid:
                raise _invalid(message)
        self._check_sizes()
        return self

    def _check_sizes(self) -> None:
        """Refuse more samples, or larger ones, than the shards have bytes for: memory is asked for by these numbers."""
        pixels = 1 if self.resolution is None else self.resolution**2
        sample_bytes = self.channels * pixels * (4 if self.encoding == "rows" else 1)
        if self.encoding == "images":
            members = 1 if self.labels is None else 2
            sample_bytes = max(members * _MEMBER_BYTES, sample_bytes // _BEST_COMPRESSION)
        for shard in self.shards:
            most = shard.bytes // sample_bytes
            if shard.num_samples > most:
                of = "rows of this width" if self.encoding == "rows" else "images of this resolution"
                raise _invalid(
                    f"num_samples of {shard.name} should be {reprlib.repr(most)} at most, for its "
                    f"{reprlib.repr(shard.bytes)} bytes hold no more {of}, not {reprlib.repr(shard.num_samples)}"
                )


def describe(error: ValidationError) -> str:
    """Return the first error of a strict model in words, as the rest of a sentence about its JSON object.

    Args:
        error: The error of a ``StrictModel``.

    Example:
        >>> try:
        ...     ShardEntry.model_validate({"name": "0.tar", "num_samples": 0, "bytes": 1, "sha256": "0" * 64})
        ... except ValidationError as error:
        ...     print("the entry", describe(error))
        the entry is wrong: num_samples should be greater than 0
    """
    first = error.errors(include_url=False, include_input=False)[0]
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{_printable(key)}" for key in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return f"has no key {path}"
    if first["type"] == "extra_forbidden":
        return f"has an unknown key {path}"
    if first["type"] == "model_type":
        return f"is wrong: {path or 'it'} should be an object"
    # Pydantic's messages begin with "Input should", "String should" or the like; those of this module name the field.
    message = re.sub(r"^[A-Z][a-z]+ should", lambda _: f"{path} should", first["msg"])
    return f"is wrong: {message.replace('an instance of str', 'a valid string')}"


def _printable(key: str) -> str:
    """Return a key of a JSON object, escaped and cut as a one-line message needs it."""
    return key if key.isprintable() and len(key) < 40 else reprlib.repr(key)
