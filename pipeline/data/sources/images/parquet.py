"""Parquet source: image folders as Hugging Face publishes them, with the bytes of each image in a column.

A row is read once, in order, and its image is copied to the temporary folder (``TMPDIR``): a store mixes the images,
and a parquet file is read by groups of rows.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa

from pipeline.data.ledger import Tally
from pipeline.data.sources.archives import MAX_FILE_BYTES, TOO_LARGE, TempFolder, archive_errors
from pipeline.data.sources.base import BrokenImage
from pipeline.data.sources.file_list import list_files
from pipeline.data.sources.images.label_fields import AUTO, LabelColumn
from pipeline.data.sources.images.parquet_schema import ParquetColumns, PlainParquet, Row, choose_columns
from pipeline.data.sources.range_files import RangeFile, RangeFiles
from pipeline.runtime.errors import UserError, one_line

__all__ = ["Parquet"]

# Rows that are in memory at once.
_BATCH = 32
# In place of the size of an image that is not there.
_LOST = -1
# Bytes that a row has at least, so that a damaged file cannot promise any number of rows.
_LEAST_ROW = 16
# Images are compressed already, so that they are not much larger than the files that they are in.
_BEST_COMPRESSION, _MOST_UNPACKED = 100, 2**30
_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


class _Rows:
    """Rows of all files: their images in one file, their labels in a column, and the reasons of those without.

    Args:
        target: File that the images are written to.
        labels: Column that the labels are added to.
    """

    def __init__(self, target: IO[bytes], labels: LabelColumn) -> None:
        self.files, self.rows = array("q"), array("q")
        self.offsets, self.sizes = array("q"), array("q")
        self.reasons: dict[str, int] = {}
        self._target = target
        self._labels = labels

    @property
    def position(self) -> int:
        """Bytes of images that have been written."""
        return self._target.tell()

    def add(self, number: int, row: int, image: bytes | None, label: int | str | None, name: str) -> None:
        """Add a row of the file with a number."""
        if image is None or len(image) > MAX_FILE_BYTES:
            self.add_lost(number, row, TOO_LARGE if image else "row without the bytes of an image")
            return
        self._append(number, row, self._target.tell(), len(image))
        self._labels.append(label, name)
        self._target.write(image)

    def add_lost(self, number: int, row: int, reason: str) -> None:
        """Add a row that cannot be read."""
        self._append(number, row, self.reasons.setdefault(reason, len(self.reasons)), _LOST)
        self._labels.skip()

    def _append(self, number: int, row: int, offset: int, size: int) -> None:
        self.files.append(number)
        self.rows.append(row)
        self.offsets.append(offset)
        self.sizes.append(size)


class Parquet:
    """Source of parquet files with a column of images: bytes, or a struct with ``bytes``, which Hugging Face writes.

    A path in the struct is not read. Rows that cannot be read are broken, each with its reason.

    Args:
        url: A folder of parquet files, one, ``train-{00000..00004}.parquet``, ``train-*.parquet``, or a list.
        split: Take only files with this word in their name, or in a folder's. None for all.
        label_field: Column of the labels; "auto" for ``label``, or the only one that the publisher calls a class; None
            for no labels.

    Raises:
        UserError: If there are no parquet files, no column of images, no such column, or the disk is too full.
    """

    kind = "parquet"

    def __init__(self, url: str | Sequence[str], split: str | None, label_field: str | None = AUTO) -> None:
        self.split = split
        self._label_field = label_field
        tally = Tally()
        files = list_files(url, (".parquet",), split, self.kind, tally)
        self.url = files.url
        self._files = RangeFiles(files)
        self._temp = TempFolder()
        try:
            self._columns = self._choose_columns()
            self._labels = LabelColumn(self.url, label_field)
            self._path = self._temp.file("images")
            with archive_errors(self.url), open(self._path, "wb") as target:
                rows = _Rows(target, self._labels)
                _copy_all(self._files.files, self._columns, rows)
            self._files_of, self._row_of = rows.files, rows.rows
            self._offsets, self._sizes, self._reasons = rows.offsets, rows.sizes, list(rows.reasons)
            self._labels.finish(f"the column {self._columns.label}", self._columns.classes)
        except BaseException:
            self.close()
            raise
        self.labels = self._labels.classes
        self.passed_over = tally.groups()
        self.notes = (f"images: the column {self._columns.image}", self._columns.no_label or self._labels.note)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the files, and of the column that labels are from."""
        return self._files.fingerprint(repr(self._label_field))

    def __len__(self) -> int:
        return len(self._sizes)

    def name(self, index: int) -> str:
        """Return the name of the file, and the index of the row in it."""
        return f"{self._files.files[self._files_of[index]].name}[{self._row_of[index]}]"

    def read(self, index: int) -> tuple[bytes, int | None]:
        """Return the encoded image and its class."""
        offset, size = self._offsets[index], self._sizes[index]
        if size == _LOST:
            raise BrokenImage(self.name(index), self._reasons[offset])
        label = self._labels.label(index, self.name(index))
        with open(self._path, "rb") as file:
            file.seek(offset)
            return file.read(size), label

    def close(self) -> None:
        """Delete the copy of the images."""
        self._temp.close()
        self._files.close()

    def _choose_columns(self) -> ParquetColumns:
        """Choose the columns by the first file that can be read."""
        problem = ""
        for file in self._files.files:
            try:
                with file.open() as stream, PlainParquet(stream) as opened:
                    return choose_columns(opened, self._label_field, self.url)
            except _ERRORS as error:
                problem = problem or f"{file.name}: {one_line(error, limit=200)}"
        raise UserError(f"no parquet file at {self.url} can be read ({problem}): fetch it again")


