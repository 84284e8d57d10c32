"""Image-folder source: any folder, zip or tar file of images."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from pipeline.data.image_files import describe_suffix, readable_suffixes
from pipeline.data.ledger import group
from pipeline.data.sources.archives import Archive, Folder, open_archive
from pipeline.data.sources.images.class_folders import label_by_folder
from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name

__all__ = ["Images", "passed_over_reason", "select_images"]

# Folders that systems leave, with thumbnails or with what was deleted.
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
_ARCHIVES = (".tar", ".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
# Members that hold labels or texts of a webdataset sample.
_LABELS = (".cls", ".json", ".txt")
_MAX_SUFFIX = 16


class Images:
    """Source of images in files, with the folder below the root as the class, see ``label_by_folder``.

    Args:
        url: A folder, zip or tar file.
        split: The name of a folder, anywhere above the images: only what is under it is taken. None for everything.

    Raises:
        UserError: If there are no images, or none in this split.
    """

    kind = "images"

    def __init__(self, url: str, split: str | None) -> None:
        self.url = url
        self.split = split
        self._archive = open_archive(url)
        images, passed_over = select_images(self._archive)
        if not images:
            raise _no_images(url, self._archive.names, passed_over)
        if split is not None:
            passed_over += [(name, f"not in the split {split}") for name in images if split not in _folders(name)]
            images = [name for name in images if split in _folders(name)]
            if not images:
                raise UserError(
                    f"there is no folder {split!r} with images in {url}: set data.source.split=null for all images"
                )
        self._names = images
        self.passed_over = group(passed_over)
        self.labels, self._classes, note = label_by_folder(images, split)
        self.notes = (note, *_webdataset(images, passed_over), *_followed(self._archive))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the images' files."""
        return self._archive.fingerprint(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the file's name in the folder or archive."""
        return self._names[index]

    def read(self, index: int) -> tuple[bytes, int | None]:
        """Return the encoded image and its class."""
        return self._archive.read(self._names[index]), None if self._classes is None else self._classes[index]

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def select_images(archive: Archive) -> tuple[list[str], list[tuple[str, str]]]:
    """Divide the files of an archive into images, by their endings, and others.

    Args:
        archive: The archive.

    Returns:
        Names of the images, in order; name and reason of each other file, including what the archive leaves out.
    """
    images, passed_over = [], list(archive.left_out)
    readable = readable_suffixes()
    for name in archive.names:
        if reason := passed_over_reason(name):
            passed_over.append((name, reason))
        elif (suffix := _suffix(name)) in readable:
            images.append(name)
        else:
            passed_over.append((name, describe_suffix(printable_name(suffix, _MAX_SUFFIX))))
    return images, passed_over


def passed_over_reason(name: str) -> str | None:
    """Return why a file is passed over whatever its ending is, or None.

    Args:
        name: Its name, with slashes.

    Example:
        >>> passed_over_reason("cats/._1.png"), passed_over_reason("cats/1.png")
        ('hidden', None)
    """
    parts = name.split("/")
    if ".." in parts:
        return "with a name that leads out of the archive"
    if any(part in _OF_SYSTEMS for part in parts):
        return "in a folder of the operating system"
    return "hidden" if any(part.startswith(".") and part != "." for part in parts) else None


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _no_images(url: str, names: Sequence[str], passed_over: Sequence[tuple[str, str]]) -> UserError:
    """Return the error of a source without images, which says what there is instead."""
    if archives := [name for name in names if _suffix(name) in _ARCHIVES]:
        return UserError(
            f"there are no images in {url}, but {len(archives):,} archives such as {printable_name(archives[0], 100)} "
            "that are not opened (shards in webdataset's format?): give the url of one, or unpack them"
        )
    there = "; ".join(each.line() for each in group(passed_over)[:3])
    return UserError(f"there are no images in {url}{there and f' ({there})'}: check the source's url")


def _webdataset(images: Sequence[str], passed_over: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line if the images are samples in webdataset's format, whose labels are members of their own."""
    # A sample's key ends at the first dot of the file's name.
    keys = {_key(name) for name in images}
    members = [name for name, _ in passed_over if _suffix(name) in _LABELS and _key(name) in keys]
    if not any(_suffix(name) == ".cls" for name in members):
        return []
    suffixes = ", ".join(sorted({_suffix(name) for name in members}))
    return [f"webdataset's format: {len(members):,} members next to the images ({suffixes}) are not read as labels"]


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _followed(archive: Archive) -> list[str]:
    """Return a line if links lead out of a folder."""
    if not isinstance(archive, Folder) or not archive.followed:
        return []
    name, target = (printable_name(each, 100) for each in min(archive.followed.items()))
    return [f"links out of the folder that were followed: {len(archive.followed):,} ({name} -> {target})"]
