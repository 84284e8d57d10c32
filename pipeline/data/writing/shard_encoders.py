"""Shard encoders: the samples of a source become members of a tar file.

The writer handles shards, processes and interruptions; an encoder handles images or rows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.data import image_codec
from pipeline.data.image_files import UnreadableImage
from pipeline.data.manifest import ENCODINGS
from pipeline.data.permutation import mixing_order
from pipeline.data.reading.shard import BLOCK_IMAGES, BLOCK_LABELS, IMAGE, IMAGE_LABEL, ROWS
from pipeline.data.sources.base import BrokenImage, Source, Table
from pipeline.runtime.errors import UserError

__all__ = ["EncodedShard", "ImageShardEncoder", "RowShardEncoder", "ShardEncoder", "choose_encoder"]

# Images in a block: enough that the overhead of a block is small, few enough to inspect one by itself.
_BLOCK = 1024
# One image of this size is 192 MiB, and a process holds a shard of them.
_MAX_RESOLUTION = 8192


class EncodedShard(NamedTuple):
    """Contents of one shard.

    Args:
        members: The samples of the tar file, as webdataset writes them.
        num_samples: Number of images or rows in them.
        broken: Name and reason of each image of the source that could not be read and is left out.
    """

    members: Iterator[dict[str, str | bytes]]
    num_samples: int
    broken: tuple[tuple[str, str], ...]


class ShardEncoder(Protocol):
    """Source and its encoding in a store. It can be sent to another process."""

    @property
    def source(self) -> Source | Table:
        """Source of the samples."""
        ...

    @property
    def resolution(self) -> int | None:
        """Height and width of the images, in pixels, or None for rows."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the images or columns of the rows."""
        ...

    @property
    def encoding(self) -> str:
        """One of ``pipeline.data.manifest.ENCODINGS``."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, or None."""
        ...

    @property
    def resize_filter(self) -> str | None:
        """Filter that images are resized with, or None for rows."""
        ...

    @property
    def unit(self) -> str:
        """Noun for the samples in a message: "images" or "rows"."""
        ...

    @property
    def worth_processes(self) -> bool:
        """Whether encoding a shard takes longer than starting a process."""
        ...

    def order(self) -> np.ndarray:
        """Return the samples of the source, int64 (N,), in the order of the store."""
        ...

    def encode(self, indices: np.ndarray, first: int, advance: Callable[[int], None]) -> EncodedShard:
        """Encode the samples of one shard.

        Args:
            indices: The samples, as indices in the source, int64 (n,).
            first: Index of the first of them in the store.
            advance: Called with a number of samples whenever that many more are done.
        """
        ...


def choose_encoder(
    source: Source | Table,
    resolution: int | None,
    channels: int | None,
    encoding: str,
    resize_filter: str = image_codec.DEFAULT_FILTER,
) -> ShardEncoder:
    """Return the encoder of a source.

    Args:
        source: A source of images or a table.
        resolution: Height and width of the images, in pixels. None for rows.
        channels: 1 (gray) or 3 (RGB). For rows, their number of columns, or None for the table's.
        encoding: "images" or "blocks" for images, "rows" for a table.
        resize_filter: Filter that images are resized with, a name of ``pipeline.data.image_codec.FILTERS``.

    Returns:
        The encoder.

    Raises:
        UserError: If the source does not fit the encoding, or a number is out of its range.

    Example:
        >>> table = Table("toy", None, None, np.zeros((5, 2), np.float32))
        >>> choose_encoder(table, None, None, "rows").channels
        2
    """
    if encoding not in ENCODINGS:
        raise UserError(f"no encoding {encoding!r}: choose one of {', '.join(ENCODINGS)}")
    if isinstance(source, Table):
        columns = source.rows.shape[1]
        if encoding != "rows":
            raise UserError(f"a source of kind {source.kind!r} gives rows, not images: set data.encoding=rows")
        if resolution is not None:
            raise UserError(f"rows have no pixels, so there is no resolution {resolution}: set data.resolution=null")
        if channels not in (None, columns):
            raise UserError(
                f"the rows of {source.kind} have {columns} columns, not {channels}: set data.channels={columns}"
            )
        return RowShardEncoder(source)
    if encoding == "rows":
        raise UserError(f"a source of kind {source.kind!r} gives images, not rows: set data.encoding=blocks")
    if resolution is None or resolution < 1:
        raise UserError(f"the resolution {resolution} is not positive: give a number of pixels")
    if resolution > _MAX_RESOLUTION:
        raise UserError(f"data.resolution={resolution}: a store has images of {_MAX_RESOLUTION} pixels at most")
    if channels not in (1, 3):
        raise UserError(f"a store has 1 or 3 channels, not {channels}: choose one")
    if resize_filter not in image_codec.FILTERS:
        raise UserError(f"data.resize_filter={resize_filter}: choose one of {', '.join(image_codec.FILTERS)}")
    return ImageShardEncoder(source, resolution, channels, encoding, resize_filter)


