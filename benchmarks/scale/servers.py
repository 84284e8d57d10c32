"""Servers on this machine, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port", "mlflow_server", "postgresql"]

_PATIENCE = 120.0  # seconds until a server answers


def free_port() -> int:
    """Return a free port of the loopback."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(folder: Path, database: str | None = None, workers: int = 1) -> Iterator[str]:
    """Start an MLflow server that stores artifacts in a folder, and serves them itself.

    Args:
        folder: of its files.
        database: URL of its database; by default an SQLite file in the folder.
        workers: processes that answer.

    Yields:
        Its address.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database or f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--workers", str(workers)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            # Nothing of it is to be kept, and it would wait for who is connected.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def _wait(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"no server at {address}: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str | None]:
    """Start a PostgreSQL server with an empty database, where its programs and a driver are installed.

    Args:
        folder: of its files; made, and readable by the account that runs it.

    Yields:
        The database's URL, or none.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        programs = []
    if not programs:
        yield None
        return
    place, port = programs[-1].parent, free_port()
    folder.mkdir(parents=True)
    account = {}
    if os.getuid() == 0:  # which it refuses to run as
        account = {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid}
        shutil.chown(folder, "postgres")
    settings = f"-k '' -h 127.0.0.1 -p {port}"

    def run(*words: str) -> None:
        subprocess.run([str(place / words[0]), *words[1:]], check=True, capture_output=True, cwd="/", **account)

    data, log = str(folder / "data"), str(folder / "log")
    run("initdb", "-D", data, "-A", "trust", "-U", "postgres")
    run("pg_ctl", "-D", data, "-l", log, "-o", settings, "-w", "start")
    try:
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
