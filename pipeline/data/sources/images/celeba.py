"""CelebA source: 202,599 aligned faces of 178x218."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import cast

from pipeline.data.ledger import group
from pipeline.data.sources.archives import Archive, Folder, open_archive
from pipeline.data.sources.base import choose
from pipeline.data.sources.images.folder import select_images
from pipeline.data.sources.published import Part
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem

__all__ = ["CelebA"]

# The publisher's list and Kaggle's.
_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
# Folders in which the list is, next to the images' file or folder or above it.
_FOLDERS = ("", "Eval/", "../", "../Eval/")
_MAX_PARTITION = 2**25
_ZIP = "img_align_celeba.zip"
_ALIGNED = re.compile(r"img_align_celeba(_png)?")
_SPLITS = ("train", "valid", "test")


class CelebA:
    """Source of ``img_align_celeba.zip`` (Liu, Luo, Wang and Tang, ICCV 2015), or the folder it holds, JPEG or PNG.

    The writer takes the central square of 178x178, which is the usual preparation of these faces, and resizes it.

    Args:
        url: The zip file or folder; or a folder that has one of them, as the publisher's with ``Img`` and ``Eval``, or
            Kaggle's.
        split: "train", "valid" or "test": needs ``list_eval_partition.txt``, or Kaggle's ``.csv``, in the archive, next
            to it, or in a folder ``Eval`` next to its own. None for everything.

    Raises:
        UserError: If there are no images, or the split's list is missing or does not name them.
    """

    kind = "celeba"

    def __init__(self, url: str, split: str | None) -> None:
        self.url = url
        self.split = choose(split, _SPLITS, self.kind)
        self.labels = None
        outer = open_archive(url)
        self._archive = _images_of(outer, url)
        images, passed_over = select_images(self._archive)
        self._names = [name for name in images if any(map(_ALIGNED.fullmatch, PurePosixPath(name).parts))] or images
        passed_over += [(name, "not an aligned image") for name in sorted(set(images).difference(self._names))]
        if split is not None:
            members = _members(outer, self._archive.url, _SPLITS.index(split))
            in_split = [name for name in self._names if PurePosixPath(name).stem in members]
            others = sorted(set(self._names).difference(in_split))
            passed_over += [(name, f"not in the split {split}") for name in others]
            self._names = in_split
        self.parts = (Part(split or "all", len(self._names)),)
        if not self._names:
            raise UserError(f"there are no images of CelebA in {url}: give the path of img_align_celeba.zip")
        self.passed_over = group(passed_over)
        self.notes = ()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the images' files."""
        return self._archive.fingerprint(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the file's name in the archive."""
        return self._names[index]

    def read(self, index: int) -> tuple[bytes, None]:
        """Return the encoded image."""
        return self._archive.read(self._names[index]), None

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def _images_of(outer: Archive, url: str) -> Archive:
    """Return the archive of the images: the zip file in a folder that has no images itself, or else the folder."""
    zips = [name for name in outer.names if PurePosixPath(name).name == _ZIP]
    if not isinstance(outer, Folder) or not zips or select_images(outer)[0]:
        return outer
    return open_archive(f"{url.rstrip('/')}/{zips[0]}")


def _members(outer: Archive, url: str, partition: int) -> set[str]:
    """Return the names without endings of the images of a split."""
    name, text = _read_partition(outer, url)
    rows = [re.split(r"[,\s]+", line.strip()) for line in text.splitlines() if line.strip()]
    # Kaggle's has a line of names.
    rows = rows[1:] if rows and rows[0] == ["image_id", "partition"] else rows
    if not rows or any(len(row) != 2 or row[1] not in ("0", "1", "2") for row in rows):
        raise UserError(f"the {name} of {url} is not CelebA's list of names and 0, 1 or 2: fetch it again")
    # The list names JPEG files; the same images are published as PNG.
    return {PurePosixPath(name).stem for name, number in rows if number == str(partition)}


def _read_partition(outer: Archive, url: str) -> tuple[str, str]:
    """Return the name of the list and its text, from the archive, or from the folders around the images."""
    for name in outer.names:
        if PurePosixPath(name).name in _PARTITIONS:
            return PurePosixPath(name).name, outer.read(name).decode(errors="replace")
    fs, path = filesystem(url)
    parent = path.rpartition("/")[0]
    for folder in _FOLDERS:
        above = parent.rpartition("/")[0] if folder.startswith("../") else parent
        place = f"{above}/{folder.removeprefix('../')}"
        for name in _PARTITIONS:
            with as_user_error(url):
                try:
                    # fsspec annotates ``str``, too, which no file system returns.
                    return name, cast("bytes", fs.cat_file(f"{place}{name}", start=0, end=_MAX_PARTITION)).decode(
                        errors="replace"
                    )
                except FileNotFoundError:
                    continue
    raise UserError(
        f"a split of CelebA needs {_PARTITIONS[0]} next to {url}: add it, or set data.source.split=null for all"
    )
