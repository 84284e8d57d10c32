"""Archives of a source: folders, zip files, tar files and single files, read member by member in any order.

Nothing is extracted under a name that an archive chose. An archive that needs a local disk for random access is copied
or decompressed into a temporary folder under ``TMPDIR``, which is deleted when the source is closed.
"""

from __future__ import annotations

import errno
import io
import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, Protocol, cast

from pipeline.data.sources.archive_listing import list_tar, list_zip
from pipeline.data.sources.base import BrokenImage
from pipeline.data.sources.compression import decompress, require_plausible_size
from pipeline.data.sources.download import download, is_http
from pipeline.data.sources.fingerprint import fingerprint_files, fingerprint_listing, version
from pipeline.data.sources.folder_walk import FolderListing, list_folder
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import as_user_error, filesystem, is_local

__all__ = [
    "Archive",
    "File",
    "Folder",
    "Tar",
    "TempFolder",
    "Zip",
    "archive_errors",
    "open_archive",
    "open_files",
]

# Error numbers of a full disk, a used-up quota and a file system's largest file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Error numbers of one file, which leave the others readable.
_OF_ONE_FILE = (
    *(errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.EIO, errno.ENXIO, errno.ENAMETOOLONG),
)

MAX_FILE_BYTES = 2**29
"""Largest file that is read whole: more than an image of the largest number of pixels takes without compression."""

TOO_LARGE = f"file of more than {MAX_FILE_BYTES // 2**20} MiB"


@contextmanager
def archive_errors(url: str) -> Iterator[None]:
    """Turn the errors of an archive, or of the disk it is unpacked to, into a one-line message that says what to do.

    Args:
        url: URL of the archive that is unpacked inside the block.

    Raises:
        UserError: If the disk is full, or the archive is damaged or cannot be read.

    Example:
        >>> with archive_errors("cifar-10-binary.tar.gz"):
        ...     raise EOFError("the file ended")
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: cifar-10-binary.tar.gz is damaged (the file ended): fetch it again
    """
    try:
        yield
    except (
        *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, BrokenImage),
        *(OverflowError, RecursionError),
    ) as error:
        raise UserError(f"{url} is damaged ({one_line(error)}): fetch it again") from None
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(url) from None
        # An error of gzip or bz2 about the stream: those of the operating system have a number.
        if error.errno is None:
            raise UserError(f"{url} is damaged ({one_line(error)}): fetch it again") from None
        raise UserError(f"{url} cannot be unpacked ({one_line(error)}): check it and TMPDIR") from None


def _strerror(error: OSError) -> str:
    return f"cannot be read ({(error.strerror or 'no such file or directory').lower()})"


def _no_room(url: str) -> UserError:
    folder = tempfile.gettempdir()
    return UserError(f"no room in {folder} to unpack {url}: free some, or set TMPDIR to a folder with more")


class TempFolder:
    """Temporary folder, made when it is first used. The process that made it deletes it; others know its path."""

    def __init__(self) -> None:
        self._owner: tempfile.TemporaryDirectory[str] | None = None
        self._path: str | None = None

    def file(self, name: str) -> str:
        """Return the path of a file in the folder.

        Args:
            name: A name that this program chose, never one out of an archive.
        """
        if self._path is None:
            self._owner = tempfile.TemporaryDirectory(prefix="gebm-source-")
            self._path = self._owner.name
        return os.path.join(self._path, name)

    def holds(self, path: str) -> bool:
        """Return whether a file is in the folder."""
        return self._path is not None and os.path.dirname(path) == self._path

    def close(self) -> None:
        """Delete the folder, in the process that made it."""
        if self._owner is not None:
            self._owner.cleanup()
            self._owner = self._path = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_owner": None, "_path": self._path}


