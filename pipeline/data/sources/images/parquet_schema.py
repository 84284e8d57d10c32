"""Columns of a parquet file that anybody may have written: which are images and labels, and their values row by row."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.sources.images.label_fields import AUTO, DAMAGED, NO_LABEL, to_label
from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name
from pipeline.runtime.untrusted import InvalidDocument, Limits, parse_json

__all__ = ["ParquetColumns", "PlainParquet", "Row", "choose_columns"]

Row = tuple[bytes | None, int | str | None]
"""Image of a row and its label, each or None."""

_MAGIC = b"PAR1"
_TAIL = struct.Struct("<I4s")
_MAX_FOOTER = 2**26
# Of pyarrow, which would make the types that are registered under the names in it, by code of theirs.
_STORED_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"-----:schema"
_HUGGING_FACE = b"huggingface"
_FEATURES = Limits(num_bytes=2**24, values=200_000)
_IMAGES, _LABELS = ("image", "img"), ("label", "cls", "class")
_MAX_SHOWN = 10


class _PlainFile:
    """Parquet file without the schema of Arrow that its writer may have stored, so that its types are parquet's own."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, 2)
        file.seek(max(self.size - _TAIL.size, 0))
        tail = file.read(_TAIL.size)
        length, magic = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
        if magic != _MAGIC:
            raise ValueError("it does not end as a parquet file does")
        if length > min(_MAX_FOOTER, self.size):
            raise ValueError(f"its footer has {length:,} bytes")
        self._start = max(self.size - _TAIL.size - length, 0)
        file.seek(self._start)
        self._footer = file.read().replace(_STORED_SCHEMA, _NO_SCHEMA)
        self._file = file
        self._position = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        end = self.size if size < 0 else min(self._position + size, self.size)
        parts = []
        if self._position < self._start:
            self._file.seek(self._position)
            parts.append(self._file.read(min(end, self._start) - self._position))
        if end > self._start:
            parts.append(self._footer[max(self._position - self._start, 0) : end - self._start])
        data = b"".join(parts)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self.closed = True


class PlainParquet:
    """Open parquet file.

    Args:
        file: The file, open.

    Raises:
        ValueError: If it is no parquet file, or damaged; pyarrow's own errors are others.
    """

    def __init__(self, file: BinaryIO) -> None:
        plain = _PlainFile(file)
        self.size = plain.size
        # One stream of pages at a time: memory does not grow with the file.
        self._file = pq.ParquetFile(plain, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)
        self.num_rows: int = self._file.metadata.num_rows
        self.num_groups: int = self._file.metadata.num_row_groups

    def __enter__(self) -> PlainParquet:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def fields(self) -> dict[str, pa.DataType]:
        """Types of the columns."""
        return {field.name: field.type for field in self._file.schema_arrow}

    @property
    def features(self) -> dict[str, Any]:
        """What Hugging Face's metadata say of the columns; empty where there are none."""
        text = (self._file.metadata.metadata or {}).get(_HUGGING_FACE, b"{}")
        try:
            features = parse_json(text, _FEATURES)["info"]["features"]
        except (InvalidDocument, KeyError, TypeError):
            return {}
        return features if isinstance(features, dict) else {}

    def rows_of(self, group: int) -> int:
        """Return the number of rows of a group."""
        return self._file.metadata.row_group(group).num_rows

    def read(self, group: int, columns: ParquetColumns, batch: int) -> Iterator[Row]:
        """Yield the image and the label of each row of a group.

        Args:
            group: Number of the group.
            columns: The columns.
            batch: Number of rows that are decoded at once.
        """
        names = [f"{columns.image}.bytes" if columns.in_struct else columns.image]
        names += [columns.label] if columns.label else []
        for rows in self._file.iter_batches(batch, row_groups=[group], columns=names, use_threads=False):
            images = rows.column(columns.image)
            for index in range(len(rows)):
                image = images[index].as_py()
                label = columns.to_label(rows.column(columns.label)[index].as_py()) if columns.label else NO_LABEL
                yield (image.get("bytes") if columns.in_struct and image else image) or None, label


@dataclass(frozen=True)
class ParquetColumns:
    """Columns of images and labels.

    Args:
        image: Column of the images.
        in_struct: Whether they are in a field ``bytes`` of it.
        label: Column of the labels, or None.
        classes: Names of the classes 0, 1, ..., or None.
        no_label: Line that says why there are no labels, or None.
    """

    image: str
    in_struct: bool
    label: str | None = None
    classes: tuple[str, ...] | None = None
    no_label: str | None = None

    def require(self, file: PlainParquet) -> None:
        """Check that another file has the same columns.

        Raises:
            ValueError: If it has not.
        """
        fields = file.fields
        if self.image not in fields or _holds_bytes(fields[self.image]) != (True, self.in_struct):
            raise ValueError(f"it has no images in the column {self.image}")
        if self.label is not None and self.label not in fields:
            raise ValueError(f"it has no column {self.label}")

    def to_label(self, value: Any) -> int | str | None:
        """Return the value of a row as a label; with names of classes, -1 is none."""
        label = to_label(value)
        if self.classes is None or label is NO_LABEL:
            return label
        if not isinstance(label, int) or not -1 <= label < len(self.classes):
            return DAMAGED
        return NO_LABEL if label == -1 else label


def choose_columns(file: PlainParquet, label_field: str | None, url: str) -> ParquetColumns:
    """Choose the columns of images and labels.

    Args:
        file: A parquet file.
        label_field: Column of the labels, "auto", or None for no labels.
        url: URL of the source, for messages.

    Raises:
        UserError: If there is no column of images, or not the one of labels.
    """
    fields, features = file.fields, file.features
    shown = ", ".join(printable_name(name, 40) for name in list(fields)[:_MAX_SHOWN])
    holds = {name: _holds_bytes(kind) for name, kind in fields.items()}
    candidates = {name: in_struct for name, (is_image, in_struct) in holds.items() if is_image}
    declared = [name for name in candidates if _type_of(features.get(name)) == "Image"]
    image = next(iter([*declared, *(name for name in _IMAGES if name in candidates), *candidates]), None)
    if image is None:
        raise UserError(f"no column of {url} holds the bytes of images (columns: {shown}): check the source's url")
    label, no_label = label_field, None
    if label_field == AUTO:
        label = _find_label(fields, features)
        no_label = (
            f"labels: none, because there is no column label (columns: {shown}); data.source.label_field names one"
        )
    elif label is not None and (label not in fields or not _is_scalar(fields[label])):
        raise UserError(f"data.source.label_field={label}: {url} has no such column of numbers or texts ({shown})")
    classes = _class_names(features.get(label)) if label else None
    return ParquetColumns(image, candidates[image], label, classes, None if label else no_label)


def _find_label(fields: dict[str, pa.DataType], features: dict[str, Any]) -> str | None:
    """Return the column of the labels if there is no doubt."""
    declared = [name for name in fields if _class_names(features.get(name)) and _is_scalar(fields[name])]
    usual = [name for name in _LABELS if name in fields and _is_scalar(fields[name])]
    return usual[0] if usual else declared[0] if len(declared) == 1 else None


def _holds_bytes(kind: pa.DataType) -> tuple[bool, bool]:
    """Return whether a column holds the bytes of images, and whether in a field of a struct."""
    in_struct = pa.types.is_struct(kind)
    if in_struct:
        index = kind.get_field_index("bytes")
        if index < 0:
            return False, True
        kind = kind.field(index).type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind), in_struct


def _is_scalar(kind: pa.DataType) -> bool:
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _type_of(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = feature.get("names") if _type_of(feature) == "ClassLabel" else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
