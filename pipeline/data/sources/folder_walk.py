"""Files of a folder on this machine, with links followed, and what is left out of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name

__all__ = ["FolderListing", "list_folder"]

# Links to folders can multiply what there is to read without an end.
_MAX_FOLLOWED = 100_000


@dataclass(frozen=True)
class FolderListing:
    """Files of a folder.

    Args:
        names: Names of the files relative to the folder, with slashes, sorted. A link that leads to nothing is one.
        left_out: Name and reason of what is no file that can be read.
        followed: Links to folders outside, and where they lead.
    """

    names: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    followed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Folder:
    """Folder to list: its name with a slash, its path without links, and the folders on the way to it."""

    name: str
    path: str
    ancestors: frozenset[str]


def list_folder(root: str) -> FolderListing:
    """List all files below a folder.

    Links to files and folders are followed, also those that lead outside, as is usual for data sets whose classes or
    splits are links. A link to a folder that it is in, directly or through others, is left out.

    Args:
        root: The folder.

    Returns:
        The files, and what is left out of them.

    Raises:
        OSError: If the folder itself cannot be read.
        UserError: If more links to folders are followed than a data set could have.
    """
    listing, num_followed = FolderListing(), 0
    real_root = os.path.realpath(root)
    folders = [_Folder("", real_root, frozenset((real_root,)))]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder.name)))
        except OSError as error:
            if not folder.name:
                raise
            listing.left_out.append((folder.name, f"folder that cannot be read ({_text(error)})"))
            continue
        for entry in entries:
            name = folder.name + entry.name
            kind = _kind(entry)
            if kind == "folder":
                path = os.path.join(folder.path, entry.name)
                if entry.is_symlink():
                    path = os.path.realpath(path)
                    num_followed += 1
                    if not _is_inside(path, real_root):
                        listing.followed[name] = path
                if path in folder.ancestors or _is_inside(folder.path, path) or _is_inside(real_root, path):
                    listing.left_out.append((name, "link to a folder that it is in"))
                    continue
                folders.append(_Folder(f"{name}/", path, folder.ancestors | {path}))
            elif kind == "file":
                listing.names.append(name)
            else:
                listing.left_out.append((name, kind))
        if num_followed > _MAX_FOLLOWED:
            raise UserError(
                f"{printable_name(root)} has more than {_MAX_FOLLOWED:,} links to folders (one is in "
                f"{printable_name(folder.name)}): give the url of a folder with fewer"
            )
    listing.names.sort()
    listing.left_out.sort()
    return listing


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file", or the reason why an entry is neither. Links are followed."""
    if entry.is_file(follow_symlinks=False):
        return "file"
    try:
        mode = entry.stat().st_mode
    except OSError:
        # A link to nothing or to itself: reading it says what is wrong.
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    # A pipe would be waited for, and a device may never end.
    return "file" if stat.S_ISREG(mode) else "pipe, socket or device"


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _text(error: OSError) -> str:
    return (error.strerror or "error").lower()
