"""Lock of a sweep's folder: one driver at a time writes into it, on whatever machine.

The lock is a file, ``<output>/.lease.json``, that its holder creates exclusively and rewrites every few seconds with a
heartbeat, so that it is a lease: it ends with its holder. A lock whose holder died is stale at once on the machine
where it died; elsewhere only after it was observed for a while, since the clocks of two machines need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local, write_file

__all__ = ["acquire"]

_NAME = ".lease.json"
_INTERVAL = 10.0
_STALE_AFTER = 25.0


@contextlib.contextmanager
def acquire(output: str, interval: float = _INTERVAL, stale_after: float = _STALE_AFTER) -> Iterator[None]:
    """Hold the lock of a sweep's folder.

    Args:
        output: The folder, behind any fsspec URL.
        interval: Seconds between two heartbeats.
        stale_after: Seconds without one after which a holder on another machine counts as dead; a good deal longer.

    Raises:
        UserError: If another driver holds it.

    Example:
        >>> with acquire("memory://doctest/sweep"):
        ...     with acquire("memory://doctest/sweep"):
        ...         pass
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: another sweep writes to memory://doctest/sweep (process ...): wait for it, \
or stop it
    """
    lock = {"owner": uuid.uuid4().hex, **_this_process()}
    _create(output, lock, stale_after)
    released = threading.Event()
    thread = threading.Thread(
        target=_send_heartbeats, args=(output, lock, interval, released), name="lock", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join(timeout=interval)
        with contextlib.suppress(Exception):
            _remove(output)


def _create(output: str, lock: dict[str, Any], stale_after: float) -> None:
    """Create the lock file; one that is stale is removed first."""
    for attempt in range(2):
        try:
            _create_exclusively(output, json.dumps({**lock, "beat": 0}).encode())
        except FileExistsError:
            holder = _read(output)
            # At the second attempt another driver was faster.
            if attempt or not _is_stale(output, holder, stale_after):
                raise UserError(_refusal(output, _read(output) or holder)) from None
            # Unless another driver has just done so, and has a lock of its own.
            if _read(output) == holder:
                _remove(output)
        else:
            break
    # For storage that does not refuse a second creation, as some servers with the protocol of S3.
    holder = _read(output)
    if holder is None or holder.get("owner") != lock["owner"]:
        raise UserError(_refusal(output, holder))


def _create_exclusively(output: str, content: bytes) -> None:
    """Create the lock file, or raise FileExistsError."""
    files, path = filesystem(output)
    files.makedirs(path, exist_ok=True)
    if is_local(files):
        # fsspec's own looks first whether there is a file and then writes it, which two processes can do at once.
        with open(f"{path}/{_NAME}", "xb") as file:
            file.write(content)
        return
    try:
        files.pipe_file(f"{path}/{_NAME}", content, mode="create")
    except OSError as error:
        # s3fs does not say FileExistsError of the precondition that failed.
        files.invalidate_cache(path)
        if files.exists(f"{path}/{_NAME}"):
            raise FileExistsError(f"{path}/{_NAME}") from error
        raise


def _send_heartbeats(output: str, lock: dict[str, Any], interval: float, released: threading.Event) -> None:
    heartbeat = 0
    while not released.wait(interval):
        heartbeat += 1
        # The storage may be away for a moment: the next heartbeat will do.
        with contextlib.suppress(Exception):
            write_file(f"{output}/{_NAME}", json.dumps({**lock, "beat": heartbeat}).encode())


def _is_stale(output: str, holder: dict[str, Any] | None, stale_after: float) -> bool:
    """Return whether a lock's holder is dead: at once if it was of this machine, otherwise after observing the lock.

    A lock that cannot be read is observed, too: its holder may be about to write it.
    """
    if holder is not None and holder.get("machine") == _machine():
        pid = holder.get("pid")
        return not (isinstance(pid, int) and _process_start_time(pid) == holder.get("born") is not None)
    end = time.monotonic() + stale_after
    while time.monotonic() < end:
        time.sleep(min(1.0, stale_after / 5))
        if _read(output) != holder:
            return False
    return True


def _read(output: str) -> dict[str, Any] | None:
    """Return what the lock file says of its holder; None where there is no file or it is damaged."""
    files, path = filesystem(output)
    try:
        files.invalidate_cache(path)
        holder = json.loads(files.cat_file(f"{path}/{_NAME}"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return holder if isinstance(holder, dict) else None


def _remove(output: str) -> None:
    files, path = filesystem(output)
    with contextlib.suppress(FileNotFoundError):
        files.rm(f"{path}/{_NAME}")


def _refusal(output: str, holder: dict[str, Any] | None) -> str:
    if holder is None:
        return f"another sweep has just started or ended in {output}: try again"
    who = f"process {holder.get('pid')} on {holder.get('host')}"
    return f"another sweep writes to {output} ({who}): wait for it, or stop it"


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "born": _process_start_time(pid), "host": socket.gethostname()}


def _machine() -> str:
    """Return what identifies this machine and its numbering of processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    # Not Linux.
    except OSError:
        return f"{uuid.getnode():x}"


def _process_start_time(pid: int) -> str | None:
    """Return when a process started, since its number may be given again; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
