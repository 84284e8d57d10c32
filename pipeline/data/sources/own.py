"""Data source of a plugin: its images or rows are checked, and have all that a store needs of a source."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from gebm.registry import REQUIRED, Part, load_source, source_of
from pipeline.data.sources.base import BrokenImage, Table
from pipeline.data.sources.fingerprint import fingerprint_listing, version
from pipeline.data.sources.images.label_fields import AUTO
from pipeline.data.sources.registry import NAMES
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.part_code import code_digest
from pipeline.runtime.part_errors import refusal, refusing

__all__ = ["OwnSource", "SourceArguments", "own_table"]

# Bytes of the images of an iterable, which are kept in memory.
_MAX_BYTES = 2**30
_MAX_CLASSES = 100_000
# Their order in a store takes two gibibytes.
_MAX_IMAGES = 2**28


class SourceArguments(NamedTuple):
    """Arguments of a source, as far as it has them.

    Attributes:
        url: URL of its files, or several; empty for none.
        split: The split to take; ``None`` for everything.
        label_field: Where the label of a sample is, or ``None`` for no labels.
    """

    url: str | list[str]
    split: str | None
    label_field: str | None

    @property
    def urls(self) -> list[str]:
        """Each URL."""
        return [self.url] if isinstance(self.url, str) and self.url else list(self.url)

    def of(self, part: Part) -> dict[str, Any]:
        """Return those that are set; of any other a source's own default holds."""
        given: dict[str, Any] = {name: value for name, value in (("url", self.url), ("split", self.split)) if value}
        if self.label_field != AUTO or part.parameters.get("label_field") is REQUIRED:
            given["label_field"] = self.label_field
        return given


class OwnSource:
    """Images of a plugin.

    Args:
        part: The source.
        arguments: Its arguments.

    Raises:
        UserError: It fails, or gives something else than images; the line names the plugin's file and line.
    """

    def __init__(self, part: Part, arguments: SourceArguments) -> None:
        self.kind, self.url, self.split = part.name, ", ".join(arguments.urls) or None, arguments.split
        self._part, self._arguments = part, arguments
        with refusing(part):
            opened = part.build(**arguments.of(part))
            self._images = _as_sequence(opened)
            self.labels = _labels(part, opened)
            self._count = operator.index(len(self._images))
        if not 1 <= self._count <= _MAX_IMAGES:
            raise refusal(part, f"it has {self._count or 'no'} images, and has to have 1 to {_MAX_IMAGES:,}")
        # A mistake in one image is as a rule in all; a broken image is not.
        with contextlib.suppress(BrokenImage):
            self.read(0)

    def __reduce__(self) -> tuple[Any, ...]:
        module = self._part.module
        path = getattr(importlib.import_module(module), "__file__", "")
        return _reopen, (module, source_of(module), path, self.kind, self._arguments)

    def __len__(self) -> int:
        return self._count

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the plugin's code and of the files at its URL, as they are now."""
        return _fingerprint(self._part, self._arguments)

    def name(self, index: int) -> str:
        """Return the kind and the image's number."""
        return f"{self.kind} {index}"

    def read(self, index: int) -> tuple[bytes | np.ndarray, int | None]:
        """Read one image; one whose reading raises ``OSError`` or ``ValueError`` is broken.

        Args:
            index: Index of the image.

        Returns:
            The encoded image or uint8 pixels (H, W, C), and its label or ``None``.

        Raises:
            BrokenImage: It cannot be read.
            UserError: It is no image, or its label no class.
        """
        # Raised by a plugin for one broken image; a mistake in its code has other types.
        try:
            with refusing(self._part, passing=(OSError, ValueError)):
                item = self._images[index]
                image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
                # A file that is read, or a number that is computed, when it is asked for.
                image, label = _as_array(image), _as_plain(label)
        except (OSError, ValueError) as error:
            raise BrokenImage(self.name(index), type(error).__name__) from None
        return self._pixels(index, image), self._label(index, label)

    def close(self) -> None:
        """Close the plugin's source, where it can be closed."""
        close = getattr(self._images, "close", None)
        if callable(close):
            with refusing(self._part):
                close()

    def _pixels(self, index: int, image: Any) -> bytes | np.ndarray:
        if isinstance(image, bytes):
            return image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size == 0 or image.ndim not in (2, 3):
            given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise refusal(
                self._part, f"image {index} is {given}, and has to be uint8 (H, W) or (H, W, C), or a file's bytes"
            )
        array = image[..., None] if image.ndim == 2 else image
        if array.shape[2] not in (1, 3):
            raise refusal(self._part, f"image {index} has the shape {array.shape}: 1 or 3 channels are its last number")
        return np.ascontiguousarray(array)

    def _label(self, index: int, label: Any) -> int | None:
        if self.labels is None:
            if label is not None:
                raise refusal(self._part, f"image {index} has a label: name the classes, register(..., labels=(...))")
            return None
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(self.labels):
            given = " ".join(repr(label).split())[:50]
            raise refusal(self._part, f"the label of image {index} is {given}, and has to be below {len(self.labels)}")
        return label