class Archive(Protocol):
    """Folder, zip or tar file, or a single file."""

    @property
    def url(self) -> str:
        """URL of the archive."""
        ...

    @property
    def names(self) -> list[str]:
        """Names of the files in it, with slashes, sorted."""
        ...

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Name and reason of what is in it and is no file: a pipe, a link that leads outside."""
        ...

    def read(self, name: str) -> bytes:
        """Return the contents of one file.

        Raises:
            BrokenImage: If this file cannot be read, and the others can.
        """
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open one file as a stream."""
        ...

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return the fingerprint of some files in a folder, or of the whole archive."""
        ...

    def close(self) -> None:
        """Close the archive and delete its local copy."""
        ...


class Folder:
    """Folder behind any fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = filesystem(url)
        self._local = is_local(self._fs)
        with as_user_error(url):
            if self._local:
                listing, self._versions, self._too_large = list_folder(self._root or "/"), {}, frozenset()
            else:
                entries = cast("dict[str, dict[str, Any]]", self._fs.find(self._root, detail=True))
                paths = (path[len(self._root) + 1 :] for path in entries)
                # Object stores mark folders by empty objects.
                listing = FolderListing(sorted(name for name in paths if name and not name.endswith("/")))
                # A folder on this machine is looked at again each time.
                self._versions = {path: version(entry) for path, entry in entries.items()}
                self._too_large = frozenset(
                    path for path, entry in entries.items() if (entry.get("size") or 0) > MAX_FILE_BYTES
                )
        self.names, self.left_out, self.followed = listing.names, listing.left_out, listing.followed

    def read(self, name: str) -> bytes:
        """Return the contents of one file."""
        path = f"{self._root}/{name}"
        with as_user_error(self.url):
            try:
                reason = TOO_LARGE
                too_large = os.path.getsize(path) > MAX_FILE_BYTES if self._local else path in self._too_large
                if not too_large:
                    # fsspec annotates ``str``, too, which no file system returns.
                    return cast("bytes", self._fs.cat_file(path))
            except OSError as error:
                broken = isinstance(error, FileNotFoundError) or (self._local and error.errno in _OF_ONE_FILE)
                if not broken:
                    raise
                reason = "link to nothing" if self._local and os.path.islink(path) else _strerror(error)
        raise BrokenImage(name, reason)

    def open(self, name: str) -> IO[bytes]:
        """Open one file as a stream."""
        with as_user_error(self.url):
            # fsspec annotates the files of all modes.
            return cast("IO[bytes]", self._fs.open(f"{self._root}/{name}", "rb"))

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return the fingerprint of some of its files."""
        paths = {name: f"{self._root}/{name}" for name in names}
        if self._local:
            return fingerprint_files(paths)
        return fingerprint_listing({name: self._versions.get(path, "") for name, path in paths.items()})

    def close(self) -> None:
        """Do nothing: no file is open."""

    def __getstate__(self) -> dict[str, Any]:
        # Only the process that opened the folder takes fingerprints, and there may be millions of files.
        return self.__dict__ | {"_versions": {}}


class Zip:
    """Zip file on a local disk."""

    def __init__(self, url: str, path: str, temp: TempFolder) -> None:
        self.url = url
        self._path = path
        self._temp = temp
        self._file: zipfile.ZipFile | None = None
        try:
            self._listing = list_zip(self._opened())
        # Beyond its own errors: names that are not in the encoding they claim, a newer version, damaged extra fields.
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
            raise UserError(f"{url} is a damaged zip file ({one_line(error)}): fetch it again") from None
        self.names, self.left_out = self._listing.names, self._listing.left_out

    def read(self, name: str) -> bytes:
        """Return the contents of one file."""
        if name in self._listing.broken:
            raise BrokenImage(name, self._listing.broken[name])
        file, member = self._opened(), self._listing.members[name]
        if file.getinfo(member).file_size > MAX_FILE_BYTES:
            raise BrokenImage(name, TOO_LARGE)
        try:
            return file.read(member)
        except NotImplementedError as error:
            raise BrokenImage(name, "compressed by a method that Python lacks") from error
        except RuntimeError as error:
            raise BrokenImage(name, "encrypted") from error
        # A wrong checksum, or a broken stream. The stream of bzip2 raises OSError and ValueError.
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error) as error:
            raise BrokenImage(name, "damaged in the zip file") from error

    def open(self, name: str) -> IO[bytes]:
        """Open one file as a stream."""
        if name in self._listing.broken:
            raise BrokenImage(name, self._listing.broken[name])
        file, member = self._opened(), self._listing.members[name]
        require_plausible_size(file.getinfo(member), self.url)
        try:
            return file.open(member)
        # A password, or a method of compression that Python lacks.
        except RuntimeError as error:
            raise UserError(f"{name} of {self.url} cannot be unpacked ({error}): fetch it again") from None

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return the fingerprint of the names and of the whole file."""
        whole = fingerprint_files({"": self._path}, copied=self._temp.holds(self._path))
        return fingerprint_listing({"": whole, **dict.fromkeys(names, "")})

    def close(self) -> None:
        """Close the file and delete its local copy, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._temp.close()

    def _opened(self) -> zipfile.ZipFile:
        if self._file is None:
            self._file = zipfile.ZipFile(self._path)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class Tar:
    """Tar file on a local disk, without compression; ``packed`` is the file that it was decompressed from."""

    def __init__(self, url: str, path: str, temp: TempFolder, packed: str) -> None:
        self.url = url
        self._path = path
        self._packed = packed
        self._temp = temp
        self._file: BinaryIO | None = None
        self._listing = list_tar(path, url)
        self.names, self.left_out = self._listing.names, self._listing.left_out

    def read(self, name: str) -> bytes:
        """Return the contents of one file."""
        if self._listing.members.get(name, (0, 0))[1] > MAX_FILE_BYTES:
            raise BrokenImage(name, TOO_LARGE)
        return self._read_whole(name)

    def _read_whole(self, name: str) -> bytes:
        if name in self._listing.broken:
            raise BrokenImage(name, self._listing.broken[name])
        if self._file is None:
            # It stays open for the next image.
            self._file = open(self._path, "rb")  # noqa: SIM115
        offset, size = self._listing.members[name]
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise BrokenImage(name, "cut short")
        return data

    def open(self, name: str) -> IO[bytes]:
        """Open one file as a stream."""
        return io.BytesIO(self._read_whole(name))

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return the fingerprint of the names and of the whole file, as it is packed."""
        whole = fingerprint_files({"": self._packed}, copied=self._temp.holds(self._packed))
        return fingerprint_listing({"": whole, **dict.fromkeys(names, "")})

    def close(self) -> None:
        """Close the file and delete its local copy, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._temp.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class File:
    """Single file on a local disk, under the name that its URL ends with."""

    def __init__(self, url: str, path: str, temp: TempFolder) -> None:
        self.url = url
        self.names = [url.rstrip("/").rpartition("/")[2]]
        self.left_out: list[tuple[str, str]] = []
        self._path = path
        self._temp = temp

    @property
    def path(self) -> str:
        """Path on the local disk."""
        return self._path

    def read(self, name: str) -> bytes:
        """Return the contents of the file."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> IO[bytes]:
        """Open the file as a stream."""
        return open(self._path, "rb")

    def fingerprint(self, names: Iterable[str]) -> str:
        """Return the fingerprint of the whole file."""
        return fingerprint_files({"": self._path}, copied=self._temp.holds(self._path))

    def close(self) -> None:
        """Delete the local copy, if there is one."""
        self._temp.close()


