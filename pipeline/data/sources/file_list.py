"""Files that a URL names together: a folder, brace notation, a list, a pattern, or one file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import fsspec
from braceexpand import braceexpand

from pipeline.data.ledger import Tally
from pipeline.data.sources.archives import Folder
from pipeline.data.sources.download import is_http
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem, is_local
from pipeline.runtime.printable import printable_name
from pipeline.runtime.redaction import without_query

__all__ = ["FileList", "ListedFile", "divide_list", "list_files"]

_MAX_FILES, _MAX_DIGITS = 1_000_000, 18
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
# A comma that is not in braces.
_COMMA = re.compile(r",(?![^{]*\})")
_PATTERN = re.compile(r"[*?\[]")
# Names that a line shows.
_MAX_SHOWN = 3


@dataclass(frozen=True)
class ListedFile:
    """File behind any fsspec URL.

    Args:
        name: Its name in the list, with slashes: the path below the folder that all are in.
        fs: Its file system.
        path: Its path there.
    """

    name: str
    fs: fsspec.AbstractFileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return is_local(self.fs)

    @property
    def is_http(self) -> bool:
        """Whether it is read by HTTP."""
        return is_http(self.path)


@dataclass(frozen=True)
class FileList:
    """Files, in order.

    Args:
        url: What named them, without signatures.
        files: The files.
    """

    url: str
    files: tuple[ListedFile, ...]


def list_files(
    url: str | Sequence[str], suffixes: tuple[str, ...], split: str | None, kind: str, tally: Tally
) -> FileList:
    """List the files of a source.

    Args:
        url: A folder; a file; ``shard-{000..123}.tar``; ``shard-*.tar``; or a list of these, as a sequence, as
            ``[a.tar,b.tar]``, or as ``a.tar::b.tar``, each behind any fsspec URL.
        suffixes: Endings of the files to take from a folder.
        split: Take only files with this word in their name or in a folder's below the one that all are in; or all of
            them, if it is that folder's name. None for all.
        kind: The kind of source, for messages.
        tally: Counts what is passed over.

    Raises:
        UserError: If there are none, a URL leads to nothing, or it names a command.
    """
    texts = [text for each in ([url] if isinstance(url, str) else url) for text in _texts(each, suffixes)]
    shown = [without_query(text) or "" for text in texts]
    where = ", ".join(shown[:_MAX_SHOWN]) + (f", ... ({len(shown):,})" if len(shown) > _MAX_SHOWN else "")
    found: dict[tuple[str, str], fsspec.AbstractFileSystem] = {}
    for text in texts:
        for expanded in _expanded(text):
            for fs, path in _files(expanded, suffixes, tally):
                found[str(fs.protocol), path] = fs
            if len(found) > _MAX_FILES:
                raise UserError(f"{where} names more than {_MAX_FILES:,} files: give fewer")
    if not found:
        raise UserError(f"there are no files of {kind} ({', '.join(suffixes)}) at {where}: check the source's url")
    folder = _common_folder([path for _, path in found])
    files = [ListedFile(_relative(path, folder), fs, path) for (_, path), fs in found.items()]
    return FileList(where, tuple(_of_split(files, split, folder, where, tally)))


def divide_list(text: str) -> list[str]:
    """Return the parts of a text that is a list, or the text alone.

    Args:
        text: A URL, or several in brackets.

    Example:
        >>> divide_list("[a.tar, 'b{0,1}.tar']"), divide_list("a.tar")
        (['a.tar', 'b{0,1}.tar'], ['a.tar'])
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [part for each in _COMMA.split(text[1:-1]) if (part := each.strip().strip("'\""))]
    return [text] if text else []


def _texts(text: str, suffixes: tuple[str, ...]) -> list[str]:
    """Divide a text that is a list, in either form."""
    parts = text.strip().split("::")
    # Two colons chain file systems as well, whose names have no such endings.
    return parts if all(part.endswith(suffixes) for part in parts) else divide_list(text)


def _expanded(text: str) -> Iterator[str]:
    """Yield what a text in brace notation stands for, or the text itself."""
    if text.startswith("pipe:"):
        raise UserError(f"{text} is a command, and no source is a command's output: give the URL that it reads")
    if "{" not in text or _exists(text):
        yield text
        return
    ranges = _RANGE.findall(text)
    if any(max(map(len, ends)) > _MAX_DIGITS or abs(int(ends[1]) - int(ends[0])) >= _MAX_FILES for ends in ranges):
        raise UserError(f"{text} names more than {_MAX_FILES:,} files: give fewer")
    try:
        yield from itertools.islice(braceexpand(text, escape=False), _MAX_FILES + 1)
    # Braces that do not match.
    except ValueError:
        raise UserError(f"the braces of {text} do not match: write them as in shard-{{000..123}}.tar") from None


def _exists(text: str) -> bool:
    if is_http(text):
        return False
    fs, path = filesystem(text)
    with as_user_error(text):
        return bool(fs.exists(path))


def _files(text: str, suffixes: tuple[str, ...], tally: Tally) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Yield the files that a path or URL leads to."""
    fs, path = filesystem(text)
    # A server lists nothing, and a question mark is not a pattern's.
    if is_http(text):
        yield fs, path
        return
    with as_user_error(text):
        try:
            file_type = fs.info(path)["type"]
        except FileNotFoundError:
            file_type = None
    if file_type == "directory":
        folder = Folder(text)
        for name, reason in folder.left_out:
            tally.add(name, reason)
        for name in folder.names:
            if name.lower().endswith(suffixes):
                yield fs, f"{path}/{name}"
            else:
                tally.add(name, f"not a file of {' or '.join(suffixes[:1])}")
    elif file_type is not None:
        yield fs, path
    else:
        matches: list[str] = []
        if _PATTERN.search(path):
            with as_user_error(text):
                matches = sorted(cast("list[str]", fs.glob(path)))
        if not matches:
            raise UserError(f"there is no data at {text}: check the source's url")
        for match in matches:
            yield fs, match


def _of_split(files: list[ListedFile], split: str | None, folder: str, where: str, tally: Tally) -> list[ListedFile]:
    if split is None:
        return files

    def is_chosen(file: ListedFile) -> bool:
        return split in re.split(r"[^A-Za-z0-9]+", file.name)

    chosen = [file for file in files if is_chosen(file)]
    if not chosen and folder.rpartition("/")[2] == split:
        return files
    if not chosen:
        names = ", ".join(printable_name(file.name, 100) for file in files[:_MAX_SHOWN])
        raise UserError(
            f"none of the {len(files):,} files at {where} is of the split {split!r} by its name ({names}): "
            "set data.source.split=null for all"
        )
    for file in files:
        if not is_chosen(file):
            tally.add(file.name, f"not in the split {split}")
    return chosen


def _common_folder(paths: list[str]) -> str:
    """Return the deepest folder that all paths are below."""
    first, last = min(paths).split("/")[:-1], max(paths).split("/")[:-1]
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "/".join(part for part, _ in common)


def _relative(path: str, folder: str) -> str:
    # The query of a URL may be its signature.
    return path[len(folder) :].lstrip("/").partition("?")[0]
