"""SQLite database of MLflow: one process at a time opens it, since the first one makes its tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from filelock import FileLock, Timeout

from pipeline.runtime.errors import UserError

__all__ = ["opening"]

# A migration of a large database takes a while.
_SECONDS = 300.0


@contextlib.contextmanager
def opening(uri: str) -> Iterator[None]:
    """Hold the lock of a SQLite database while it is opened; do nothing for any other tracker.

    Args:
        uri: Address of the tracker.

    Raises:
        UserError: Another process holds it for minutes.
    """
    path = _database(uri)
    if path is None:
        yield
        return
    lock = FileLock(f"{path}.lock", timeout=_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{path}.lock is held by another process: end it, or use another tracking.uri") from None
    # A file system without locks, or a folder that is read only: what follows says whether the database can be used.
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def _database(uri: str) -> str | None:
    """Return the file of a SQLite database; ``None`` for another tracker and for one in memory."""
    parts = re.fullmatch(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)(?:\?.*)?", uri)
    return parts["path"] if parts is not None and parts["path"] != ":memory:" else None
