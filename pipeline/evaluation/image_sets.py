"""Sets of images that are scored: those of a source or a store, with the size and channels of the store they meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from pipeline.data import Manifest, MissingStore, Store, iter_images, load_images, sources
from pipeline.data.image_codec import DEFAULT_FILTER, resize_center_crop
from pipeline.data.image_files import UnreadableImage, image_shape
from pipeline.data.permutation import mixing_order
from pipeline.data.sources.base import BrokenImage, FileSource, Source
from pipeline.data.sources.images.arrays import Arrays
from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name

__all__ = ["ImageFit", "ImageSet", "SourceImages", "StoreImages", "open_image_set"]

_ARRAY_SUFFIXES = (".npy", ".npz")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
# A store up to this size is read whole, in the order of its source; a larger one is streamed in its own.
_MAX_REORDERED_BYTES = 2 * 2**30


class ImageSet(Protocol):
    """Images in a fixed order."""

    @property
    def url(self) -> str:
        """Where they are."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user, such as on files that are no images."""
        ...

    def __len__(self) -> int: ...

    def batches(self, size: int, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """Yield images, uint8 (n, C, H, W), ``size`` at a time but for the last batch.

        Args:
            size: Images at a time.
            chosen: Which images to take, bool (N,). ``None`` (default) for all.
        """
        ...

    def close(self) -> None:
        """Close the files and delete temporary copies."""
        ...


class ImageFit:
    """Form that images have to have: that of a store's own.

    Args:
        store: The store.
        resize: Whether other images are cropped, resized and converted as the store's own were, or else refused.
    """

    def __init__(self, store: Store, resize: bool) -> None:
        manifest = store.manifest
        self._url, self._resize, self._shape = store.url, resize, manifest.sample_shape
        # Stores had no other filter before there was a choice.
        self._filter = manifest.resize_filter or DEFAULT_FILTER

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse images of another shape, unless they are resized.

        Args:
            name: Name of the image or of all of them.
            shape: Its channels, height and width.

        Raises:
            UserError: The shape is another one.
        """
        if shape != self._shape and not self._resize:
            raise UserError(
                f"{name} has {_describe(shape)}, and the images of {self._url} have {_describe(self._shape)}: set "
                "evaluation.resize=true to resize and convert it as those were, or choose another store"
            )

    def __call__(self, name: str, image: bytes | np.ndarray) -> np.ndarray:
        """Return an image as the store would hold it, uint8 (C, H, W).

        Args:
            name: Its name.
            image: Encoded, or uint8 pixels (H, W, C).

        Raises:
            UnreadableImage: It is encoded, and damaged.
            UserError: It has another shape.
        """
        shape = image_shape(image) if isinstance(image, bytes) else (image.shape[2], *image.shape[:2])
        self.require(name, shape)
        channels, side, _ = self._shape
        return resize_center_crop(image, side, channels, self._filter)


class SourceImages:
    """Images of a source, in its order.

    Args:
        source: The source, which is closed with this set.
        fit: The form that they have to have.
    """

    def __init__(self, source: Source, fit: ImageFit) -> None:
        self._source, self._fit = source, fit
        self.url = source.url or ""
        passed_over = source.passed_over if isinstance(source, FileSource) else ()
        self.notes = tuple(f"passed over: {each.line()}" for each in passed_over)

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, size: int, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """Yield images, uint8 (n, C, H, W).

        Raises:
            UserError: An image cannot be read, or has another form.
        """
        indices = torch.arange(len(self)) if chosen is None else chosen.nonzero()[:, 0]
        for part in indices.split(size):
            yield torch.from_numpy(np.stack([self._read(index) for index in part.tolist()]))

    def _read(self, index: int) -> np.ndarray:
        name = printable_name(self._source.name(index), 200)
        try:
            image, _ = self._source.read(index)
            return self._fit(name, image)
        except (BrokenImage, UnreadableImage) as error:
            reason = error.reason if isinstance(error, BrokenImage) else error
            raise UserError(
                f"{name} of {self.url} cannot be read ({reason}): repair it or take it out; a score is of all images"
            ) from None

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class StoreImages:
    """Images of a store, where possible in the order of its source.

    Args:
        store: The store.
        fit: The form that they have to have; ``None`` for their own.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, store: Store, fit: ImageFit | None = None) -> None:
        manifest = store.manifest
        if manifest.encoding == "rows":
            raise UserError(
                f"the store {store.url} holds rows of a table, and a score of images needs a store of images"
            )
        if fit is not None:
            fit.require("each image", manifest.sample_shape)
        self._store, self._fit, self.url = store, fit, store.url

    def __len__(self) -> int:
        return self._store.manifest.num_samples

    def batches(self, size: int, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """Yield images, uint8 (n, C, H, W).

        Raises:
            UserError: The store is damaged.
        """
        manifest = self._store.manifest
        if manifest.num_samples * manifest.sample_bytes <= _MAX_REORDERED_BYTES:
            images, _ = load_images(self._store)
            rows = _source_order(manifest)
            rows = rows if chosen is None else rows[chosen]
            parts = (images[part] for part in rows.split(size))
        else:
            parts = _regroup((images for images, _ in iter_images(self._store, size)), size, chosen)
        for part in parts:
            yield part if self._fit is None else self._converted(part, self._fit)

    def _converted(self, images: Tensor, fit: ImageFit) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.stack([fit("an image", np.ascontiguousarray(image)) for image in pixels]))

    def close(self) -> None:
        """Do nothing: no file is open."""


