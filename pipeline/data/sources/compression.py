"""Compressed files: gzip, bzip2 and xz, known by their first bytes, and bounds on how much they unpack to."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zipfile
from collections.abc import Callable
from typing import IO, Any

from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name

__all__ = ["decompress", "decompressing", "is_compressed", "require_plausible_size", "without_compression"]

# What begins a compressed file, and what reads it.
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_MAGIC_BYTES = 6
# An archive of images or numbers unpacks to no more than this many times its size, except for a small one.
_BEST_COMPRESSION = 100
_MOST_UNPACKED = 2**30


def decompress(path: str, plain: str, url: str) -> str:
    """Decompress a file of gzip, bzip2 or xz.

    Args:
        path: The file, compressed or not.
        plain: Where to write it to.
        url: URL of the file, for messages.

    Returns:
        The path of the plain file: ``path`` itself where it is not compressed.

    Raises:
        UserError: If it is packed more tightly than images or numbers can be.
        EOFError: If it is cut; what comes before is written. A damaged one raises errors of its method.
    """
    with open(path, "rb") as file:
        opener = _opener(file.read(_MAGIC_BYTES))
    if opener is None:
        return path
    most = max(_MOST_UNPACKED, _BEST_COMPRESSION * os.path.getsize(path))
    with opener(path, "rb") as source, open(plain, "wb") as target:
        while chunk := source.read(2**20):
            target.write(chunk)
            if target.tell() > most:
                raise _too_compressed(url)
    return plain


def _opener(start: bytes) -> Callable[..., IO[bytes]] | None:
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def decompressing(file: IO[bytes]) -> IO[bytes]:
    """Return a stream of what a file of gzip, bzip2 or xz holds; the file itself where it is not compressed.

    Args:
        file: The file, open at its beginning.

    Example:
        >>> import io
        >>> decompressing(io.BytesIO(bz2.compress(b"1;2"))).read(), decompressing(io.BytesIO(b"1;2")).read()
        (b'1;2', b'1;2')
    """
    opener = _opener(file.read(_MAGIC_BYTES))
    file.seek(0)
    return file if opener is None else opener(file)


def without_compression(name: str) -> str:
    """Return the name of a file without the ending of its compression.

    Example:
        >>> without_compression("1000_train.csv.gz"), without_compression("a.csv")
        ('1000_train.csv', 'a.csv')
    """
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and suffix in ("gz", "bz2", "xz") else name


def is_compressed(start: bytes) -> bool:
    """Return whether a file that begins with some bytes, six at least, is compressed.

    Example:
        >>> is_compressed(gzip.compress(b"")), is_compressed(b"BZ/0001.png")
        (True, False)
    """
    return _opener(start) is not None


def require_plausible_size(member: zipfile.ZipInfo, where: str) -> None:
    """Check, before a member of a zip file is unpacked to a disk, that it is not made to fill it.

    Args:
        member: The member.
        where: Name of the zip file in a message.

    Raises:
        UserError: If it is packed more tightly than images or numbers can be.
    """
    if member.file_size > max(_MOST_UNPACKED, _BEST_COMPRESSION * member.compress_size):
        raise _too_compressed(f"{printable_name(member.filename, 100)} of {where}")


def _too_compressed(name: str) -> UserError:
    return UserError(f"{name} unpacks to more than {_BEST_COMPRESSION} times its size: check its origin")
