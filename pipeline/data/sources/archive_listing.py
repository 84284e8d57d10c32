"""Members of zip and tar files under the names of their files: separators, links, duplicates and what is left out."""

from __future__ import annotations

import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Generic, TypeVar, cast

from pipeline.runtime.errors import UserError, one_line

__all__ = ["ArchiveListing", "DamagedTar", "TarMember", "iterate_tar", "list_tar", "list_zip"]

Member = TypeVar("Member")

TarMember = tuple[int, int]
"""Contents of a file in a tar file: where they begin, and their size in bytes. Millions go to other processes."""

_BLOCK = 512
# Bytes that are looked at in one go, and the longest target of a link.
_CHUNK, _MAX_TARGET = 2**20, 4096
# Bytes of one member's headers: the names and extensions of all that is not made to fill a memory are far fewer.
_MAX_HEADER = 2**20
# Links to links that are followed, as many as Linux does.
_MAX_LINKS = 40
_REPLACED = "replaced by a later file of its name"


@dataclass
class ArchiveListing(Generic[Member]):
    """Files of an archive.

    Args:
        members: What finds a file in the archive, by its name, with slashes.
        broken: Reason of each file that is named and cannot be read, such as a link to nothing.
        left_out: Name and reason of what is no file.
    """

    members: dict[str, Member] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, member: Member) -> None:
        """Add a file; the last of several with one name is the one that unpacking would leave."""
        self._replace(name)
        self.members[name] = member

    def add_broken(self, name: str, reason: str) -> None:
        """Add a file that cannot be read."""
        self._replace(name)
        self.broken[name] = reason

    def add_links(self, targets: list[tuple[str, str]]) -> None:
        """Add links under the names of the files that they lead to, through other links or directly.

        Args:
            targets: Name of each link, and the name in the archive that it leads to.
        """
        links: dict[str, str] = {}
        for name, target in targets:
            if name in links:
                self.left_out.append((name, _REPLACED))
            links[name] = target
        folders = {parent for name in self.members for parent in _parents(name)} if links else set()
        resolved = {name: _follow(name, links) for name in links}
        found = {name: self.members[target] for name, target in resolved.items() if target in self.members}
        for name, target in resolved.items():
            if name in found:
                continue
            if target.startswith(("/", "../")) or target == "..":
                self.left_out.append((name, "link out of the archive"))
            elif target in folders or target == ".":
                self.left_out.append((name, "link to a folder of the archive"))
            else:
                self.add_broken(name, self.broken.get(target, "link to nothing"))
        for name, member in found.items():
            self.add(name, member)

    @property
    def names(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted([*self.members, *self.broken])

    def _replace(self, name: str) -> None:
        if name in self.members or name in self.broken:
            self.members.pop(name, None)
            self.broken.pop(name, None)
            self.left_out.append((name, _REPLACED))


def list_tar(path: str, url: str) -> ArchiveListing[TarMember]:
    """List the members of a tar file without compression, and of those that are appended to it.

    Hard and symbolic links to another member are listed as that member; nothing outside is ever read.

    Args:
        path: The file.
        url: URL of the archive, for messages.

    Raises:
        UserError: If the file is damaged, or cut so that its end is missing.
    """
    listing: ArchiveListing[TarMember] = ArchiveListing()
    links: list[tuple[str, str]] = []
    with open(path, "rb") as file:
        try:
            for info in iterate_tar(file):
                _add_tar_member(listing, links, info)
        except DamagedTar as error:
            raise UserError(f"{url} {error}: fetch it again") from None
    listing.add_links(links)
    return listing


class DamagedTar(Exception):
    """Tar file that is damaged or cut. The message is the rest of a sentence that begins with its name."""


class _BoundedHeaders:
    """File of which a reader may take as many bytes as the headers of one member have, and no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def begin_member(self) -> None:
        self._left = _MAX_HEADER

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise tarfile.ReadError(f"a header of more than {_MAX_HEADER:,} bytes")
        self._left -= size
        return self._file.read(size)


def iterate_tar(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file without compression, and of those that are appended to it.

    The headers are read and the contents are skipped, so memory does not grow with the file. The caller may read the
    contents of a member before it asks for the next one.

    Args:
        file: The open file, which is read from its beginning.

    Raises:
        DamagedTar: If the file is damaged, or cut so that its end is missing, after the members before that.
    """
    start: int | None = 0
    num_files = 0
    while start is not None:
        file.seek(start)
        headers = _BoundedHeaders(file)
        try:
            # It reads, seeks and tells, and needs nothing else of a file.
            stream = cast("BinaryIO", headers)
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (info := tar.next()) is not None:
                    if info.size < 0:
                        raise ValueError("a file of negative size")
                    num_files += info.isreg()
                    yield info
                    # It would keep them all; typeshed does not know where.
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    headers.begin_member()
                end = tar.offset
        # Beyond its own errors: numbers in a damaged header of an extension.
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise DamagedTar(f"is a damaged tar file ({one_line(error)})") from None
        start = _next_archive(file, end, num_files)


def _add_tar_member(listing: ArchiveListing[TarMember], links: list[tuple[str, str]], info: tarfile.TarInfo) -> None:
    name = _normal(info.name)
    if info.isdir():
        return
    if info.islnk():
        links.append((name, _normal(info.linkname)))
    elif info.issym():
        links.append((name, _beside(name, info.linkname)))
    elif info.issparse():
        listing.add_broken(name, "sparse file in a tar file")
    elif info.isreg():
        listing.add(name, (info.offset_data, info.size))
    else:
        listing.left_out.append((name, "pipe, socket or device"))


def _next_archive(file: BinaryIO, end: int, num_files: int) -> int | None:
    """Return where the tar file after this one begins, or None; this one has to have its end-of-archive block."""
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DamagedTar(f"has no end-of-archive block after its {num_files:,} files, so it is cut or damaged")
    while chunk := file.read(_CHUNK):
        if (rest := chunk.lstrip(b"\0")) and len(chunk) >= _BLOCK:
            start = (len(chunk) - len(rest)) // _BLOCK * _BLOCK
            file.seek(start - len(chunk), 1)
            try:
                tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                # Padding of the tape or tool that wrote it.
                return None
            return file.tell() - _BLOCK
    return None


def list_zip(file: zipfile.ZipFile) -> ArchiveListing[str]:
    """List the members of a zip file by the names that they have in it.

    Tools of Windows write backslashes, which the format forbids; they are separators here. Symbolic links to another
    member are listed as that member.

    Args:
        file: The open file.
    """
    listing: ArchiveListing[str] = ArchiveListing()
    links: list[tuple[str, str]] = []
    for info in file.infolist():
        given = info.filename.replace("\\", "/")
        # The mode of Unix, which tools of other systems leave out.
        name, mode = _normal(given), info.external_attr >> 16 if info.create_system else 0
        if given.endswith("/"):
            continue
        if stat.S_ISLNK(mode):
            links.append((name, _zip_target(file, info, name)))
        else:
            listing.add(name, info.filename)
    listing.add_links(links)
    return listing


def _zip_target(file: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> str:
    """Return the target of a link, which is its contents; that of a damaged one is the link itself."""
    try:
        with file.open(info) as contents:
            return _beside(name, contents.read(_MAX_TARGET).decode(errors="surrogateescape"))
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, ValueError, OSError, EOFError, struct.error):
        return name


def _normal(name: str) -> str:
    """Return a name without "./" and doubled slashes."""
    return posixpath.normpath(name) if name else name


def _beside(name: str, target: str) -> str:
    """Return the name in the archive that a symbolic link leads to."""
    return _normal(posixpath.join(posixpath.dirname(name), target))


def _follow(name: str, links: dict[str, str]) -> str:
    """Return the end of a chain of links; a chain that has none leads to a link, which is no file."""
    for _ in range(_MAX_LINKS):
        name = links[name]
        if name not in links:
            break
    return name


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: length + 1]) for length in range(len(parts))]