def _copy_all(files: list[RangeFile], columns: ParquetColumns, rows: _Rows) -> None:
    """Add the rows of all files; one that cannot be read has lost as many as the others have, one at least."""
    problems: dict[int, str] = {}
    for number, file in enumerate(files):
        if problem := _copy(number, file, columns, rows):
            problems[number] = problem
    usual = round(len(rows.sizes) / max(len(files) - len(problems), 1))
    for number, problem in problems.items():
        for row in range(max(usual, 1)):
            rows.add_lost(number, row, problem)


def _copy(number: int, file: RangeFile, columns: ParquetColumns, rows: _Rows) -> str | None:
    """Add the rows of one file, and those of it that are damaged; return why the file cannot be read, if it cannot."""
    with file.open() as stream:
        try:
            opened = PlainParquet(stream)
            counts = _rows_of_groups(opened)
            columns.require(opened)
        except _ERRORS as error:
            return f"parquet file that cannot be read ({one_line(error, limit=100)})"
        limit = rows.position + max(_BEST_COMPRESSION * opened.size, _MOST_UNPACKED)
        with opened:
            row = 0
            for group, count in enumerate(counts):
                end = row + count
                decoded = _Decoded(opened.read(group, columns, _BATCH))
                for image, label in itertools.islice(decoded, count):
                    rows.add(number, row, image, label, f"{file.name}[{row}]")
                    row += 1
                    if rows.position > limit:
                        raise UserError(
                            f"{file.name} unpacks to more than {_BEST_COMPRESSION} times its size: check its origin"
                        )
                for lost in range(row, end):
                    rows.add_lost(number, lost, f"in a damaged part of a parquet file ({decoded.problem})")
                row = end
    return None


class _Decoded:
    """Rows of a group up to the first that cannot be decoded, and why it cannot."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.problem = "rows are missing"
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        while True:
            # Only of the file: what the disk says of the copy is another matter.
            try:
                row = next(self._rows, None)
            except _ERRORS as error:
                self.problem = one_line(error, limit=100)
                return
            if row is None:
                return
            yield row


def _rows_of_groups(opened: PlainParquet) -> list[int]:
    """Return the number of rows of each group.

    Raises:
        ValueError: If they are more than the file has bytes for.
    """
    counts = [opened.rows_of(group) for group in range(opened.num_groups)]
    if opened.num_rows * _LEAST_ROW > opened.size or sum(counts) != opened.num_rows or min(counts, default=0) < 0:
        raise ValueError(f"it promises {opened.num_rows:,} rows in {opened.size:,} bytes")
    return counts
