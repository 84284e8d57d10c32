"""Standard output and standard error that never end the work: what nobody can read is dropped."""

from __future__ import annotations

import errno
import io
import os
import sys

__all__ = ["drop_unwritable_output"]

# The reader has ended, as `head` does; the terminal is gone.
_NO_READER = (errno.EPIPE, errno.EIO)


def drop_unwritable_output() -> None:
    """Have this process continue where its standard output or standard error cannot be written.

    After ``| head`` has read enough, or where the disk of a log is full, what is printed is dropped. Every command
    calls this before anything else, and each line is written when it ends. Streams that replace
    the process's own, as in a test, are left alone.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # A file that is opened later would get this number, and be written to by whatever prints.
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(_dropping(descriptor), encoding="utf-8"))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            same = io.TextIOWrapper(
                _dropping(stream.fileno()),
                encoding=stream.encoding,
                # A name with a character that the encoding lacks is escaped, and ends nothing.
                errors="backslashreplace",
                # Progress is in a log as soon as it is in a terminal.
                line_buffering=True,
                write_through=stream.write_through,
            )
            setattr(sys, name, same)


def _dropping(descriptor: int) -> io.BufferedWriter:
    """Return a file for the same descriptor, whose writing does not fail."""
    return io.BufferedWriter(_DroppingFile(descriptor, "w", closefd=False))


class _DroppingFile(io.FileIO):
    """File that takes all that is written, and drops what cannot be written.

    Example:
        >>> with open(os.devnull) as only_readable:
        ...     _DroppingFile(only_readable.fileno(), "w", closefd=False).write(b"dropped")
        7
    """

    _reported = False

    def write(self, data, /) -> int:
        """Write data, and return as many bytes as there are where it is dropped."""
        try:
            written = super().write(data)
        except OSError as error:
            if error.errno in _NO_READER:
                # All that the process writes there from now on, be it from C.
                _redirect_to_nowhere(self.fileno())
            elif self.fileno() == 1 and not self._reported:
                self._reported = True
                print(f"standard output cannot be written ({error.strerror}); the work continues", file=sys.stderr)
            return memoryview(data).nbytes
        return memoryview(data).nbytes if written is None else written


def _redirect_to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
