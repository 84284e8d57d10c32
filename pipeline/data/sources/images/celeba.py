"""CelebA source: 202,599 aligned faces of 178x218."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import cast

from pipeline.data.ledger import group
from pipeline.data.sources.archives import open_archive
from pipeline.data.sources.base import choose
from pipeline.data.sources.images.folder import select_images
from pipeline.data.sources.published import Part
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem

__all__ = ["CelebA"]

_PARTITION = "list_eval_partition.txt"
_SPLITS = ("train", "valid", "test")


class CelebA:
    """Source of ``img_align_celeba.zip`` (Liu, Luo, Wang and Tang, ICCV 2015), or the folder it holds.

    The writer takes the central square of 178x178, which is the usual preparation of these faces, and resizes it.

    Args:
        url: The zip file or folder.
        split: "train", "valid" or "test": needs the publisher's ``list_eval_partition.txt`` next to the zip file
            or folder. None for everything.

    Raises:
        UserError: If there are no images, or the split's list is missing or does not name them.
    """

    kind = "celeba"

    def __init__(self, url: str, split: str | None) -> None:
        self.url = url
        self.split = choose(split, _SPLITS, self.kind)
        self.labels = None
        self._archive = open_archive(url)
        self._names, passed_over = select_images(self._archive)
        if split is not None:
            members = _members(url, _SPLITS.index(split))
            in_split = [name for name in self._names if PurePosixPath(name).name in members]
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


def _members(url: str, partition: int) -> set[str]:
    fs, path = filesystem(url)
    partition_path = f"{path.rpartition('/')[0]}/{_PARTITION}"
    with as_user_error(url):
        try:
            # fsspec annotates ``str``, too, which no file system returns.
            text = cast("bytes", fs.cat_file(partition_path)).decode(errors="replace")
        except FileNotFoundError:
            raise UserError(
                f"a split of CelebA needs {_PARTITION} next to {url}: add it, or set data.source.split=null for all"
            ) from None
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if any(len(row) != 2 or row[1] not in ("0", "1", "2") for row in rows):
        raise UserError(f"the {_PARTITION} next to {url} is not CelebA's list of names and 0, 1 or 2: fetch it again")
    return {name for name, number in rows if number == str(partition)}
