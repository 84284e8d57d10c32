"""ImageNet32 source, downsampled ImageNet: 1,281,167 RGB images of 32x32, in NumPy's format."""

from __future__ import annotations

import lzma
import os
import shutil
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np

from pipeline.data.sources.archives import TempFolder, archive_errors, open_archive
from pipeline.data.sources.base import choose
from pipeline.data.sources.compression import require_plausible_size
from pipeline.data.sources.published import Part, refuse_copies
from pipeline.runtime.errors import UserError, one_line

__all__ = ["ImageNet32"]

_NUM_CLASSES = 1000


class ImageNet32:
    """Source of the npz version of downsampled ImageNet (Chrabaszcz, Loshchilov and Hutter 2017); pickles are refused.

    Files are ``train_data_batch_1.npz`` to ``train_data_batch_10.npz`` and ``val_data.npz``, each with ``data``, uint8
    (N, 3 x side x side), and ``labels``, from 1 to 1000. The publisher's 64x64 version has the same form and works too.

    Args:
        url: A folder or zip file of npz files.
        split: "train" or "val", or None for both.

    Raises:
        UserError: If there are no such files, or an array in them is not as described.
    """

    kind = "imagenet32"

    def __init__(self, url: str, split: str | None) -> None:
        self.url = url
        self.split = choose(split, ("train", "val"), self.kind)
        self.labels = tuple(str(number) for number in range(1, _NUM_CLASSES + 1))
        self._temp = TempFolder()
        self._files: list[str] = []
        self._paths: list[str] = []
        self._arrays: list[np.ndarray] | None = None
        labels = []
        archive = open_archive(url)
        try:
            batches = [name for name in archive.names if _is_batch(name, split, ".npz")]
            if not batches and any(_is_batch(name, split, "") for name in archive.names):
                raise UserError(f"{url} is the pickled version of ImageNet32, never opened here: get the npz version")
            if not batches:
                raise UserError(f"there are no npz batches of ImageNet32 in {url}: check the source's url and split")
            self.fingerprint = archive.fingerprint(batches)
            for name in sorted(batches, key=lambda name: (len(name), name)):
                path = self._temp.file(f"data-{len(self._paths)}.npy")
                with archive_errors(url), archive.open(name) as file:
                    labels.append(_unpack(file, path, f"{PurePosixPath(name).name} of {url}"))
                self._files.append(PurePosixPath(name).name)
                self._paths.append(path)
        finally:
            archive.close()
        self._starts = np.cumsum([0, *map(len, labels)])
        self._labels = np.concatenate(labels)
        refuse_copies(url, dict(zip(self._files, labels, strict=True)))
        counts = {"train": 0, "val": 0}
        for name, batch in zip(self._files, labels, strict=True):
            counts[name.partition("_")[0]] += len(batch)
        self.parts = tuple(Part(each, count) for each, count in counts.items() if count)

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        """Return the batch file and the index of the row in it."""
        batch, row = self._locate(index)
        return f"{self._files[batch]}[{row}]"

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Return the pixels, uint8 (side, side, 3), and the class, from 0."""
        if self._arrays is None:
            self._arrays = [_mapped(path) for path in self._paths]
        batch, row = self._locate(index)
        flat = self._arrays[batch][row]
        side = _side(len(flat))
        return np.ascontiguousarray(flat.reshape(3, side, side).transpose(1, 2, 0)), int(self._labels[index]) - 1

    def close(self) -> None:
        """Delete the unpacked arrays."""
        self._arrays = None
        self._temp.close()

    def _locate(self, index: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return batch, index - int(self._starts[batch])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": None}


def _is_batch(name: str, split: str | None, suffix: str) -> bool:
    path = PurePosixPath(name)
    prefixes = tuple(f"{each}_data" for each in ([split] if split else ["train", "val"]))
    return path.suffix == suffix and path.name.startswith(prefixes)


def _unpack(file: IO[bytes], path: str, where: str) -> np.ndarray:
    """Write the pixels of one npz file to ``path``, so that they can be mapped, and return its labels."""
    labels_path = f"{path}.labels"
    try:
        with zipfile.ZipFile(file) as npz:
            for name, target_path in (("labels.npy", labels_path), ("data.npy", path)):
                require_plausible_size(npz.getinfo(name), where)
                with npz.open(name) as member, open(target_path, "wb") as target:
                    shutil.copyfileobj(member, target, 2**20)
        data, labels = _mapped(path), _mapped(labels_path)
        os.unlink(labels_path)
    except KeyError as error:
        raise UserError(f"{where} lacks an array ({error.args[0]}): fetch it again") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{where} is no npz file of plain arrays ({one_line(error)}): fetch it again") from None
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * _side(data.shape[1]) ** 2:
        raise UserError(f"data of {where} is not an array uint8 (N, 3 x side x side): fetch it again")
    if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(f"labels of {where} is not an array of one whole number an image: fetch it again")
    if labels.min() < 1 or labels.max() > _NUM_CLASSES:
        raise UserError(f"labels of {where} are not between 1 and {_NUM_CLASSES}: fetch it again")
    return np.array(labels)


def _mapped(path: str) -> np.ndarray:
    """Map an array, which asks for no memory: a header may promise more numbers than the file has."""
    return np.lib.format.open_memmap(path, mode="r")


def _side(length: int) -> int:
    return int((length // 3) ** 0.5 + 0.5)
