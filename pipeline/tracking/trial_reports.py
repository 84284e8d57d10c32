"""Reports of a trial, kept in its own folder before Ray passes them on, and replayed from there where one was lost.

A worker hands its reports to Ray, and what carries them may end: a process, a node, a disk. So each report is a line of
JSON in ``<trial>/reports.jsonl`` first, with a number. The driver notes in the summary which one it took last, and
reads those that it missed. An object store cannot append: there the file is written anew with each report that has a
checkpoint, and reports in between wait for that.

The file may be a stranger's when a sweep is resumed, so lines that no trial can have written are left out.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from pipeline.config.scores import chain_points
from pipeline.config.warm_up import found_kernel
from pipeline.runtime.filesystem import filesystem, is_local, write_file

__all__ = ["CHAIN_SCORE", "CHAIN_STEP", "NUMBER", "SINCE_FIRST_STEP", "TrialReports", "missed_reports"]

NUMBER = "report_number"
"""Key of a report's number in what is handed to Ray."""

CHAIN_STEP, CHAIN_SCORE = "chain_step", "chain_score"
"""Keys of a sampler's report: steps that its chains have taken, and the score of ``sweep.metric`` there."""

SINCE_FIRST_STEP = "seconds_since_first_step"
"""Key of a worker's first report: seconds since it began its first step, or its evaluation where it only samples."""

_NAME = "reports.jsonl"
# A report has a point of each chain's curve and the names of its figures, which is a few KiB.
_MAX_LINE = 2**20
_MAX_BYTES = 2**28
_MAX_TEXT = 4096

_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_FoundKernel = Annotated[dict[str, Any], BeforeValidator(found_kernel)]


def _require_chain(chain: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is not the scores along a chain; it stays JSON."""
    chain_points(chain)
    return chain


class _Report(BaseModel):
    """Report of a trial: what the driver relies on, and any further numbers."""

    model_config = ConfigDict(strict=True, extra="allow")

    base_step: NonNegativeInt
    checkpoint: _Text | None = None
    chain: Annotated[dict[str, Any], AfterValidator(_require_chain)] = {}
    figures: list[_Text] = []
    start_figures: list[_Text] = []
    notes: list[_Text] = []
    warnings: list[_Text] = []
    system: dict[str, float] = {}
    extractor: _Text | None = None
    found_kernel: _FoundKernel = {}


class _Line(BaseModel):
    """Line of the file."""

    model_config = ConfigDict(strict=True)

    number: PositiveInt
    report: _Report


class TrialReports:
    """Reports that a trial's first worker writes down.

    Args:
        url: The trial's folder, behind any fsspec URL.

    Example:
        >>> reports = TrialReports("memory://doctest/reported/trials/000")
        >>> reports.add({"base_step": 4, "checkpoint": "memory://doctest/model"})
        1
        >>> [report["base_step"] for _, report in missed_reports("memory://doctest/reported/trials/000", after=0)]
        [4]
        >>> TrialReports("memory://doctest/reported/trials/000").add({"base_step": 8})
        2
    """

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/{_NAME}"
        files, self._path = filesystem(self._url)
        self._is_local = is_local(files)
        lines = list(_lines(self._url))
        self._last = max((line.number for line in map(_parse, lines) if line), default=0)
        # Of an object store, all of the file.
        self._lines = [] if self._is_local else lines

    def is_written(self, report: dict[str, Any]) -> bool:
        """Return whether :meth:`add` writes at this report: an object store's file waits for one that is to be kept."""
        return self._is_local or bool(report.get("checkpoint")) or CHAIN_STEP in report

    def add(self, report: dict[str, Any]) -> int:
        """Write a report down.

        Args:
            report: A dict that is JSON.

        Returns:
            Its number, from 1.

        Raises:
            Exception: It cannot be written, as each file system says it; the report has its number all the same.
        """
        self._last += 1
        line = json.dumps({"number": self._last, "report": report}).encode() + b"\n"
        if self._is_local:
            _append(self._path, line)
        else:
            self._lines.append(line)
            if self.is_written(report):
                write_file(self._url, b"".join(self._lines))
        return self._last

    @property
    def last(self) -> int:
        """Number of the newest report."""
        return self._last


def missed_reports(url: str, after: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the numbers and the reports of a trial that came after one of them.

    Args:
        url: The trial's folder, behind any fsspec URL.
        after: Number of the last report that is known.
    """
    reports: dict[int, dict[str, Any]] = {}
    for line in _lines(f"{url.rstrip('/')}/{_NAME}"):
        parsed = _parse(line)
        if parsed is not None and parsed.number > after:
            reports[parsed.number] = parsed.report.model_dump(exclude_none=True)
    return sorted(reports.items())


def _parse(line: bytes) -> _Line | None:
    """Return a line; None where it is torn or no trial can have written it."""
    try:
        return _Line.model_validate(json.loads(line))
    except (ValidationError, ValueError, RecursionError):
        return None


def _lines(url: str) -> Iterator[bytes]:
    """Yield the lines of a file, as far as they are of a size that a trial writes; none where there is no file."""
    files, path = filesystem(url)
    try:
        if is_local(files):
            file: Any = _open(path, os.O_RDONLY)
        else:
            content = files.cat_file(path, end=_MAX_BYTES)
            # fsspec declares text as well, which no file system returns here.
            file = io.BytesIO(content.encode() if isinstance(content, str) else content)
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        left = _MAX_BYTES
        while left > 0 and (line := file.readline(_MAX_LINE)):
            left -= len(line)
            yield line


def _append(path: str, line: bytes) -> None:
    """Append a line, whole or not at all; after half a line, as of a process that was killed, on one of its own."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with _open(path, os.O_RDWR | os.O_CREAT) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.seek(size)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def _open(path: str, flags: int) -> io.FileIO:
    """Open a regular file that is no link: its folder may be a stranger's."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return io.FileIO(descriptor, "r+b" if flags & os.O_RDWR else "rb")
