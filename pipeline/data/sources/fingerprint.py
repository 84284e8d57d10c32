"""Fingerprint of a source's files: two sources with the same one have the same files, as far as can be seen cheaply.

Files of 64 MiB at most in all are known by their names and contents. Of a larger file it is the size, the time of its
last modification, and 64 blocks of 1 MiB, evenly spaced from its head to its tail; of a larger folder the name, the
size and the time of each file. Files behind a network are known by what their storage says: the size, and an ETag or a
time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

__all__ = ["fingerprint_files", "fingerprint_listing", "version"]

_WHOLE = 64 * 2**20
_MOST_WHOLE_FILES = 10_000
_BLOCK = 2**20
_NUM_BLOCKS = 64
# What the file systems of fsspec call the version of a file, or the time of its last modification.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")


def fingerprint_files(paths: Mapping[str, str], *, copied: bool = False) -> str:
    """Return the fingerprint of files on a local disk.

    Args:
        paths: The path of each file, by its name in the source.
        copied: True for copies that this process made, whose time says nothing.

    Returns:
        Thirty-two hexadecimal digits.

    Example:
        >>> fingerprint_files({"empty": os.devnull})
        '86fbe86b2a8b66c72bad3c1172b57460'
    """
    digest = hashlib.sha256()
    states = {name: _stat(path) for name, path in paths.items()}
    whole = sum(size for size, _ in states.values()) <= _WHOLE and len(states) <= _MOST_WHOLE_FILES
    for name in sorted(states):
        size, modified = states[name]
        _add(digest, name, size)
        if not whole and not copied:
            _add(digest, modified)
        if whole or len(states) == 1:
            _add_contents(digest, paths[name], size, whole)
    return digest.hexdigest()[:32]


def fingerprint_listing(versions: Mapping[str, str]) -> str:
    """Return the fingerprint of files behind a network, as thirty-two hexadecimal digits.

    Args:
        versions: The version of each file, see :func:`version`, by its name in the source.

    Example:
        >>> fingerprint_listing({"1.png": "67 0x8D"}) == fingerprint_listing({"1.png": "67 0x8E"})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(versions):
        _add(digest, name, versions[name])
    return digest.hexdigest()[:32]


def version(entry: Mapping[str, Any]) -> str:
    """Return the version of a file that a file system has listed.

    Args:
        entry: What fsspec says of the file.

    Example:
        >>> version({"name": "a/1.png", "size": 67, "type": "file", "ETag": '"0x8D"'})
        '67 "0x8D"'
    """
    known = next((entry[key] for key in _VERSIONS if entry.get(key) is not None), "")
    return f"{entry.get('size')} {known}".rstrip()


def _stat(path: str) -> tuple[int, int]:
    """Return the size and the time of a file; of one that is not there, as behind a dangling link, impossible ones."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _add(digest: Any, *parts: str | int) -> None:
    """Add parts, each with an end that no part has."""
    for part in parts:
        digest.update(f"{part}\0".encode(errors="surrogateescape"))


def _add_contents(digest: Any, path: str, size: int, whole: bool) -> None:
    try:
        with open(path, "rb") as file:
            if whole:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                return
            for number in range(_NUM_BLOCKS):
                file.seek((size - _BLOCK) * number // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    # The source itself says so when it comes to read the file.
    except OSError:
        _add(digest, "unreadable")
