"""What a store says of itself: `manifest.json`.

    {
      "format_version": 1,
      "resolution": 32, "channels": 3, "encoding": "blocks",
      "labels": ["airplane", ...] or null,
      "source": {"kind": "images", "url": "s3://bucket/cifar10.zip", "split": "train"},
      "num_samples": 50000,
      "shards": [{"name": "shard-000000.tar", "num_samples": 4096, "bytes": 12636160, "sha256": "..."}, ...]
    }

A sample is one image, or one row of a table, so `num_samples` counts them and adds up over the shards. A store of rows
has `"resolution": null`, its number of columns as `channels`, and no labels. The manifest is written after every shard:
a directory without one is not a store.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace

import numpy as np

from pipeline.runtime.errors import UserError

__all__ = ["ENCODINGS", "FORMAT_VERSION", "MANIFEST_NAME", "Manifest", "Shard", "Source"]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
ENCODINGS = ("images", "blocks", "rows")

# A shard lies beside its manifest: a name with a slash could point a reader at any other object.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file of a store.

    Args:
        name: File name, beside the manifest.
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
    """Where the images or rows of a store came from.

    Args:
        kind: The published format, a name of `pipeline.data.sources.KINDS`.
        url: Where the publisher's files lay, or None where they come with a library.
        split: The split of the data set that was taken, or None for all of it.
    """

    kind: str
    url: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The description of a store and of each of its shards.

    Args:
        resolution: Height and width of every image, in pixels. None for rows.
        channels: 1 (grey) or 3 (RGB). For rows, the number of columns.
        encoding: "images" (one encoded image a tar sample), "blocks" (one uint8 array N x C x H x W a tar sample) or
            "rows" (one float32 array N x D a tar sample).
        labels: Class names, of which a label is the index, or None for a store without labels, such as one of rows.
        source: Where the images or rows came from.
        num_samples: Number of images or rows in the store.
        shards: The shards, in store order.

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

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any of the store's bytes: they name what is cached of it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample in memory: (C, H, W) of an image, (D,) of a row."""
        if self.encoding == "rows":
            return (self.channels,)
        return self.channels, self.resolution, self.resolution

    @property
    def dtype(self) -> np.dtype:
        """The type of a sample's numbers in memory: uint8 of an image, float32 of a row."""
        return np.dtype(np.float32 if self.encoding == "rows" else np.uint8)

    @property
    def sample_bytes(self) -> int:
        """Size of one decoded sample in bytes."""
        return math.prod(self.sample_shape) * self.dtype.itemsize

    @property
    def unit(self) -> str:
        """What the samples are called in a sentence: "images" or "rows"."""
        return "rows" if self.encoding == "rows" else "images"

    def without_last(self, held_out: int) -> Manifest:
        """The same store as if it ended before its last samples, which are held out of training.

        The writer has mixed the images, so the last of them are a sample of all.

        Args:
            held_out: How many samples to leave out.

        Raises:
            UserError: If nothing would be left.

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
        """The text of `manifest.json`."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, url: str) -> Manifest:
        """Reads a manifest and checks all it says.

        Args:
            text: The contents of `manifest.json`.
            url: The store's URL, for the error message.

        Returns:
            The manifest.

        Raises:
            UserError: If the text is not a manifest of this format, or contradicts itself.
        """
        try:
            return _manifest(text)
        except _Invalid as error:
            raise UserError(f"the manifest of the store {url} {error}: make the store again") from None


class _Invalid(Exception):
    """The rest of a sentence that begins "the manifest of the store <url>"."""


def _manifest(text: str | bytes) -> Manifest:
    if not text.strip():
        raise _Invalid("is empty")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _Invalid("is not JSON") from None
    keys = ("format_version", "resolution", "channels", "encoding", "labels", "source", "num_samples", "shards")
    _check_keys(value, keys, "")
    if value["format_version"] != FORMAT_VERSION:
        raise _Invalid(f"has format_version {value['format_version']!r}, but this version reads {FORMAT_VERSION}")
    _check(value["encoding"] in ENCODINGS, f"encoding is none of {', '.join(ENCODINGS)}")
    if value["encoding"] == "rows":
        _check(value["resolution"] is None, "resolution is not null, and rows have no pixels")
        _check(_is_count(value["channels"]), "channels is not a positive whole number of columns")
        _check(value["labels"] is None, "labels is not null, and rows have none")
    else:
        _check(_is_count(value["resolution"]), "resolution is not a positive whole number")
        _check(value["channels"] in (1, 3) and _is_count(value["channels"]), "channels is neither 1 nor 3")
    labels = value["labels"]
    _check(
        labels is None or (isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels)),
        "labels is neither null nor a list of class names",
    )
    source = value["source"]
    _check_keys(source, ("kind", "url", "split"), "source.")
    _check(isinstance(source["kind"], str), "source.kind is not a text")
    for key in ("url", "split"):
        _check(source[key] is None or isinstance(source[key], str), f"source.{key} is neither null nor a text")
    _check(isinstance(value["shards"], list), "shards is not a list")
    shards = tuple(_shard(entry, f"shards[{index}]") for index, entry in enumerate(value["shards"]))
    _check(len({shard.name for shard in shards}) == len(shards), "shards names a shard twice")
    if not shards or value["num_samples"] == 0:
        raise _Invalid("lists no samples")
    total = sum(shard.num_samples for shard in shards)
    if value["num_samples"] != total:
        raise _Invalid(f"says num_samples {value['num_samples']!r}, but its shards add up to {total}")
    return Manifest(
        resolution=value["resolution"],
        channels=value["channels"],
        encoding=value["encoding"],
        labels=None if labels is None else tuple(labels),
        source=Source(**source),
        num_samples=total,
        shards=shards,
    )


def _shard(entry: object, where: str) -> Shard:
    _check_keys(entry, ("name", "num_samples", "bytes", "sha256"), f"{where}.")
    name, sha256 = entry["name"], entry["sha256"]
    _check(isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None, f"{where}.name is not a plain *.tar name")
    _check(_is_count(entry["num_samples"]), f"{where}.num_samples is not a positive whole number")
    _check(_is_count(entry["bytes"]), f"{where}.bytes is not a positive whole number")
    _check(isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None, f"{where}.sha256 is not a SHA-256")
    return Shard(**entry)


def _check_keys(value: object, keys: tuple[str, ...], prefix: str) -> None:
    _check(isinstance(value, dict), f"{prefix.rstrip('.') or 'it'} is not an object")
    for key in keys:
        if key not in value:
            raise _Invalid(f"has no key {prefix}{key}")
    for key in value:
        if key not in keys:
            raise _Invalid(f"has an unknown key {prefix}{key}")


def _check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Invalid(f"is wrong: {otherwise}")


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0
