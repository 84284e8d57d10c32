"""Image-folder source: any folder, zip or tar file of images."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.data.sources.archives import open_archive
from pipeline.runtime.errors import UserError

__all__ = ["SUFFIXES", "Images", "image_names"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
_SPLITS = ("train", "test", "val", "valid", "validation")


class Images:
    """Source of images in files, with the name of a file's folder as its class.

    There are labels if every image is in a class folder and there are two classes or more. A folder named "train",
    "test", "val", "valid" or "validation" is a split and no class.

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
        self._names = image_names(self._archive.names)
        if not self._names:
            raise UserError(f"there are no images in {url}: check the source's url")
        if split is not None:
            self._names = [name for name in self._names if split in PurePosixPath(name).parts[:-1]]
            if not self._names:
                raise UserError(
                    f"there is no folder {split!r} with images in {url}: set data.source.split=null for all images"
                )
        folders = [PurePosixPath(name).parent.name for name in self._names]
        classes = sorted(set(folders))
        labeled = len(classes) > 1 and not {"", split, *_SPLITS} & set(classes)
        self.labels = tuple(classes) if labeled else None
        self._classes = [classes.index(folder) for folder in folders] if labeled else None

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


def image_names(names: list[str]) -> list[str]:
    """Return the file names that are images, without the hidden ones that an operating system left.

    Args:
        names: File names.

    Returns:
        Names of images, in the same order.

    Example:
        >>> image_names(["a/1.jpg", "a/notes.txt", "__MACOSX/a/1.jpg", "a/.2.jpg"])
        ['a/1.jpg']
    """
    return [
        name
        for name in names
        if name.lower().endswith(SUFFIXES)
        and not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
    ]
