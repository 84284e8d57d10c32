"""Disk cache of a remote store's shards on this machine.

The file name of a shard is its SHA-256 in the manifest, so the shards of different stores are never mixed up, and
stores that have shards in common share them here. Every file that is read is checked against that sum: one that is
damaged or was changed is deleted and fetched again.

Why not a library: fsspec's ``filecache`` has no limit and checks nothing, and ``diskcache`` exceeds its limit,
unpickles the files of its folder and would still need a lock so that a shard is fetched once. The locks are those of
``filelock``, which the operating system releases when their process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from pipeline.data.manifest import Shard
from pipeline.runtime.errors import one_line

__all__ = ["ShardCache"]

# Files of a cache. Others in its folder are never touched.
_OWN_FILE = re.compile(r"[0-9a-f]{64}\.(tar|part)")
# Seconds that a process waits for another that fetches the same shard or writes into the folder.
_LOCK_TIMEOUT = 60.0
# Largest number of notes on damaged shards: a failing disk damages all of them.
_MAX_NOTES = 10


class ShardCache:
    """LRU cache of shards in a folder.

    Any number of processes and threads of one machine may share it. A shard that several request at once is fetched by
    one of them. A disk that is full or read-only is one line in ``notes``, and shards are then fetched each time.

    Args:
        folder: Folder on a disk of this machine; made if it does not exist.
        limit: Largest size of all shards in it, in bytes. A shard that is larger is not cached.

    Example:
        >>> import tempfile
        >>> cache = ShardCache(Path(tempfile.mkdtemp()), limit=2**20)
        >>> shard = Shard("0.tar", num_samples=1, bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
        >>> cache.read(shard, fetch=lambda: b"abc"), cache.read(shard, fetch=lambda: b"not called")
        (b'abc', b'abc')
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        # By their subject, so that each is reported once.
        self._notes: dict[str, str] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on each error of the cache in this process, which a fetch from the store made up for."""
        return tuple(self._notes.values())

    def read(self, shard: Shard, fetch: Callable[[], bytes]) -> bytes:
        """Read a shard, from the cache or else from the store.

        Args:
            shard: The shard.
            fetch: Reads it from the store, and checks it. Its exceptions are raised here.
        """
        data = self._load(shard)
        if data is not None:
            return data
        # One lock for many shards: the lock files stay, and there would otherwise be one for each shard there ever was.
        with self._fetch_lock(shard.sha256[:2]):
            # Another process may have cached it, while this one waited.
            data = self._load(shard)
            if data is None:
                data = fetch()
                self._save(shard, data)
        return data

    def _load(self, shard: Shard) -> bytes | None:
        path = self._path(shard, "tar")
        try:
            with open(path, "rb") as file:
                data = file.read(shard.bytes + 1)
                if len(data) == shard.bytes and hashlib.sha256(data).hexdigest() == shard.sha256:
                    # Another user's file, for example, cannot be touched.
                    with contextlib.suppress(OSError):
                        _touch(file.fileno())
                    return data
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note_disk("cannot be read", error)
            return None
        if len(self._notes) < _MAX_NOTES:
            self._notes[shard.name] = f"{shard.name} was damaged in the cache {self.folder}: it is fetched again"
        return None

    def _save(self, shard: Shard, data: bytes) -> None:
        if len(data) > self.limit:
            return
        try:
            # One process at a time, so that several together do not exceed the limit.
            with self._lock("room"):
                self._make_room(len(data))
                part = self._path(shard, "part")
                try:
                    part.write_bytes(data)
                    _touch(part)
                    part.replace(self._path(shard, "tar"))
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            self._note_disk("cannot be written", error)

    def _make_room(self, size: int) -> None:
        cached = []
        for entry in os.scandir(self.folder):
            if not _OWN_FILE.fullmatch(entry.name):
                continue
            # Its writer had the lock that this process has now, and died.
            if entry.name.endswith(".part"):
                os.unlink(entry)
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                cached.append((status.st_mtime_ns, status.st_size, entry.path))
        excess = sum(cached_size for _, cached_size, _ in cached) + size - self.limit
        for _, cached_size, path in sorted(cached):
            if excess <= 0:
                break
            # A process that has it open can still read it.
            Path(path).unlink(missing_ok=True)
            excess -= cached_size

    @contextlib.contextmanager
    def _fetch_lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a fetch, or no lock if it cannot be acquired in time or at all."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self._lock(name))
            yield

    def _lock(self, name: str) -> FileLock:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / name, timeout=_LOCK_TIMEOUT)

    def _path(self, shard: Shard, suffix: str) -> Path:
        return self.folder / f"{shard.sha256}.{suffix}"

    def _note_disk(self, what: str, error: OSError) -> None:
        reason = error.strerror or one_line(error)
        self._notes.setdefault("disk", f"the cache {self.folder} {what} ({reason}): shards are fetched from the store")


def _touch(file: Path | int) -> None:
    # The kernel's own time stamps may be equal for all accesses within some milliseconds.
    now = time.time_ns()
    os.utime(file, ns=(now, now))
