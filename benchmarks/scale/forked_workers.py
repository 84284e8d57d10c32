"""Ray's workers forked from one process that has imported everything, so that hundreds of them fit on one machine.

A worker of Ray is a Python interpreter of its own, and most of its memory is what it has imported, the same in all of
them. Forked from one process, they share those pages until one writes to them. They are Ray's workers all the same: the
raylet asks for each, and each runs Ray's own ``default_worker.py`` with the arguments it was to have; only the
interpreter is not started anew. A runtime environment's ``py_executable`` is where Ray lets one choose how it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["forked_workers"]

_LARGEST_ORDER = 2**20  # bytes of an environment, arguments and a folder
_PR_SET_THP_DISABLE = 41  # of Linux
# What Ray starts in place of an interpreter: it hands over what it was started with, and goes.
_LAUNCHER = """
import json, os, socket, sys
order = json.dumps({"words": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}).encode()
with socket.socket(socket.AF_UNIX) as there:
    there.connect(sys.argv[1])
    socket.send_fds(there, [len(order).to_bytes(4, "big")], [0, 1, 2])
    there.sendall(order)
    there.recv(1)
"""


@contextlib.contextmanager
def forked_workers(modules: Sequence[str]) -> Iterator[str]:
    """Keep a process from which workers are forked.

    Args:
        modules: what it imports first, for all of them.

    Yields:
        The ``py_executable`` of a runtime environment.
    """
    with tempfile.TemporaryDirectory(prefix="forking-") as folder:
        launcher, address = Path(folder, "launcher.py"), Path(folder, "socket")
        launcher.write_text(_LAUNCHER)
        command = [sys.executable, "-m", __name__, str(address), *modules]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                if process.stdout is None or process.stdout.readline() != b"ready\n":
                    raise RuntimeError("the process that workers are forked from did not start")
                yield f"{sys.executable} -S -E {launcher} {address}"
            finally:
                process.terminate()


def _serve(address: str, modules: Sequence[str]) -> None:
    """Fork a worker for each that asks, until terminated."""
    # Small pages only: of a large one, a process that writes a byte gets a copy of two megabytes.
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(1024)
        print("ready", flush=True)
        imported = False
        while True:
            there, _ = door.accept()
            with there:
                head, descriptors, _, _ = socket.recv_fds(there, 4, 3)
                order = json.loads(_received(there, int.from_bytes(head, "big")))
                if not imported:
                    # Ray reads its settings as it is imported, the job and the raylet that a worker is of among them.
                    _take_on(order["environment"])
                    for module in modules:
                        importlib.import_module(module)
                    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is gone
                    gc.collect()
                    gc.freeze()  # or the first collection in a child would write to all that is shared
                    imported = True
                if os.fork() == 0:
                    door.close()
                    there.close()
                    _become(order, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)


def _take_on(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _received(there: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < min(size, _LARGEST_ORDER):
        content += there.recv(size - len(content))
    return content


def _become(order: dict, descriptors: list[int]) -> None:
    """Be the worker that was ordered, and end with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _take_on(order["environment"])
    os.chdir(order["folder"])
    words = [word for word in order["words"] if word != "-u"]  # of the interpreter
    sys.argv = words
    status = 1
    try:
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
