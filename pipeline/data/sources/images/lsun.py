"""LSUN source: one LMDB database of encoded images per category and split."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.data.sources.archives import Folder, TempFolder, archive_errors, open_archive
from pipeline.data.sources.base import BrokenImage, choose
from pipeline.data.sources.fingerprint import fingerprint_files
from pipeline.data.sources.images import lmdb_server
from pipeline.data.sources.images.lmdb_server import ALL_KEYS, read_frame, write_frame
from pipeline.data.sources.published import PUBLISHED, Part
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local

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
        self._database: _Database | None = None
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
            if isinstance(archive, Folder) and is_local(fs):
                self._path = os.path.join(root, databases[0])
            else:
                self._fingerprint = archive.fingerprint(databases)
                self._path = self._temp.file(_DATABASE)
                with archive_errors(url), archive.open(databases[0]) as source, open(self._path, "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
        finally:
            archive.close()
        # Fixed width: three million keys are one array, quickly sent to another process.
        self._keys = np.array(self._opened().keys(), dtype=np.bytes_)
        if not len(self._keys):
            raise UserError(f"the LMDB database {url} is empty: fetch it again")
        category = _category(databases[0], url)
        self.parts = (Part(category, len(self._keys)),) if category else ()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the database."""
        return self._fingerprint if self._temp.holds(self._path) else fingerprint_files({_DATABASE: self._path})

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Return the key of the image."""
        return self._keys[index].decode(errors="backslashreplace")

    def read(self, index: int) -> tuple[bytes, None]:
        """Return the encoded image."""
        value = self._opened().get(bytes(self._keys[index]))
        if value is None:
            raise BrokenImage(self.name(index))
        return value, None

    def close(self) -> None:
        """Close the database and delete its local copy, if there is one."""
        if self._database is not None:
            self._database.close()
            self._database = None
        self._temp.close()

    def _opened(self) -> _Database:
        if self._database is None:
            self._database = _Database(self._path, self.url)
        return self._database

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_database": None}


class _Database:
    """LMDB database, read by a process of its own, which a damaged page ends in place of this one.

    Args:
        path: The database's file.
        url: URL of the source, for messages.
    """

    def __init__(self, path: str, url: str) -> None:
        self._url = url
        # -P: the modules next to the script are not to be found by the names of others.
        command = [sys.executable, "-P", lmdb_server.__file__, path]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def keys(self) -> list[bytes]:
        """Return all keys, in their order."""
        packed = self.get(ALL_KEYS) or b""
        keys, start = [], 0
        while start < len(packed):
            (length,) = struct.unpack_from("<H", packed, start)
            keys.append(packed[start + 2 : start + 2 + length])
            start += 2 + length
        return keys

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None if there is none.

        Raises:
            UserError: If the database is damaged.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            write_frame(process.stdin, key)
            return read_frame(process.stdout)
        except ValueError as error:
            problem = str(error)
        except (EOFError, OSError):
            code = process.wait()
            problem = f"its reader ended: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        raise UserError(f"{self._url} is no readable LMDB database ({problem}): fetch it again")

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # A process that has died leaves a request behind.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()


def _category(database: str, url: str) -> str | None:
    """Return the category and split that a database is of by the name of its folder or archive."""
    places = (PurePosixPath(database).parent.name, url.partition("?")[0].rstrip("/").rpartition("/")[2])
    names = [re.sub(r"(_lmdb)?(\.zip|\.tar)?$", "", place) for place in places]
    return next((name for name in names if (name, "images") in PUBLISHED["lsun"]), None)
