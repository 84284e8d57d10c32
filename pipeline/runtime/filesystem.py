"""Atomic writes of whole files, and file systems behind any fsspec URL."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from pipeline.runtime.errors import UserError, one_line

__all__ = [
    "as_user_error",
    "filesystem",
    "is_local",
    "refuse_links",
    "require_writable",
    "sync",
    "write_file",
    "write_files",
    "writing",
]


def is_local(files: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system is this machine's own.

    Example:
        >>> is_local(fsspec.filesystem("file")), is_local(fsspec.filesystem("memory"))
        (True, False)
    """
    return "file" in ([files.protocol] if isinstance(files.protocol, str) else files.protocol)


def write_file(url: str, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it.

    Args:
        url: The file, behind any fsspec URL; its folder is made.
        content: All of it. Where several processes write at once, the content of one of them remains, whole.

    Example:
        >>> write_file("memory://doctest/whole.txt", b"whole")
        >>> fsspec.open("memory://doctest/whole.txt").open().read()
        b'whole'
    """
    files, path = fsspec.url_to_fs(url)
    files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    # A file system shows no half-written file under a name that it gets by renaming. An object store has no renaming
    # to speak of, but shows an object only once it is whole.
    if is_local(files):
        _write_local(Path(path), content)
    else:
        files.pipe_file(path, content)


def write_files(contents: dict[str, bytes], url: str) -> list[str]:
    """Write files into one folder, each whole.

    Args:
        contents: File name to content.
        url: Their folder, behind any fsspec URL.

    Returns:
        Their URLs.

    Example:
        >>> write_files({"a.txt": b"a", "b.txt": b"b"}, "memory://doctest/folder")
        ['memory://doctest/folder/a.txt', 'memory://doctest/folder/b.txt']
    """
    for name, content in contents.items():
        write_file(f"{url}/{name}", content)
    return [f"{url}/{name}" for name in contents]


def refuse_links(url: str, skip: tuple[str, ...] = ()) -> None:
    """Check that there is no link in a folder, through which something outside of it would be written or deleted.

    A pipe, which would be waited for without end, is refused as well.

    Args:
        url: The folder, behind any fsspec URL; it may be a link itself. Only a local one can have links.
        skip: Names of folders in it that are not looked into.

    Raises:
        UserError: There is one.

    Example:
        >>> refuse_links("memory://doctest/anything")
    """
    files, path = filesystem(url)
    if not is_local(files):
        return
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            try:
                mode = os.lstat(os.path.join(folder, name)).st_mode
            # Whoever writes there now has removed it.
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(mode):
                raise UserError(f"{os.path.join(folder, name)} is a link: put what it leads to in its place")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{os.path.join(folder, name)} is not a regular file: remove it")
        if folder == path:
            folders[:] = [name for name in folders if name not in skip]


def require_writable(url: str, key: str = "output") -> None:
    """Check that files can be written into a folder, before anything is computed that will be.

    Args:
        url: The folder, behind any fsspec URL; it is made.
        key: The key that names it, for the message.

    Raises:
        UserError: They cannot.

    Example:
        >>> require_writable("memory://doctest/results")
    """
    # A name of its own, so that nothing that is there can be lost.
    name = f".writable-{uuid.uuid4().hex}"
    try:
        write_file(f"{url}/{name}", b"")
        files, path = filesystem(url)
        files.rm(f"{path}/{name}")
    except UserError:
        raise
    # Each file system has exceptions of its own.
    except Exception as error:
        raise UserError(f"cannot write to {key}={url} ({one_line(error)}): choose another {key}") from None


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Turn whatever a file system raises while it is written to into one line that names the URL.

    Args:
        url: What is written inside the block.

    Raises:
        UserError: In place of any other exception.

    Example:
        >>> with writing("s3://bucket/samples"):
        ...     raise OSError("no space left")
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: cannot write to s3://bucket/samples (no space left): free some space there, \
or choose another place
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot write to {url} ({one_line(error)}): free some space there, or choose another place"
        ) from error


def _write_local(path: Path, content: bytes) -> None:
    # A name of its own, since several processes may write the same file; on the disk before it gets the right one,
    # since otherwise a power cut could leave the name and not the content.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(descriptor: int) -> None:
    """Have a file's content be on its disk, as far as its file system can: a share may not know the request.

    Args:
        descriptor: Descriptor of the open file.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system behind a URL, and the path in it, without a trailing slash.

    Args:
        url: A path or an fsspec URL.

    Returns:
        The file system and the path.

    Raises:
        UserError: If the protocol is unknown or its library is not installed.

    Example:
        >>> filesystem("memory://stores/digits/")[1]
        '/stores/digits'
    """
    # In a URL two colons chain file systems; in a path they are part of a name.
    if "::" in url and "://" not in url:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(url))
    with as_user_error(url):
        fs, path = fsspec.core.url_to_fs(url)
    return fs, path.rstrip("/")


@contextmanager
def as_user_error(url: str, *but: type[Exception]) -> Iterator[None]:
    """Turn whatever a file system raises into one line that names the URL.

    Args:
        url: What is read or written inside the block.
        but: Exceptions that pass as they are.

    Raises:
        UserError: In place of any other exception.

    Example:
        >>> with as_user_error("s3://bucket/lsun"):
        ...     raise OSError("connection refused")
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: cannot reach s3://bucket/lsun: connection refused
    """
    try:
        yield
    except (UserError, *but):
        raise
    # Each file system has exceptions of its own (botocore's and google's are no OSError), so none can be listed here.
    except Exception as error:
        reason = one_line(error)
        raise UserError(f"cannot reach {url}: {reason}") from error
