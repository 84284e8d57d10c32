"""LSUN source: one LMDB database of encoded images per category and split."""

from __future__ import annotations

import os
import shutil
from pathlib import PurePosixPath
from typing import Any

import lmdb
import numpy as np

from pipeline.data.sources.archives import Folder, TempFolder, open_archive
from pipeline.data.sources.base import BrokenImage, choose
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem

__all__ = ["LSUN"]

_DATABASE = "data.mdb"


class LSUN:
    """Source of a category of LSUN (Yu et al. 2015): ``bedroom_train_lmdb.zip``, or the LMDB folder in it.

    The values are images in WebP or JPEG, about 256 pixels on the shorter side. A database that is zipped or remote is
    unpacked to the temporary folder (``TMPDIR``) first, and bedroom takes 43 GB there.

    Args:
        url: The zip file, or the folder with ``data.mdb``, or a folder or zip file with several such folders.
        split: "train" or "val", to choose between folders such as ``bedroom_train_lmdb``. None where there is one.

    Raises:
        UserError: If there is not exactly one database, or it is damaged or empty.
    """

    kind = "lsun"

    def __init__(self, url: str, split: str | None) -> None:
        self.url = url
        self.split = choose(split, ("train", "val"), self.kind)
        self.labels = None
        self._temp = TempFolder()
        self._environment: lmdb.Environment | None = None
        archive = open_archive(url)
        try:
            databases = [name for name in archive.names if PurePosixPath(name).name == _DATABASE]
            if split is not None and len(databases) > 1:
                databases = [name for name in databases if f"_{split}" in PurePosixPath(name).parent.name]
            if len(databases) != 1:
                raise UserError(
                    f"there are {len(databases)} LMDB databases for this split in {url}, not one: check both"
                )
            fs, root = filesystem(url)
            if isinstance(archive, Folder) and "file" in fs.protocol:
                self._path = os.path.join(root, databases[0])
            else:
                self._path = self._temp.file(_DATABASE)
                with archive.open(databases[0]) as source, open(self._path, "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
        finally:
            archive.close()
        try:
            with self._opened().begin() as transaction, transaction.cursor() as cursor:
                # Fixed width: three million keys are one array, quickly sent to another process.
                self._keys = np.array(list(cursor.iternext(values=False)), dtype=np.bytes_)
        except lmdb.Error as error:
            raise UserError(f"{url} is no readable LMDB database ({error}): fetch it again") from None
        if not len(self._keys):
            raise UserError(f"the LMDB database {url} is empty: fetch it again")

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Return the key of the image."""
        return self._keys[index].decode(errors="backslashreplace")

    def read(self, index: int) -> tuple[bytes, None]:
        """Return the encoded image."""
        database = self._opened()
        try:
            with database.begin() as transaction:
                value = transaction.get(self._keys[index])
        except lmdb.Error as error:
            raise BrokenImage(self.name(index)) from error
        if value is None:
            raise BrokenImage(self.name(index))
        return value, None

    def close(self) -> None:
        """Close the database and delete its local copy, if there is one."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None
        self._temp.close()

    def _opened(self) -> lmdb.Environment:
        if self._environment is None:
            self._environment = lmdb.open(
                self._path, subdir=False, readonly=True, lock=False, readahead=False, meminit=False, max_readers=1
            )
        return self._environment

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_environment": None}
