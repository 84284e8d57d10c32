"""Files of a source that are read in parts: on this machine, at their storage, or from a copy under TMPDIR.

A plain file behind an object store is read by byte ranges, without a copy. What comes by HTTP, whose servers need not
know ranges, is copied first, and what is compressed is decompressed first; both are deleted when the source is closed.
"""

from __future__ import annotations

import contextlib
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pipeline.data.sources.archives import TempFolder, archive_errors
from pipeline.data.sources.compression import decompress, is_compressed
from pipeline.data.sources.download import download
from pipeline.data.sources.file_list import FileList, ListedFile
from pipeline.data.sources.fingerprint import fingerprint_files, fingerprint_listing, version
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import as_user_error

__all__ = ["RangeFile", "RangeFiles"]

_MAGIC_BYTES = 6


class _StorageFile:
    """File at its storage, whose errors name it."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        with as_user_error(self._name):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with as_user_error(self._name):
            return self._file.seek(offset, whence)


@dataclass(frozen=True)
class RangeFile:
    """File that is read in parts.

    Args:
        listed: The file.
        copy: Path of its copy as it is, or None where it is not copied.
        plain: Path of what it was decompressed to, or None where it is not compressed.
        damage: What is wrong with its compression, in a few words, or None.
    """

    listed: ListedFile
    copy: str | None = None
    plain: str | None = None
    damage: str | None = None

    @property
    def name(self) -> str:
        """Name of the file in its list."""
        return self.listed.name

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading, decompressed. What its storage raises is a ``UserError``."""
        if (path := self._path) is not None:
            with open(path, "rb") as file:
                yield file
            return
        with as_user_error(self.name):
            file = self.listed.fs.open(self.listed.path, "rb")
        with contextlib.closing(file):
            # It has what readers of archives need of a file.
            yield cast("BinaryIO", _StorageFile(file, self.name))

    def read(self, offset: int, size: int) -> bytes:
        """Return some bytes of the file, decompressed; fewer where it ends."""
        if (path := self._path) is not None:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        with as_user_error(self.name):
            # fsspec annotates ``str``, too, which no file system returns.
            return cast("bytes", self.listed.fs.cat_file(self.listed.path, start=offset, end=offset + size))

    @property
    def _path(self) -> str | None:
        """Path on this machine, or None for a file that is read at its storage."""
        return self.plain or self.copy or (self.listed.path if self.listed.is_local else None)

    def version(self) -> str:
        """Return the version of a file that is not on this machine."""
        if self.copy is not None:
            return fingerprint_files({"": self.copy}, copied=True)
        with as_user_error(self.name):
            self.listed.fs.invalidate_cache(self.listed.path)
            return version(self.listed.fs.info(self.listed.path))


class RangeFiles:
    """Files of a list, opened. They can be sent to another process.

    Args:
        files: The list.

    Raises:
        UserError: If a file cannot be reached, or the disk is too full for its copy.
    """

    def __init__(self, files: FileList) -> None:
        self.url = files.url
        self._temp = TempFolder()
        self.files: list[RangeFile] = []
        try:
            for number, listed in enumerate(files.files):
                self.files.append(self._opened(listed, number))
        except BaseException:
            self.close()
            raise

    def fingerprint(self, *settings: str) -> str:
        """Return the fingerprint of the files as they are now.

        Args:
            settings: What the samples depend on in addition.
        """
        local = {f"{file.name}": file.listed.path for file in self.files if file.listed.is_local}
        versions = {file.name: "" if file.listed.is_local else file.version() for file in self.files}
        # No name in a list begins with a slash.
        versions |= {f"/{number}": text for number, text in enumerate(settings)}
        return fingerprint_listing(versions | {"/": fingerprint_files(local) if local else ""})

    def close(self) -> None:
        """Delete the copies."""
        self._temp.close()

    def _opened(self, listed: ListedFile, number: int) -> RangeFile:
        copy = None
        with archive_errors(listed.name):
            if listed.is_http:
                copy = self._temp.file(f"copy-{number}")
                if not download(listed.path, copy):
                    raise UserError(f"{listed.path} is a folder, which a server does not list: name the files in it")
            if not is_compressed(self._start(listed, copy)):
                return RangeFile(listed, copy)
            path = copy or listed.path
            if copy is None and not listed.is_local:
                path = self._temp.file(f"packed-{number}")
                with as_user_error(listed.name, OSError):
                    listed.fs.get_file(listed.path, path)
            plain, damage = self._temp.file(f"plain-{number}"), None
            try:
                decompress(path, plain, listed.name)
            except (EOFError, zlib.error, lzma.LZMAError) as error:
                damage = one_line(error)
            except OSError as error:
                # An error about the stream: those of the operating system have a number.
                if error.errno is not None:
                    raise
                damage = one_line(error)
            return RangeFile(listed, copy, plain, damage)

    def _start(self, listed: ListedFile, copy: str | None) -> bytes:
        if (path := copy or (listed.path if listed.is_local else None)) is not None:
            with open(path, "rb") as file:
                return file.read(_MAGIC_BYTES)
        with as_user_error(listed.name):
            return cast("bytes", listed.fs.cat_file(listed.path, start=0, end=_MAGIC_BYTES))
