"""Who writes into a sweep's folder: one driver at a time, wherever it runs.

The driver that has a folder keeps ``<output>/.lease.json`` and says in it, every few seconds, that it is alive. A
second one is refused. Whose holder died is free again: at once on the machine where it died, and from anywhere else
after having been watched for a while, since clocks of two machines need not agree.
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
from pipeline.runtime.filesystem import filesystem, write_file

__all__ = ["acquire"]

_NAME = ".lease.json"
_RENEWED = 10.0  # seconds between two signs of life ...
_WATCHED = 25.0  # ... and without one after which a holder on another machine counts as dead


@contextlib.contextmanager
def acquire(output: str, interval: float = _RENEWED, stale_after: float = _WATCHED) -> Iterator[None]:
    """Hold a sweep's folder.

    Of two drivers that come at the same moment one may, rarely, be refused although the other is, too.

    Args:
        output: the folder, behind any fsspec URL.
        interval: seconds between two signs of life.
        stale_after: seconds without one after which a holder on another machine counts as dead; a good deal longer.

    Raises:
        UserError: another driver has it.

    Example:
        >>> with acquire("memory://doctest/sweep"):
        ...     with acquire("memory://doctest/sweep"):
        ...         pass
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: another sweep writes to memory://doctest/sweep (process ...): wait for it, \
or stop it
    """
    _require_free(output, stale_after)
    me: dict[str, Any] = {
        "owner": uuid.uuid4().hex,
        "machine": _machine(),
        "pid": os.getpid(),
        "born": _process_start_time(os.getpid()),
    }
    me["host"] = socket.gethostname()

    def write(heartbeat: int) -> None:
        write_file(f"{output}/{_NAME}", json.dumps({**me, "beat": heartbeat}).encode())

    write(0)
    holder = _holder(output)
    if holder is None or holder.get("owner") != me["owner"]:
        raise UserError(_refusal(output, holder or me))
    ended = threading.Event()

    def renew() -> None:
        heartbeat = 0
        while not ended.wait(interval):
            heartbeat += 1
            with contextlib.suppress(Exception):  # a storage that is away for a moment; the next time will do
                write(heartbeat)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=interval)
        with contextlib.suppress(Exception):
            files, path = filesystem(output)
            files.rm(f"{path}/{_NAME}")


def _require_free(output: str, stale_after: float) -> None:
    holder = _holder(output)
    if holder is None:
        return
    if holder.get("machine") == _machine():
        pid = holder.get("pid")
        if isinstance(pid, int) and _process_start_time(pid) == holder.get("born") is not None:
            raise UserError(_refusal(output, holder))
        return
    end = time.monotonic() + stale_after
    while time.monotonic() < end:
        time.sleep(min(1.0, stale_after / 5))
        now = _holder(output)
        if now is None:
            raise UserError(f"the sweep in {output} has ended this moment: try again")
        if now != holder:
            raise UserError(_refusal(output, now))


def _refusal(output: str, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}"
    return f"another sweep writes to {output} ({who}): wait for it, or stop it"


def _holder(output: str) -> dict[str, Any] | None:
    files, path = filesystem(output)
    try:
        files.invalidate_cache(path)
        holder = json.loads(files.cat_file(f"{path}/{_NAME}"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None  # what is damaged holds nothing
    return holder if isinstance(holder, dict) else None


def _machine() -> str:
    """What tells this machine, as processes are numbered on it, from any other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return f"{uuid.getnode():x}"


def _process_start_time(pid: int) -> str | None:
    """When a process began, for numbers are given again; none if there is no such process."""
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
