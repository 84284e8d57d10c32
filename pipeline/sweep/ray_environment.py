"""Environment in which Ray's processes start: no proxy between nodes, a private folder, a token of the user alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline.runtime.errors import UserError

__all__ = ["bypass_proxies", "log_folder", "prepare_worker", "private_folder", "protect_token"]

_NO_PROXY = ("no_proxy", "NO_PROXY")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A path of a socket has 107 bytes at most. Ray's take /ray/session_<date>_<time>_<microseconds>_<process>/sockets/...,
# and the private folder's name comes before that.
_LONGEST_TMPDIR = 20
_PREFIX = "gebm-ray-"


def bypass_proxies(*hosts: str) -> None:
    """Have requests to this machine and to other nodes go to them, and not to a proxy of the environment.

    Ray's processes ask one another by HTTP: what frees the CPUs of a trial that was stopped asks the dashboard. A proxy
    answers for none of them. ``no_proxy`` and ``NO_PROXY`` both get the entries that either had, since libraries differ
    in which they read.

    Args:
        hosts: Names or addresses of other nodes.
    """
    entries = [entry.strip() for name in _NO_PROXY for entry in os.environ.get(name, "").split(",")]
    if "*" in entries:
        # It means every host only where it is the one entry.
        merged = ["*"]
    else:
        merged = list(dict.fromkeys(filter(None, [*entries, *_LOOPBACK, *_own_addresses(), *hosts])))
    os.environ.update(dict.fromkeys(_NO_PROXY, ",".join(merged)))


def prepare_worker() -> None:
    """Set a worker's environment when its process starts: the address of its own cluster, and no proxy to its nodes.

    Where two sweeps run on one machine there are two clusters. What cleans up after a trial that was stopped looks for
    *the* cluster, and would find two and free nothing: its CPUs would be taken for ever.

    Each of Ray's processes imports this file for it, so the file imports little.
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    os.environ["RAY_ADDRESS"] = address
    bypass_proxies(address.rpartition(":")[0].strip("[]"))


def _own_addresses() -> list[str]:
    """Return the name and the addresses of this machine; Ray picks one of them for its node."""
    addresses = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    internet = (socket.AF_INET, socket.AF_INET6)
    return [socket.gethostname(), *(entry.address.partition("%")[0] for entry in addresses if entry.family in internet)]


@contextlib.contextmanager
def private_folder() -> Iterator[None]:
    """Have a cluster that starts in the block keep its sessions in a folder of its own, which only the user can read.

    The folder is in ``RAY_TMPDIR``, ``TMPDIR`` or ``/tmp``: the first whose path leaves room for that of a socket. It
    stays, as Ray's own does, since it has the logs.

    Raises:
        UserError: No such folder can be written.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    chosen = os.environ[variable] if variable else "/tmp"
    folder, reason = None, f"its path has more than {_LONGEST_TMPDIR} bytes, too many for Ray's sockets"
    for parent in (chosen, "/tmp", "/var/tmp"):
        if len(os.fsencode(os.path.abspath(parent))) > _LONGEST_TMPDIR:
            continue
        try:
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            break
        except OSError as error:
            reason = error.strerror or str(error)
    if folder is None:
        raise UserError(
            f"{variable or 'TMPDIR'}={chosen}: Ray cannot keep its sessions there ({reason}); set RAY_TMPDIR to a "
            f"folder on this machine with a short path"
        )
    saved = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder
    try:
        yield
    finally:
        if saved is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = saved


def log_folder() -> str:
    """Return the folder of Ray's logs on this machine."""
    parent = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return f"{parent.rstrip('/')}/ray/session_latest/logs"


def protect_token() -> None:
    """Make the token of a new cluster before Ray does, whose file every user of the machine could read.

    Whoever has it may run code as the user. A token that exists is kept, and taken away from others.
    """
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    path = Path.home() / ".ray" / "auth_token"
    # Without a home that can be written, Ray refuses to start or does without.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            path.chmod(0o600)
            return
        # Whole before it has its name, for another process that starts at the same time.
        handle, partial = tempfile.mkstemp(prefix=".auth_token.", dir=path.parent)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
        finally:
            os.unlink(partial)
