"""Decoded shards: the members of an untrusted tar file become arrays."""

from __future__ import annotations

import hashlib
import io
import math
import re
import tarfile
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from webdataset.tariterators import group_by_keys

from pipeline.data import image_codec
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.store import Store
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error

__all__ = ["BLOCK_IMAGES", "BLOCK_LABELS", "IMAGE", "IMAGE_LABEL", "ROWS", "DecodedShard", "read_shard"]

IMAGE = "png"
IMAGE_LABEL = "cls"
BLOCK_IMAGES = "images.npy"
BLOCK_LABELS = "labels.npy"
ROWS = "rows.npy"

# Of version 1.0 of NumPy's format: the magic, the length in two bytes, and a header that they can count.
_NPY_HEADER_BYTES = 10 + 2**16

_IMAGE_SUFFIXES = (IMAGE, "jpg", "jpeg", "webp")


class DecodedShard(Protocol):
    """Images or rows of one shard in memory."""

    @property
    def num_samples(self) -> int:
        """Number of images or rows, N."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """Labels, int64 (N,), or None."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that it may use once all samples are decoded, in bytes."""
        ...

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Return the samples at ``indices`` (n,): images, uint8 (n, C, H, W), or rows, float32 (n, D)."""
        ...


def read_shard(store: Store, shard: Shard) -> DecodedShard:
    """Read one shard and check it against the manifest.

    Members are images, decimal numbers or arrays of plain numbers; nothing in a shard can be executed.

    Args:
        store: The store.
        shard: One of the shards of its manifest.

    Returns:
        The shard's images or rows, in store order.

    Raises:
        UserError: If the SHA-256 or the number of samples differs from the manifest's, or a member is not of a store of
            this encoding.
    """
    where = f"{shard.name} of the store {store.url}"

    def fetch() -> bytes:
        # Twice, for a transfer may have damaged it.
        for _ in range(2):
            with as_user_error(where):
                data, version = store.fetch_with_version(shard)
            if version is not None and store.checked.get(shard.name) == version:
                return data
            if hashlib.sha256(data).hexdigest() == shard.sha256:
                if version is not None and version.is_settled:
                    store.checked[shard.name] = version
                return data
        raise _Invalid("differs from the SHA-256 of its manifest")

    try:
        data = fetch() if store.cache is None else store.cache.read(shard, fetch)
        samples = list(_samples(data, store.manifest))
        decoded = _KINDS[store.manifest.encoding](where, samples, store.manifest)
        if decoded.num_samples != shard.num_samples:
            count = f"{decoded.num_samples} {store.manifest.unit}"
            raise _Invalid(f"holds {count}, its manifest says {shard.num_samples}")
    except _Invalid as error:
        raise UserError(f"{where} {error}: make the store again") from None
    return decoded


class _Invalid(Exception):
    """Error of a shard: the rest of a sentence that begins "<shard> of the store <url>"."""


# A sample has the contents of its members by suffix, and the common part of their names as ``__key__``.
_Sample = dict[str, Any]


def _samples(data: bytes, manifest: Manifest) -> Iterator[_Sample]:
    labels = manifest.labels is not None
    if manifest.encoding == "images":
        expected = [{suffix} | ({IMAGE_LABEL} if labels else set()) for suffix in _IMAGE_SUFFIXES]
    elif manifest.encoding == "blocks":
        expected = [{BLOCK_IMAGES} | ({BLOCK_LABELS} if labels else set())]
    else:
        expected = [{ROWS}]
    known = set().union(*expected)

    try:
        for sample in group_by_keys(_members(data, known, manifest.encoding)):
            suffixes = {suffix for suffix in sample if not suffix.startswith("__")}
            if suffixes not in expected:
                raise _Invalid(f"has the sample {sample['__key__']!r} with {', '.join(sorted(suffixes))} only")
            yield sample
    # Beyond its own errors: sizes in damaged headers of extensions, and chains of these.
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise _Invalid(f"is not a readable tar file ({_first_line(error)})") from None


def _members(data: bytes, known: set[str], encoding: str) -> Iterator[_Sample]:
    """Yield the name and the contents of each file in a tar file without compression, so that none is larger than it.

    webdataset's own iterator also unpacks gzip and fills the holes of sparse files, with no limit.
    """
    view = memoryview(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for info in tar:
            # It would keep them all; typeshed does not know where.
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            if not info.isreg() or info.issparse() or info.name.partition(".")[2] not in known or "/" in info.name:
                raise _Invalid(f"has the member {info.name!r}, no part of a store with encoding {encoding!r}")
            end = info.offset_data + info.size
            if end > len(data):
                raise tarfile.ReadError("unexpected end of data")
            # Arrays are views of the shard. Of images, one that is decoded is freed while others are not yet.
            content = data[info.offset_data : end] if encoding == "images" else view[info.offset_data : end]
            yield {"fname": info.name, "data": content, "__url__": ""}


class _Images:
    """Encoded images. Each is decoded when it is first gathered, and then kept in place of its file."""

    def __init__(self, where: str, samples: list[_Sample], manifest: Manifest) -> None:
        self.num_samples = len(samples)
        self._where = where
        self._keys = [sample["__key__"] for sample in samples]
        files = [next(sample[suffix] for suffix in _IMAGE_SUFFIXES if suffix in sample) for sample in samples]
        self._files: list[bytes | None] = [*files]
        self.labels = None if manifest.labels is None else self._labels(samples, len(manifest.labels))
        # Memory that is not written to is not used: a rank that reads an eighth of the images needs an eighth.
        self._pixels = np.empty((len(samples), *manifest.sample_shape), manifest.dtype)
        self.nbytes = self._pixels.nbytes + sum(map(len, files))

    def _labels(self, samples: list[_Sample], num_classes: int) -> np.ndarray:
        labels = np.empty(len(samples), np.int64)
        for index, sample in enumerate(samples):
            text = sample[IMAGE_LABEL]
            if not re.fullmatch(rb"[0-9]{1,9}", text) or int(text) >= num_classes:
                member = f"{sample['__key__']}.{IMAGE_LABEL}"
                raise _Invalid(f"has the member {member!r}, which is no label below {num_classes}")
            labels[index] = int(text)
        return labels

    def gather(self, indices: np.ndarray) -> np.ndarray:
        for index in indices:
            file = self._files[index]
            if file is not None:
                self._pixels[index] = self._decode(index, file)
                self._files[index] = None
        return self._pixels[indices]

    def _decode(self, index: int, file: bytes) -> np.ndarray:
        try:
            return image_codec.decode(file, self._pixels.shape[1:])
        except image_codec.WrongShape as error:
            raise self._broken(index, str(error)) from None
        # Pillow raises exceptions of many kinds for bytes that are no image.
        except Exception as error:
            raise self._broken(index, f"is not an image of a store ({_first_line(error)})") from None

    def _broken(self, index: int, what: str) -> UserError:
        return UserError(f"{self._where} has the member {self._keys[index]!r}, which {what}: make the store again")


class _Blocks:
    """Arrays of decoded images."""

    def __init__(self, where: str, samples: list[_Sample], manifest: Manifest) -> None:
        images = [_array(sample, BLOCK_IMAGES, manifest.dtype, manifest.sample_shape) for sample in samples]
        self._pixels = _join(images, manifest)
        self.num_samples = len(self._pixels)
        self.nbytes = self._pixels.nbytes
        self.labels = None
        if manifest.labels is not None:
            labels = [_array(sample, BLOCK_LABELS, np.dtype(np.int64), ()) for sample in samples]
            for sample, block, ids in zip(samples, images, labels, strict=True):
                member = f"{sample['__key__']}.{BLOCK_LABELS}"
                if len(ids) != len(block):
                    raise _Invalid(f"has the member {member!r} with {len(ids)} labels for {len(block)} images")
                if ((ids < 0) | (ids >= len(manifest.labels))).any():
                    raise _Invalid(f"has the member {member!r} with a label that is not below {len(manifest.labels)}")
            self.labels = np.concatenate(labels) if labels else np.empty(0, np.int64)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        # Not by indexing, which copies number by number where this copies image by image.
        return self._pixels.take(indices, axis=0)


class _Rows:
    """Arrays of a table's rows."""

    labels = None

    def __init__(self, where: str, samples: list[_Sample], manifest: Manifest) -> None:
        rows = [_array(sample, ROWS, manifest.dtype, manifest.sample_shape) for sample in samples]
        for sample, block in zip(samples, rows, strict=True):
            if not np.isfinite(block).all():
                member = f"{sample['__key__']}.{ROWS}"
                raise _Invalid(f"has the member {member!r} with a number that is not finite")
        self._rows = _join(rows, manifest)
        self.num_samples = len(self._rows)
        self.nbytes = self._rows.nbytes

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return self._rows.take(indices, axis=0)


