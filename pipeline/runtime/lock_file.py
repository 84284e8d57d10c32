"""File that changes only where it still has the expected content: compare-and-swap behind any fsspec URL.

Each kind of storage has its own means. A local file system locks the open file, an object store with the protocol of
S3 takes a condition with each request, and anything else is read, written and read again, which leaves a moment between
the reading and the writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from typing import Protocol

import fsspec

from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local

__all__ = ["RELEASED", "LockFile", "open_lock_file"]

RELEASED = b'{"released": true}'
"""Content that an object store keeps of a lock without holder: few of them can delete on a condition."""

# A longer file was not written here.
_MAX_BYTES = 64 * 1024
# A process that was suspended while it had the file open keeps others waiting.
_FLOCK_TIMEOUT = 5.0
# Errors of file systems that cannot lock.
_CANNOT_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class LockFile(Protocol):
    """A small file, of which nobody ever sees a part."""

    def read(self) -> bytes | None:
        """Return the content, or ``None`` where there is no file."""
        ...

    def create(self, content: bytes) -> None:
        """Create the file, or raise ``FileExistsError``."""
        ...

    def replace(self, expected: bytes, content: bytes) -> bool:
        """Replace the content if it is the expected one, and return whether it was."""
        ...

    def remove(self, expected: bytes) -> bool:
        """Remove the file, or what it says, if the content is the expected one, and return whether it was."""
        ...


def open_lock_file(url: str) -> LockFile:
    """Return the file behind a URL, whose folder has to be there.

    Args:
        url: The file, behind any fsspec URL.

    Example:
        >>> file = open_lock_file("memory://doctest/lock")
        >>> file.create(b"one")
        >>> file.replace(b"two", b"three"), file.replace(b"one", b"two"), file.read()
        (False, True, b'two')
    """
    files, path = filesystem(url)
    if is_local(files):
        return _LocalFile(path)
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    return _S3File(files, path) if "s3" in protocols else _RemoteFile(files, path)


class _LocalFile:
    """File of a local or a network file system, which is locked while it is compared and changed.

    It is rewritten in place: whoever waits for the lock of a file that is renamed over has that of another file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> bytes | None:
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            return None if descriptor is None else os.pread(descriptor, _MAX_BYTES, 0)

    def create(self, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o666)
        try:
            _flock(descriptor, fcntl.LOCK_EX)
            # Another process may have taken the empty file for that of a dead holder meanwhile.
            if os.fstat(descriptor).st_size:
                raise FileExistsError(self._path)
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def replace(self, expected: bytes, content: bytes) -> bool:
        with self._locked(os.O_RDWR, fcntl.LOCK_EX) as descriptor:
            if descriptor is None or os.pread(descriptor, _MAX_BYTES, 0) != expected:
                return False
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
            return True

    def remove(self, expected: bytes) -> bool:
        with self._locked(os.O_RDWR, fcntl.LOCK_EX) as descriptor:
            if descriptor is None or os.pread(descriptor, _MAX_BYTES, 0) != expected:
                return False
            os.unlink(self._path)
            return True

    @contextlib.contextmanager
    def _locked(self, flags: int, kind: int) -> Iterator[int | None]:
        """Open the file that the path names, locked; ``None`` where there is none.

        Raises:
            UserError: The path is a link or no regular file, and was not made by a lock.
        """
        while True:
            try:
                descriptor = os.open(self._path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise
                raise UserError(f"{self._path} is not a regular file: remove it") from None
            try:
                opened = os.fstat(descriptor)
                if not stat.S_ISREG(opened.st_mode):
                    raise UserError(f"{self._path} is not a regular file: remove it")
                _flock(descriptor, kind)
                # Its holder may have removed it meanwhile, and another have made a new one.
                if _names(self._path, opened):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)


def _flock(descriptor: int, kind: int) -> None:
    """Lock an open file; a file system that cannot is left without.

    Raises:
        TimeoutError: Another process keeps it locked.
    """
    end = time.monotonic() + _FLOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError("another process keeps the file locked") from None
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in _CANNOT_FLOCK:
                raise
            return None


def _names(path: str, opened: os.stat_result) -> bool:
    """Return whether a path still names the file that was opened."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), opened)
    except FileNotFoundError:
        return False


class _RemoteFile:
    """Object of a store that takes no condition: read before it is written, and read again afterwards."""

    def __init__(self, files: fsspec.AbstractFileSystem, path: str) -> None:
        self._files, self._path = files, path

    def read(self) -> bytes | None:
        self._files.invalidate_cache(self._path.rsplit("/", 1)[0])
        try:
            content = self._files.cat_file(self._path, end=_MAX_BYTES)
        except FileNotFoundError:
            return None
        # fsspec declares text as well, which no file system returns here.
        return bytes(content)  # pyright: ignore[reportArgumentType]

    def create(self, content: bytes) -> None:
        try:
            self._files.pipe_file(self._path, content, mode="create")
        except OSError as error:
            # s3fs does not say FileExistsError of every precondition that failed. Where the answer to a request was
            # lost, the second request fails, and the content is there.
            present = self.read()
            if present is None:
                raise
            if present != content:
                raise FileExistsError(self._path) from error

    def replace(self, expected: bytes, content: bytes) -> bool:
        if self.read() != expected:
            return False
        self._files.pipe_file(self._path, content)
        return self.read() == content

    def remove(self, expected: bytes) -> bool:
        return self.replace(expected, RELEASED)


class _S3File(_RemoteFile):
    """Object of a store with the protocol of S3, which writes it on the condition that it has not changed."""

    def replace(self, expected: bytes, content: bytes) -> bool:
        self._files.invalidate_cache(self._path.rsplit("/", 1)[0])
        try:
            # Before the content: if that changes in between, the condition fails.
            tag = self._files.info(self._path)["ETag"]
        except FileNotFoundError:
            return False
        if self.read() != expected:
            return False
        try:
            self._files.pipe_file(self._path, content, IfMatch=tag)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return super().replace(expected, content)
            present = self.read()
            if present == expected:
                raise
            return present == content
        # Some servers with this protocol ignore conditions.
        return self.read() == content
