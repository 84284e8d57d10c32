"""Journal of a tracker's entries: a durable queue on disk, and the thread that delivers it.

No caller waits for the tracker, and nothing is lost when it is down (the pattern of a transactional outbox). Each entry
is a line of JSON in a file next to the results. The thread delivers the entries in their order, all that wait at a
time, and notes how many are sent; while the receiver does not answer, it retries with growing waits. The next driver
resumes a journal that was not sent to its end, because the driver or the receiver died.

An entry may be delivered twice, if the driver dies between the delivery and the note, so delivery has to be idempotent.
It is written by hand because libraries for durable queues either pickle their entries or need a database.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import sync, write_file
from pipeline.runtime.printable import printable
from pipeline.runtime.untrusted import JOURNAL, parse_json

__all__ = ["Journal", "PermanentError"]

# Seconds between two attempts.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
# Entries that are delivered together, at most.
_MAX_BATCH = 5000


class PermanentError(Exception):
    """The receiver answers, and will never accept this entry."""

    def __init__(self, reason: str) -> None:
        # A reason may quote a name from an untrusted file, with line breaks and characters that no log can write.
        super().__init__(printable(" ".join(reason.split())))


class Journal:
    """A journal, and the thread that delivers it.

    Args:
        path: File of the journal, on a disk of this machine; created if it is new.
        deliver: Sends the waiting entries in their order, idempotently. It raises :class:`PermanentError` where one of
            them will never be accepted: that one is searched for by halves, and left out. After any other exception
            the entries are sent again.
        notify: Called in the thread with a one-line message when the receiver stops answering, when it is back, and
            when it refuses an entry.

    Raises:
        UserError: When the journal is damaged.

    Example:
        >>> import tempfile
        >>> sent = []
        >>> journal = Journal(Path(tempfile.mkdtemp()) / "journal.jsonl", sent.extend)
        >>> journal.put({"metric": 1.0})
        >>> journal.close(flush_timeout=10), sent
        (0, [{'metric': 1.0}])
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[list[dict[str, Any]]], None],
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.path, self._deliver, self._notify = path, deliver, notify
        self._sent_path = path.with_name(f"{path.name}.sent")
        path.parent.mkdir(parents=True, exist_ok=True)
        entries, self._sent = self._read()
        # Pairs of an entry and whether it is in the file.
        self._waiting = deque((entry, True) for entry in entries[self._sent :])
        self._disk_full = False
        self._file = _open_to_append(path)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._send, name="journal", daemon=True)
        self._thread.start()

    def put(self, entry: dict[str, Any]) -> None:
        """Append an entry, and return as soon as it is on disk.

        Args:
            entry: A dict that is JSON.
        """
        line = json.dumps(entry).encode() + b"\n"
        with self._changed:
            size = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) < len(line):
                    raise OSError("no room for a whole line")
                sync(self._file.fileno())
                self._waiting.append((entry, True))
            except OSError as error:
                # Half a line would damage the journal. An entry without room on disk is sent from memory.
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                self._waiting.append((entry, False))
                if not self._disk_full:
                    self._notify(f"cannot write the journal {self.path} ({_reason(error)}): queueing in memory")
                self._disk_full = True
            self._changed.notify_all()

    def flush(self, flush_timeout: float) -> int:
        """Wait until all entries are sent.

        Args:
            flush_timeout: Time to wait at most, in seconds.

        Returns:
            The number of entries that are not.
        """
        end = time.monotonic() + flush_timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=max(0.0, end - time.monotonic()))
            return len(self._waiting)

    def close(self, flush_timeout: float) -> int:
        """Wait until all entries are sent, and stop; those that are left stay in the file.

        Args:
            flush_timeout: Time to wait at most, in seconds.

        Returns:
            The number of entries that are left.
        """
        left = self.flush(flush_timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # A thread in the middle of a request ends with the process.
        self._thread.join(timeout=1.0)
        return left

    def _send(self) -> None:
        """Deliver entries until the journal is closed; the body of the thread."""
        wait, failures, max_batch = _FIRST_WAIT, 0, _MAX_BATCH
        while (batch := self._next_batch(max_batch)) is not None:
            try:
                self._deliver([entry for entry, _ in batch])
            except PermanentError as error:
                if len(batch) > 1:
                    max_batch = len(batch) // 2
                    continue
                self._notify(f"the tracker refused an entry, which is left out: {error}")
            # Every tracker and file system has exceptions of its own.
            except Exception as error:
                if not failures:
                    self._notify(f"the tracker does not answer ({_reason(error)}): results are kept in {self.path}")
                failures += 1
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            if failures:
                self._notify(f"the tracker answers again: it gets what it missed, {len(self._waiting)} entries")
            wait, failures, max_batch = _FIRST_WAIT, 0, min(2 * max_batch, _MAX_BATCH)
            self._remove(batch)

    def _next_batch(self, max_batch: int) -> list[tuple[dict[str, Any], bool]] | None:
        """Wait for entries, and return the first of them; ``None`` once the journal is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return None if self._closing else list(itertools.islice(self._waiting, max_batch))

    def _remove(self, batch: list[tuple[dict[str, Any], bool]]) -> None:
        """Note that the first entries are sent, or left out."""
        with self._changed:
            self._sent += sum(on_disk for _, on_disk in batch)
            # Without the note they are sent a second time, which changes nothing.
            with contextlib.suppress(OSError):
                write_file(str(self._sent_path), str(self._sent).encode())
            for _ in batch:
                self._waiting.popleft()
            self._changed.notify_all()

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """Read the entries of the file, and how many of them are sent."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            # Half a line is of a driver that died while it wrote it, before any caller relied on it.
            if lines and not lines[-1].endswith(b"\n"):
                with self.path.open("ab") as file:
                    file.truncate(sum(map(len, lines[:-1])))
                lines.pop()
            entries = [parse_json(line, JOURNAL) for line in lines]
            sent = int(self._sent_path.read_text()) if self._sent_path.exists() else 0
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"the journal {self.path} is damaged ({_reason(error)}): summary.json has the same results, so delete "
                f"it together with {self._sent_path.name}"
            ) from None
        if not (all(isinstance(entry, dict) for entry in entries) and 0 <= sent <= len(entries)):
            raise UserError(
                f"the journal {self.path} is not a tracker's, or {self._sent_path.name} does not belong to it"
            )
        return entries, sent


def _reason(error: Exception) -> str:
    return one_line(error, limit=120)


def _open_to_append(path: Path) -> io.FileIO:
    """Open the journal's file; its folder may be a stranger's, and a link would lead to any file.

    Raises:
        UserError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write the journal {path} ({_reason(error)}): remove what is there") from None
    return io.FileIO(descriptor, "ab")
