"""Digest of a part's code, which saved results are named by, so that they are used with that code alone."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from gebm.registry import source_of

__all__ = ["code_digest"]


def code_digest(module: str) -> str:
    """Return the SHA-256 of the code that a part comes from.

    Of a plugin that is a file it is the file's text. Of a module in a package it is all files of Python below the
    package's folder, by their names and contents, and of any other module its file. What these import from elsewhere is
    not covered, and neither is compiled code.

    Args:
        module: Name of the module that registered the part.

    Returns:
        Sixty-four hexadecimal digits; empty for a module that has no file.

    Example:
        >>> code_digest("pipeline.runtime.part_code") == code_digest("pipeline.runtime.errors")
        True
        >>> code_digest("sys")
        ''
    """
    source = source_of(module)
    if source is not None:
        return hashlib.sha256(source.encode()).hexdigest()
    folders = getattr(sys.modules.get(module.partition(".")[0]), "__path__", None)
    if folders is not None:
        listing = "".join(f"{name}\0{hashlib.sha256(content).hexdigest()}\0" for name, content in _files(folders))
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    path = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _files(folders: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of Python below the folders of a package, by their paths there."""
    for folder in map(Path, folders):
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(folder).as_posix(), path.read_bytes()
