"""Server of an LMDB database in a process of its own: keys and values over a pair of pipes.

LMDB maps its file and trusts it, so a page that is damaged or missing ends the process that reads it by a signal. This
file is run by itself, and imports nothing of the pipeline, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import IO

import lmdb

__all__ = ["ALL_KEYS", "read_frame", "write_frame"]

ALL_KEYS = b""
"""Request for all keys, each behind its length; LMDB has no empty key. Any other request is the key of a value."""

MISSING, ERROR = -1, -2
"""In place of the size of a frame: there is no such key; or the frame is a message, of two bytes of size itself."""

_SIZE = struct.Struct("<q")


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Read a frame; None where the other side has ended, or there is no such key.

    Raises:
        ValueError: If the frame is an error's message.
        EOFError: If the frame is cut.
    """
    size = stream.read(_SIZE.size)
    if len(size) < _SIZE.size:
        raise EOFError
    (length,) = _SIZE.unpack(size)
    if length == MISSING:
        return None
    if length == ERROR:
        raise ValueError((read_frame(stream) or b"").decode(errors="replace"))
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


def write_frame(stream: IO[bytes], content: bytes | None) -> None:
    """Write a frame; None says that there is no such key."""
    stream.write(_SIZE.pack(MISSING) if content is None else _SIZE.pack(len(content)) + content)
    stream.flush()


def _serve(path: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    if not os.path.getsize(path):
        raise lmdb.Error(f"{os.path.basename(path)} is empty")
    environment = lmdb.open(
        path, subdir=False, readonly=True, lock=False, readahead=False, meminit=False, max_readers=1
    )
    size, expected = os.path.getsize(path), (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < expected:
        raise lmdb.Error(f"{os.path.basename(path)} has {size:,} of {expected:,} bytes")
    while True:
        key = read_frame(requests) or ALL_KEYS
        with environment.begin() as transaction:
            write_frame(answers, _all_keys(transaction) if key == ALL_KEYS else transaction.get(key))


def _all_keys(transaction: lmdb.Transaction) -> bytes:
    expected = transaction.stat()["entries"]
    keys = []
    with transaction.cursor() as cursor:
        for key in cursor.iternext(values=False):
            keys.append(struct.pack("<H", len(key)) + key)
            if len(keys) > expected:
                break
    if len(keys) != expected:
        raise lmdb.Error(f"it does not list its {expected:,} keys")
    return b"".join(keys)


def _main() -> None:
    # An interruption is for the process that started this one, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
    except (lmdb.Error, OSError, MemoryError) as error:
        sys.stdout.buffer.write(_SIZE.pack(ERROR))
        write_frame(sys.stdout.buffer, str(error).encode())
    except EOFError:
        pass


if __name__ == "__main__":
    _main()