def _source_order(manifest: Manifest) -> Tensor:
    """Return the positions of the images in a store, in the order of its source.

    The order is the store's where it is unknown: some images of the source were broken, or their number is not told.
    """
    count = manifest.num_samples
    if manifest.ledger is None or manifest.ledger.num_broken:
        return torch.arange(count)
    return torch.from_numpy(np.argsort(mixing_order(count)))


def _regroup(batches: Iterator[Tensor], size: int, chosen: Tensor | None) -> Iterator[Tensor]:
    """Yield the chosen images of batches in batches of a size, whatever those they come in."""
    held: list[Tensor] = []
    position = 0
    for batch in batches:
        kept = batch if chosen is None else batch[chosen[position : position + len(batch)]]
        position += len(batch)
        held.append(kept)
        if sum(map(len, held)) >= size:
            *full, rest = torch.cat(held).split(size)
            if len(rest) == size:
                full, rest = [*full, rest], rest[:0]
            yield from full
            held = [rest]
    if sum(map(len, held)):
        yield torch.cat(held)


def open_image_set(url: str, fit: ImageFit, open_store: Callable[[str], Store]) -> ImageSet:
    """Open images by what is at a URL.

    A file that ends in .npy or .npz is an array; a folder with a manifest, or the name of a store, is a store; any
    other folder, zip or tar file has images in files. A path that exists is taken before a store of the same name.

    Args:
        url: A path, a store's name or any fsspec URL.
        fit: The form that the images have to have.
        open_store: Opens a store by its name, path or URL.

    Raises:
        UserError: There is nothing, or no image in it.
    """
    path = urlsplit(url).path if "://" in url else url
    if path.lower().endswith(_ARRAY_SUFFIXES):
        return SourceImages(Arrays(url), fit)
    is_archive = path.lower().endswith(_ARCHIVE_SUFFIXES)
    is_path = "://" not in url and os.path.exists(os.path.expanduser(url))
    if not is_archive:
        try:
            return StoreImages(open_store(os.path.abspath(os.path.expanduser(url)) if is_path else url), fit)
        except MissingStore as error:
            if not is_path and "://" not in url:
                raise UserError(f"images={url}: no file or folder is there, and {error}") from None
    source = sources.make("images", url)
    assert not isinstance(source, sources.Table)
    return SourceImages(source, fit)


def _describe(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels and {channels} channel{'s' if channels > 1 else ''}"
