"""Shards of a remote store, kept on this machine's disk.

A shard is kept under its SHA-256, as its manifest has it, so what was kept of one store is never taken for another's,
and stores that share shards share them here. Whatever is read from here is checked against that sum: what a disk or a
stranger has changed is dropped and fetched again.

Why not a library: fsspec's `filecache` has no limit and checks nothing, and `diskcache` goes over its limit, unpickles
what lies in its folder and would still need a lock so that a shard is fetched once. The locks are those of `filelock`,
which the operating system lets go of when their process dies.
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

_OURS = re.compile(r"[0-9a-f]{64}\.(tar|part)")  # all else in the folder is somebody else's, and is let alone
_PATIENCE = 60.0  # seconds that a process waits for one that fetches the same shard, or writes into the folder
_MOST_NOTES = 10  # of shards that were damaged: a disk that fails damages all of them


class ShardCache:
    """A folder of shards, the least recently used of which make room for others.

    Any number of processes and threads of one machine may share it. A shard that several want at once is fetched by
    one of them. A disk that is full or cannot be written is one line in `notes`, and shards are then fetched each time.

    Args:
        folder: On a disk of this machine; made if it is not there.
        limit: Largest size of all shards in it, in bytes. A shard that is larger is not kept.

    Example:
        >>> import tempfile
        >>> cache = ShardCache(Path(tempfile.mkdtemp()), limit=2**20)
        >>> shard = Shard("0.tar", num_samples=1, bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
        >>> cache.read(shard, fetch=lambda: b"abc"), cache.read(shard, fetch=lambda: b"not asked for")
        (b'abc', b'abc')
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._notes: dict[str, str] = {}  # by what it is of, so that it is said once

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on each thing that went wrong in this process, though nothing was lost by it."""
        return tuple(self._notes.values())

    def read(self, shard: Shard, fetch: Callable[[], bytes]) -> bytes:
        """A shard, from here or from the store.

        Args:
            shard: Which one.
            fetch: Reads it from the store, and checks it. Whatever it raises is raised here.
        """
        data = self._kept(shard)
        if data is not None:
            return data
        with self._turn(shard.sha256[:2]):  # a lock for each shard would leave a file for each shard there ever was
            data = self._kept(shard)  # by another, while this one waited
            if data is None:
                data = fetch()
                self._keep(shard, data)
        return data

    def _kept(self, shard: Shard) -> bytes | None:
        place = self._place(shard, "tar")
        try:
            with open(place, "rb") as file:
                data = file.read(shard.bytes + 1)
                if len(data) == shard.bytes and hashlib.sha256(data).hexdigest() == shard.sha256:
                    with contextlib.suppress(OSError):  # another user's, say
                        _used_now(file.fileno())
                    return data
            place.unlink(missing_ok=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed("cannot be read", error)
            return None
        if len(self._notes) < _MOST_NOTES:
            self._notes[shard.name] = f"{shard.name} was damaged in the cache {self.folder}: it is fetched again"
        return None

    def _keep(self, shard: Shard, data: bytes) -> None:
        if len(data) > self.limit:
            return
        try:
            # One process at a time, so that none goes over the limit because of another.
            with self._lock("room"):
                self._make_room(len(data))
                part = self._place(shard, "part")
                try:
                    part.write_bytes(data)
                    _used_now(part)
                    part.replace(self._place(shard, "tar"))
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            self._failed("cannot be written", error)

    def _make_room(self, wanted: int) -> None:
        kept = []
        for entry in os.scandir(self.folder):
            if not _OURS.fullmatch(entry.name):
                continue
            if entry.name.endswith(".part"):  # whoever wrote it had the lock that this process has now, and died
                os.unlink(entry)
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                kept.append((status.st_mtime_ns, status.st_size, entry.path))
        excess = sum(size for _, size, _ in kept) + wanted - self.limit
        for _, size, path in sorted(kept):
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)  # who has it open reads on
            excess -= size

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """Wait for who fetches the same shard; whoever does not end, or cannot be asked, is not waited for."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self._lock(name))
            yield

    def _lock(self, name: str) -> FileLock:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / name, timeout=_PATIENCE)

    def _place(self, shard: Shard, suffix: str) -> Path:
        return self.folder / f"{shard.sha256}.{suffix}"

    def _failed(self, what: str, error: OSError) -> None:
        reason = error.strerror or one_line(error)
        self._notes.setdefault("disk", f"the cache {self.folder} {what} ({reason}): shards are fetched from the store")


def _used_now(file: Path | int) -> None:
    now = time.time_ns()  # the kernel's own stamps may be the same for all that happens within some milliseconds
    os.utime(file, ns=(now, now))