class ImageShardEncoder:
    """Encoder of images, which are resized and mixed.

    Args:
        source: Source of the images.
        resolution: Height and width of the images, in pixels.
        channels: 1 (gray) or 3 (RGB).
        encoding: "images" (a PNG file a sample) or "blocks" (arrays of many images).
        resize_filter: Filter that they are resized with.
    """

    unit = "images"
    worth_processes = True

    def __init__(self, source: Source, resolution: int, channels: int, encoding: str, resize_filter: str) -> None:
        self.source = source
        self.resize_filter = resize_filter
        self.resolution = resolution
        self.channels = channels
        self.encoding = encoding
        self.labels = source.labels

    def order(self) -> np.ndarray:
        """Return a fixed permutation; see ``pipeline.data.permutation.mixing_order``."""
        return mixing_order(len(self.source))

    def encode(self, indices: np.ndarray, first: int, advance: Callable[[int], None]) -> EncodedShard:
        """Encode the images at ``indices``; broken ones are named and left out."""
        images: list[np.ndarray] = []
        labels: list[int | None] = []
        broken: list[tuple[str, str]] = []
        resize = image_codec.resize_center_crop
        for index in indices:
            try:
                image, label = self.source.read(int(index))
                images.append(resize(image, self.resolution, self.channels, self.resize_filter))
                labels.append(label)
            except BrokenImage as error:
                broken.append((self.source.name(int(index)), error.reason))
            except UnreadableImage as error:
                broken.append((self.source.name(int(index)), str(error)))
            advance(1)
        members = self._encoded if self.encoding == "images" else self._blocks
        return EncodedShard(members(images, labels, first), len(images), tuple(broken))

    def _encoded(
        self, images: list[np.ndarray], labels: list[int | None], first: int
    ) -> Iterator[dict[str, str | bytes]]:
        for offset, image in enumerate(images):
            sample: dict[str, str | bytes] = {"__key__": f"{first + offset:09d}", IMAGE: image_codec.encode(image)}
            if self.labels is not None:
                sample[IMAGE_LABEL] = str(labels[offset]).encode()
            yield sample

    def _blocks(
        self, images: list[np.ndarray], labels: list[int | None], first: int
    ) -> Iterator[dict[str, str | bytes]]:
        for offset in range(0, len(images), _BLOCK):
            block = slice(offset, offset + _BLOCK)
            sample: dict[str, str | bytes] = {
                "__key__": f"{first + offset:09d}",
                BLOCK_IMAGES: _npy(np.stack(images[block])),
            }
            if self.labels is not None:
                sample[BLOCK_LABELS] = _npy(np.array(labels[block], np.int64))
            yield sample


class RowShardEncoder:
    """Encoder of a table's rows, one array a shard, in the order of their publisher: a split of them mixes them.

    Args:
        source: The table.
    """

    resolution = None
    encoding = "rows"
    labels = None
    resize_filter = None
    unit = "rows"
    worth_processes = False

    def __init__(self, source: Table) -> None:
        self.source = source
        self.channels = source.rows.shape[1]

    def order(self) -> np.ndarray:
        """Return the order of the publisher."""
        return np.arange(len(self.source))

    def encode(self, indices: np.ndarray, first: int, advance: Callable[[int], None]) -> EncodedShard:
        """Encode the rows at ``indices``."""
        rows = self.source.rows[indices]
        advance(len(rows))
        return EncodedShard(iter([{"__key__": f"{first:09d}", ROWS: _npy(rows)}]), len(rows), ())


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
