"""Text tables: numbers in text files, one row a line, with the line number in each error.

Numbers are parsed by NumPy and nothing is executed.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TextIO

import numpy as np

from pipeline.data.sources.archives import Archive
from pipeline.data.sources.compression import decompressing, without_compression
from pipeline.runtime.errors import UserError

__all__ = ["RowReader", "open_lines"]

# Lines that are parsed together: enough that NumPy's own loop does the work, few enough to inspect one by one.
_BLOCK = 2**15
# A longer line is none of a table: gzip packs gigabytes of one character into a megabyte.
_MAX_CHARACTERS = 2**16
# More rows than are read of any table: 700,000 of HEPMASS.
_MAX_ROWS = 1_000_000


class RowReader:
    r"""Reader of the rows of a text file, which counts lines.

    Args:
        file: The text.
        where: Name of the file in a message.

    ``num_characters`` counts those of the rows that were read, without the ends of the lines.

    Example:
        >>> lines = RowReader(io.StringIO("x;y\n1;2\n3;4\n"), "points.csv")
        >>> lines.read_line()
        'x;y'
        >>> next(lines.numbers({2}, ";"))
        array([[1., 2.],
               [3., 4.]])
        >>> lines.num_characters
        6
    """

    def __init__(self, file: TextIO, where: str) -> None:
        self.where = where
        self.num_characters = 0
        self._file = file
        self._done = 0

    def read_line(self) -> str:
        """Return the next line, or an empty one at the end."""
        self._done += 1
        return self._checked(self._file.readline(_MAX_CHARACTERS), self._done).rstrip("\r\n")

    def numbers(self, widths: Collection[int], delimiter: str | None, limit: int | None = None) -> Iterator[np.ndarray]:
        """Yield the remaining lines as numbers.

        Args:
            widths: Allowed numbers of columns. All lines have the number of the first.
            delimiter: Separator of two numbers, or None for any white space. Between semicolons a comma is a point.
            limit: Largest number of lines. ``None`` (default) for all.

        Yields:
            Some rows at a time, float64 (n, width), all of them finite and within the range of float32.

        Raises:
            UserError: If a line is not numbers of such a width; the message has the number of the line. Empty lines at
                the end are skipped.
        """
        lines = itertools.islice(self._lines(), limit)
        while block := list(itertools.islice(lines, _BLOCK)):
            first = self._done + 1
            self._done += len(block)
            if delimiter == ";":
                block = [line.replace(",", ".") for line in block]
            if not block[-1].strip():
                block = self._without_empty_end(block)
            if not block:
                return
            rows = _parse(block, delimiter)
            if rows is None or rows.shape[1] not in widths or not _fit_float32(rows).all():
                raise self._find_damage(block, first, widths, delimiter)
            widths = {rows.shape[1]}
            self.num_characters += sum(len(line.rstrip("\r\n")) for line in block)
            yield rows

    def _lines(self) -> Iterator[str]:
        for number in itertools.count(self._done + 1):
            line = self._checked(self._file.readline(_MAX_CHARACTERS), number)
            if not line:
                return
            if number > _MAX_ROWS:
                raise self.damaged(number, f"is one of more than {_MAX_ROWS:,}")
            yield line

    def _checked(self, line: str, number: int) -> str:
        if len(line) == _MAX_CHARACTERS and not line.endswith("\n"):
            raise self.damaged(number, f"has more than {_MAX_CHARACTERS:,} characters")
        return line

    def damaged(self, line: int, problem: str) -> UserError:
        """Return the error of a damaged line.

        Args:
            line: Number of the line, from 1.
            problem: The rest of a sentence that begins "line <number> of <file>".
        """
        return UserError(f"line {line} of {self.where} {problem}: fetch it again")

    def _without_empty_end(self, block: list[str]) -> list[str]:
        """Return the block without the empty lines that end the file, or unchanged if there is more after it."""
        if any(line.strip() for line in self._lines()):
            return block
        while block and not block[-1].strip():
            block.pop()
        return block

    def _find_damage(self, block: list[str], first: int, widths: Collection[int], delimiter: str | None) -> UserError:
        for number, line in enumerate(block, first):
            fields = line.split(delimiter) if line.strip() else []
            if len(fields) not in widths:
                expected = " or ".join(str(width) for width in sorted(widths))
                return self.damaged(number, f"has {len(fields)} columns, not {expected}")
            widths = {len(fields)}
            for column, field in enumerate(fields, 1):
                parsed = _parse([field], None)
                if parsed is None or parsed.shape != (1, 1):
                    return self.damaged(number, f"has {field.strip()[:40]!r} in column {column}, which is no number")
                if not _fit_float32(parsed).all():
                    return self.damaged(number, f"has {field.strip()[:40]!r} in column {column}, which is out of range")
        return self.damaged(first, f"or one of the {len(block) - 1} after it is not numbers")


def _parse(lines: list[str], delimiter: str | None) -> np.ndarray | None:
    """Return the numbers of some lines, one row each, or None if a line is not numbers."""
    # NumPy would skip an empty line.
    if not all(line.strip() for line in lines):
        return None
    try:
        return np.loadtxt(lines, np.float64, comments=None, delimiter=delimiter, ndmin=2)
    except ValueError:
        return None


def _fit_float32(numbers: np.ndarray) -> np.ndarray:
    # The largest float32 is printed as a little more than it is.
    with np.errstate(over="ignore"):
        return np.isfinite(numbers.astype(np.float32))


@contextmanager
def open_lines(archive: Archive, name: str) -> Iterator[RowReader]:
    """Open a text file, compressed by gzip, bzip2 or xz, or not.

    Args:
        archive: Archive of the file.
        name: Name of the file in it.

    Yields:
        The reader of its rows.
    """
    plain = without_compression(name).rpartition("/")[2]
    where = archive.url if archive.url.endswith(name) else f"{plain} of {archive.url}"
    with archive.open(name) as packed, decompressing(packed) as file:
        # A byte order mark is not part of the first name; bytes that are not UTF-8 are not part of a number.
        yield RowReader(io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace"), where)
