"""CIFAR-10 source, of the binary version: 60,000 RGB images of 32x32."""

from __future__ import annotations

import shutil
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.data.sources.archives import Archive, TempFolder, archive_errors, open_archive
from pipeline.data.sources.base import choose
from pipeline.data.sources.published import Part, refuse_copies
from pipeline.runtime.errors import UserError

__all__ = ["Cifar10"]

_RECORD = 1 + 3 * 32 * 32
_FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_NAMES = "batches.meta.txt"
# Files by which another archive is recognized, and what it is.
_OTHERS = {
    ("data_batch_1", "test_batch", "batches.meta"): "the pickled version of CIFAR-10 (cifar-10-python.tar.gz)",
    ("data_batch_1.mat", "test_batch.mat", "batches.meta.mat"): "Matlab's version of CIFAR-10 (cifar-10-matlab.tar.gz)",
    ("fine_label_names.txt", "meta", "meta.mat"): "CIFAR-100",
    ("trainLabels.csv",): "Kaggle's version of CIFAR-10",
}


class Cifar10:
    """Source of ``cifar-10-binary.tar.gz`` (Krizhevsky 2009) or the folder in it; other versions are refused.

    Args:
        url: The tar file or folder.
        split: "train" or "test", or None for both.

    Raises:
        UserError: If this is not the binary version of CIFAR-10, or a file of it is missing or damaged.
    """

    kind = "cifar10"

    def __init__(self, url: str, split: str | None) -> None:
        self.url = url
        self.split = choose(split, tuple(_FILES), self.kind)
        archive = open_archive(url)
        try:
            paths = {PurePosixPath(name).name: name for name in archive.names}
            files = [name for each in ([split] if split else _FILES) for name in _FILES[each]]
            for name in (*files, _NAMES):
                if name not in paths:
                    _refuse_other_version(url, set(paths))
                    raise UserError(f"{url} has no {name}: give the path of cifar-10-binary.tar.gz")
            self.labels = tuple(archive.read(paths[_NAMES]).decode(errors="replace").split())
            if len(self.labels) != 10:
                raise UserError(f"{_NAMES} of {url} does not name 10 classes: fetch it again")
            self._temp = TempFolder()
            self._path = self._temp.file("records")
            self.fingerprint = archive.fingerprint(paths[name] for name in (*files, _NAMES))
            self._origins = _collect(archive, paths, files, self._path)
        finally:
            archive.close()
        self.parts = tuple(Part(name, count) for name, count in self._origins)
        self._records: np.ndarray | None = None
        if (self._opened()[:, 0] > 9).any():
            raise UserError(f"{url} has a label above 9, so it is not CIFAR-10: fetch it again")
        ends = np.cumsum([count for _, count in self._origins])
        batches = np.split(self._opened()[:, 0], ends[:-1])
        refuse_copies(url, dict(zip((name for name, _ in self._origins), batches, strict=True)))

    def __len__(self) -> int:
        return sum(count for _, count in self._origins)

    def name(self, index: int) -> str:
        """Return the batch file and the index of the record in it."""
        for file, count in self._origins:
            if index < count:
                return f"{file}[{index}]"
            index -= count
        raise IndexError(index)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Return the pixels, uint8 (32, 32, 3), and the class."""
        record = self._opened()[index]
        return np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)), int(record[0])

    def close(self) -> None:
        """Delete the decompressed records."""
        self._records = None
        self._temp.close()

    def _opened(self) -> np.ndarray:
        if self._records is None:
            # Mapped, so that any number of processes share one copy.
            self._records = np.memmap(self._path, np.uint8, mode="r").reshape(-1, _RECORD)
        return self._records

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_records": None}


def _refuse_other_version(url: str, names: set[str]) -> None:
    for marks, version in _OTHERS.items():
        if names & set(marks):
            raise UserError(f"{url} is {version}, never opened here: get cifar-10-binary.tar.gz")


def _collect(archive: Archive, paths: dict[str, str], files: list[str], path: str) -> list[tuple[str, int]]:
    """Concatenate the records of some batch files, and return the number of each."""
    origins = []
    with archive_errors(archive.url), open(path, "wb") as target:
        for name in files:
            start = target.tell()
            with archive.open(paths[name]) as source:
                shutil.copyfileobj(source, target, 2**20)
            size = target.tell() - start
            if size == 0 or size % _RECORD:
                raise UserError(f"{name} of {archive.url} is no whole number of records: fetch it again")
            origins.append((name, size // _RECORD))
    return origins
