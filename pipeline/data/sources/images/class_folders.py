"""Labels from folder names, by ImageFolder's rule: the first folder below a split's root is the class."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.runtime.printable import printable_name

__all__ = ["ClassFolders", "label_by_folder"]

_SPLITS = frozenset(("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"))
# Class names that a line shows.
_MAX_SHOWN = 10

Folders = tuple[str, ...]


class ClassFolders(NamedTuple):
    """Classes of images, or why they have none.

    Args:
        classes: Names of the classes, sorted, or None.
        labels: Class of each image, an index of ``classes``, or None.
        note: One line about them.
    """

    classes: tuple[str, ...] | None
    labels: list[int] | None
    note: str


class _NoClasses(Exception):
    """The folders are no classes. The message is the reason."""


def label_by_folder(names: Sequence[str], split: str | None) -> ClassFolders:
    """Label images by their folders.

    The root is the folder of the split, or without one the folder that all images are below; folders "train", "test",
    "val" and the like at the root are splits, too. The first folder below is the class, however deep the image is in
    it, as with torchvision's ``ImageFolder``. There are no labels unless each image is in a class, there are two
    classes or more, and the splits have the same ones.

    Args:
        names: Names of the images, with slashes, one or more.
        split: Name of a folder that each of them is in, or None.

    Example:
        >>> label_by_folder(["train/cat/indoor/1.png", "train/cat/2.png", "train/dog/3.png"], "train")
        ClassFolders(classes=('cat', 'dog'), labels=[0, 0, 1], note='labels: 2 classes from folder names: cat, dog')
        >>> label_by_folder(["cat/1.png", "dog/2.png", "3.png"], None).note
        'labels: none, because 1 of 3 images are in no class folder (3.png)'
    """
    folders = [tuple(part for part in name.split("/")[:-1] if part) for name in names]
    try:
        found = _classes(folders, names, split)
    except _NoClasses as reason:
        return ClassFolders(None, None, f"labels: none, because {reason}")
    classes = sorted(set(found))
    number = {name: index for index, name in enumerate(classes)}
    shown = ", ".join(printable_name(name, 40) for name in classes[:_MAX_SHOWN])
    more = ", ..." if len(classes) > _MAX_SHOWN else ""
    note = f"labels: {len(classes):,} classes from folder names: {shown}{more}"
    return ClassFolders(tuple(printable_name(name) for name in classes), [number[name] for name in found], note)


def _classes(folders: list[Folders], names: Sequence[str], split: str | None) -> list[str]:
    """Return the class of each image."""
    below = _below_split(folders, split) if split is not None else _below_root(folders)
    splits = [""] * len(below)
    if all(path and _is_split(path[0]) for path in below):
        splits = [path[0] for path in below]
        below = [path[1:] for path in below]
    outside = [name for name, path in zip(names, below, strict=True) if not path]
    if len(outside) == len(names):
        place = f" ({printable_name('/'.join(folders[0]), 100)})" if len(set(folders)) == 1 and folders[0] else ""
        raise _NoClasses(f"the images are in no class folders{place}")
    if outside:
        example = printable_name(outside[0], 100)
        raise _NoClasses(f"{len(outside):,} of {len(names):,} images are in no class folder ({example})")
    # Two ways to write an accent, of macOS and of others, are one class.
    classes = [unicodedata.normalize("NFC", path[0]) for path in below]
    _check_classes(classes, splits)
    return classes


def _check_classes(classes: list[str], splits: list[str]) -> None:
    """Refuse folders that are no classes."""
    by_split: dict[str, set[str]] = {}
    for name, split in zip(classes, splits, strict=True):
        by_split.setdefault(split, set()).add(name)
    largest = max(sorted(by_split), key=lambda split: len(by_split[split]))
    for split, names in sorted(by_split.items()):
        if other := sorted(names - by_split[largest]):
            name, here, there = (printable_name(each, 40) for each in (other[0], split, largest))
            raise _NoClasses(
                f"the splits have different classes ({name} is in {here} and not in {there}): set data.source.split to "
                "choose one"
            )
    if len(by_split[largest]) == 1:
        raise _NoClasses(f"all images are in one folder ({printable_name(classes[0], 40)})")
    if named := sorted(name for name in by_split[largest] if _is_split(name)):
        raise _NoClasses(f"the folder {printable_name(named[0], 40)} is a split next to others that are none")


def _below_split(folders: list[Folders], split: str) -> list[Folders]:
    """Return the folders below the first one with the split's name, or below the second where each has it twice."""
    below = [path[path.index(split) + 1 :] for path in folders]
    return [path[1:] for path in below] if all(path[:1] == (split,) for path in below) else below


def _below_root(folders: list[Folders]) -> list[Folders]:
    """Return the folders below the one that all images are in, or below the last of its parents that is a split."""
    first, last = min(folders), max(folders)
    depth = 0
    while depth < min(len(first), len(last)) and first[depth] == last[depth]:
        depth += 1
    splits = [index + 1 for index, part in enumerate(first[:depth]) if _is_split(part)]
    return [path[(splits[-1] if splits else depth) :] for path in folders]


def _is_split(folder: str) -> bool:
    return folder.casefold() in _SPLITS