def own_table(part: Part, arguments: SourceArguments) -> Table:
    """Return the rows of a plugin.

    Args:
        part: The source.
        arguments: Its arguments.

    Raises:
        UserError: It fails, or gives no rows of numbers; the line names the plugin's file and line.
    """
    with refusing(part):
        rows = np.asarray(part.build(**arguments.of(part)))
        if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind not in "fiub":
            raise ValueError(f"it returns {rows.dtype} {rows.shape}, and has to return numbers (N, D)")
        if not np.isfinite(rows).all():
            raise ValueError("some of its rows are not finite")
    url = ", ".join(arguments.urls) or None
    return Table(part.name, url, arguments.split, rows.astype(np.float32), _fingerprint(part, arguments))


def _as_array(image: Any) -> Any:
    """Return pixels as an array, and anything else as it is."""
    # A tensor has no other way to an array that is known without torch, and a Pillow image has this one as well.
    is_pixels = hasattr(image, "__array__") or hasattr(image, "__array_interface__")
    return np.asarray(image) if is_pixels else image


def _as_plain(label: Any) -> Any:
    """Return a number of NumPy or a tensor of one as a number of Python, and anything else as it is."""
    is_scalar = hasattr(label, "item") and getattr(label, "shape", None) in ((), (1,))
    return label.item() if is_scalar else label


def _as_sequence(opened: Any) -> Sequence[Any]:
    """Return a sequence of the images; those of an iterable are kept in memory."""
    if hasattr(opened, "__len__") and hasattr(opened, "__getitem__") and not isinstance(opened, dict | str | bytes):
        return opened
    if not isinstance(opened, Iterable) or isinstance(opened, dict | str | bytes):
        raise ValueError(f"it returns {type(opened).__name__}, and has to return a sequence of images, or yield them")
    items, size = [], 0
    for item in opened:
        image = item[0] if isinstance(item, tuple | list) and len(item) == 2 else item
        size += getattr(image, "nbytes", 0) or (len(image) if isinstance(image, bytes) else 1000)
        if size > _MAX_BYTES:
            raise ValueError("it yields more than a gibibyte of images: return a sequence, with len() and an index")
        items.append(item)
    return items


def _labels(part: Part, opened: Any) -> tuple[str, ...] | None:
    """Return the names of the classes: of the registration, or as torchvision's data sets have them."""
    names = part.facts["labels"] or getattr(opened, "classes", None)
    if names is None:
        return None
    if isinstance(names, str | bytes):
        raise ValueError(f"its classes are {names!r:.50}, and have to be a list of names")
    first = [str(name) for name in itertools.islice(names, _MAX_CLASSES + 1)]
    if len(first) > _MAX_CLASSES or len(set(first)) < len(first):
        raise ValueError(f"its classes have to be {_MAX_CLASSES:,} different names at most")
    return tuple(first) or None


def _fingerprint(part: Part, arguments: SourceArguments) -> str:
    listing = {"code": code_digest(part.module)}
    if "label_field" in part.parameters:
        listing["label_field"] = repr(arguments.label_field)
    for url in arguments.urls:
        listing |= {f"file {name}": version(entry) for name, entry in _entries(url)}
    return fingerprint_listing(listing)


def _entries(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a file system says of each file that a URL, which may be a pattern, leads to."""
    fs, root = filesystem(url)
    fs.invalidate_cache(root)
    found = fs.find(root, detail=True) or fs.glob(root, detail=True)
    yield from cast("dict[str, Any]", found).items()


def _reopen(module: str, source: str | None, path: str, kind: str, arguments: SourceArguments) -> OwnSource:
    """Open a source in another process, which has to execute the plugin first."""
    if source is None:
        importlib.import_module(module)
    else:
        load_source(source, path, module)
    return OwnSource(NAMES.part(kind), arguments)
