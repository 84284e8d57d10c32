"""Processes: the identity of one on any machine, and those that end when the one that started them does."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

__all__ = ["exit_with_parent", "is_alive", "is_on_this_machine", "this_process"]


def exit_with_parent() -> None:
    """End this process, started through ``multiprocessing``, as soon as the one that started it is gone.

    Otherwise it would wait for work for ever, and keep its memory. A process that checks whether it has another parent
    than at its start, as torch's loader workers do, does not notice one that was killed before that.
    """
    threading.Thread(target=_wait, name="end with parent", daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def this_process() -> dict[str, Any]:
    """Return what identifies this process among those of all machines, for JSON.

    Example:
        >>> is_on_this_machine(this_process()), is_alive(this_process())
        (True, True)
    """
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "born": _start_time(pid), "host": socket.gethostname()}


def is_on_this_machine(process: dict[str, Any]) -> bool:
    """Return whether a process is, or was, one of this machine.

    Args:
        process: What :func:`this_process` returned there; anything may be missing.
    """
    return process.get("machine") == _machine()


def is_alive(process: dict[str, Any]) -> bool:
    """Return whether a process of this machine is alive, be it suspended.

    Args:
        process: What :func:`this_process` returned there; anything may be missing.
    """
    pid = process.get("pid")
    return isinstance(pid, int) and _start_time(pid) == process.get("born") is not None


def _machine() -> str:
    """Return what identifies this machine and its numbering of processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    # Not Linux.
    except OSError:
        return f"{uuid.getnode():x}"


def _start_time(pid: int) -> str | None:
    """Return when a process started, since its number may be given again; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A process that has ended and was not waited for does nothing more.
        return None if fields[0] in ("Z", "X") else fields[19]
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return "alive"
