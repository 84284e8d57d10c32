"""Source of images in a NumPy file: one array of an npy or npz file, as samples of models are published."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from typing import IO

import numpy as np

from pipeline.data.sources.archives import Archive, File, TempFolder, archive_errors, open_files
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.printable import printable_name

__all__ = ["Arrays"]

# Names of arrays that are preferred where a file has several; the first is that of an array saved without a name.
_NAMES = ("arr_0", "images", "samples", "data", "x")
_MAX_LISTED = 5


class Arrays:
    """Images of one uint8 array (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3; pickles are refused.

    Of an npz file, the array of this form is taken; of several, one called arr_0, images, samples, data or x.

    Args:
        url: A path or any fsspec URL of an npy or npz file.
        split: None; an array has no splits.

    Raises:
        UserError: If there is no such file, or no such array in it.
    """

    kind = "arrays"
    labels = None
    split = None

    def __init__(self, url: str, split: str | None = None) -> None:
        if split is not None:
            raise UserError(f"an array has no splits, and {split!r} was requested: leave it out")
        self.url = url
        self._temp = TempFolder()
        self._archive = open_files(url)
        try:
            with archive_errors(url):
                self._name, self._path = self._find()
            self._array = _map(self._path, self._name)
        except BaseException:
            self.close()
            raise
        self._channels_last = _channel_position(self._array.shape) == "last"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the file."""
        return self._archive.fingerprint([])

    def __len__(self) -> int:
        return len(self._array)

    def name(self, index: int) -> str:
        """Return the array's name and the index in it."""
        return f"{self._name}[{index}]"

    def read(self, index: int) -> tuple[np.ndarray, None]:
        """Return the pixels, uint8 (H, W, C)."""
        image = self._array[index]
        if image.ndim == 2:
            image = image[:, :, None]
        elif not self._channels_last:
            image = image.transpose(1, 2, 0)
        return np.ascontiguousarray(image), None

    def close(self) -> None:
        """Close the file and delete temporary copies."""
        self._array = np.zeros((0, 1, 1), np.uint8)
        self._archive.close()
        self._temp.close()

    def _find(self) -> tuple[str, str]:
        """Return the name of the array, and the path of its npy file on this machine."""
        archive = self._archive
        if isinstance(archive, File):
            return archive.names[0], archive.path
        members = [name for name in archive.names if name.endswith(".npy")]
        headers = {name: _header(archive, name) for name in members}
        fitting = [name for name, header in headers.items() if _is_image_header(header)]
        named = [name for each in _NAMES for name in fitting if name == f"{each}.npy"]
        if not named and len(fitting) != 1:
            raise _no_array(self.url, headers, fitting)
        name = (named or fitting)[0]
        path = self._temp.file("array.npy")
        try:
            with archive.open(name) as member, open(path, "wb") as target:
                shutil.copyfileobj(member, target, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{name} of {self.url} is damaged ({one_line(error)}): fetch it again") from None
        return f"{name.removesuffix('.npy')} of {self.url}", path


def _header(archive: Archive, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
    """Return shape and type of an array of an npz file, or None where its header cannot be read."""
    try:
        with archive.open(name) as member:
            return _read_header(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError):
        return None


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype] | None:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        return None
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _is_image_header(header: tuple[tuple[int, ...], np.dtype] | None) -> bool:
    return header is not None and header[1] == np.uint8 and _channel_position(header[0]) is not None


def _channel_position(shape: tuple[int, ...]) -> str | None:
    """Return where the channels of an array of images are: "last", "first" or "none"; None where it holds none."""
    if len(shape) == 3:
        return "none"
    if len(shape) != 4:
        return None
    # Of an array that both fit, such as (N, 3, 3, 3), they are last.
    return "last" if shape[3] in (1, 3) else "first" if shape[1] in (1, 3) else None


def _map(path: str, name: str) -> np.ndarray:
    """Map an array of images, which asks for no memory: a header may promise more numbers than the file has."""
    try:
        if os.path.getsize(path) == 0:
            raise ValueError("it is empty")
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError, OverflowError) as error:
        raise UserError(f"{name} is no NumPy file of plain numbers ({one_line(error)}): write it by np.save") from None
    if array.dtype != np.uint8 or _channel_position(array.shape) is None:
        raise UserError(
            f"{name} is an array {_describe((array.shape, array.dtype))}: images are uint8 (N, H, W, C) or "
            "(N, C, H, W) with 1 or 3 channels, or (N, H, W)"
        )
    return array


def _describe(header: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "that cannot be read" if header is None else f"{header[1]} {header[0]}"


def _no_array(url: str, headers: dict[str, tuple[tuple[int, ...], np.dtype] | None], fitting: list[str]) -> UserError:
    """Return the error of a file whose array of images is not clear, which lists what is in it."""
    shown = fitting or list(headers)
    arrays = ", ".join(
        f"{printable_name(name.removesuffix('.npy'), 40)} {_describe(headers[name])}" for name in shown[:_MAX_LISTED]
    )
    if fitting:
        return UserError(f"{url} has {len(fitting)} arrays of images ({arrays}): call one of them images")
    return UserError(
        f"{url} has no array of images, uint8 (N, H, W, C) or (N, C, H, W) with 1 or 3 channels "
        f"({arrays or 'it has no array at all'})"
    )