def open_archive(url: str) -> Archive:
    """Open a folder, a zip file or a tar file, compressed or not.

    A remote zip or tar file is copied to the local disk first.

    Args:
        url: A path or any fsspec URL.

    Returns:
        The archive.

    Raises:
        UserError: If there is nothing at the URL, or it is none of the three.
    """
    local = _local(url)
    if local is None:
        return Folder(url)
    path, temp = local
    with archive_errors(url):
        if zipfile.is_zipfile(path):
            return Zip(url, path, temp)
        plain = decompress(path, temp.file("plain"), url)
        is_tar = tarfile.is_tarfile(plain)
    if not is_tar:
        raise UserError(f"{url} is neither a folder nor a zip or tar file: check the source's url")
    return Tar(url, plain, temp, packed=path)


def open_files(url: str) -> Archive:
    """Open a folder, a zip file, or else a single file. Anything remote but a folder is copied to the local disk.

    Args:
        url: A path or any fsspec URL.

    Returns:
        The files. A tar file is not opened: it is a single file.

    Raises:
        UserError: If there is nothing at the URL.
    """
    local = _local(url)
    if local is None:
        return Folder(url)
    path, temp = local
    with archive_errors(url):
        return (Zip if zipfile.is_zipfile(path) else File)(url, path, temp)


def _local(url: str) -> tuple[str, TempFolder] | None:
    """Return the path of a file on the local disk, and the folder of its copy if it was remote; None for a folder.

    A file of HTTP is requested once. There must be something.
    """
    fs, path = filesystem(url)
    temp = TempFolder()
    with as_user_error(url):
        try:
            if is_http(url):
                # Whether a URL of HTTP is a folder's is known by its end, or else by what comes.
                is_folder = url.endswith("/") or not download(url, temp.file("copy"))
                return None if is_folder else (temp.file("copy"), temp)
            if fs.isdir(path):
                return None
            if not fs.exists(path):
                raise UserError(f"there is no data at {url}: check the source's url")
            if is_local(fs):
                return path, temp
            fs.get_file(path, temp.file("copy"))
        except OSError as error:
            raise _no_room(url) if error.errno in _FULL else error from None
    return temp.file("copy"), temp