_KINDS = {"images": _Images, "blocks": _Blocks, "rows": _Rows}


def _array(sample: _Sample, suffix: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    member = f"{sample['__key__']}.{suffix}"
    try:
        array = _load_array(sample[suffix])
    # NumPy parses the header as a Python literal, which raises exceptions of many kinds.
    except Exception as error:
        raise _Invalid(f"has the member {member!r}, which is no array of numbers ({_first_line(error)})") from None
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim == 0 or array.shape[1:] != shape:
        expected = f"{dtype.name} (N{''.join(f', {size}' for size in shape)})"
        raise _Invalid(f"has the member {member!r}, which is not an array {expected}")
    return array


def _load_array(content: memoryview) -> np.ndarray:
    """Return the array of a ``.npy`` file as a view of its bytes, of which NumPy's own reader makes two copies."""
    file = io.BytesIO(content[:_NPY_HEADER_BYTES])
    if np.lib.format.read_magic(file) != (1, 0):
        return np.load(io.BytesIO(content), allow_pickle=False)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran or dtype.hasobject:
        return np.load(io.BytesIO(content), allow_pickle=False)
    return np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape)


def _join(arrays: list[np.ndarray], manifest: Manifest) -> np.ndarray:
    """Return arrays one after another; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty((0, *manifest.sample_shape), manifest.dtype)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
