"""What a tracker is to be told, on disk first and then sent: nobody waits for a tracker, and nothing is lost with it.

Each entry is a line of JSON in a journal beside the results. A thread sends the entries in their order, all that wait
at a time, and notes how many are out; while the receiver does not answer, it asks again, ever more rarely, and entries
gather. A journal that was not sent to its end, because the driver or the receiver died, is gone on with by the next
driver.

An entry may be sent twice, if the driver dies between the sending and the note. So whoever delivers has to be such that
a second time changes nothing.
"""

from __future__ import annotations

import contextlib
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

__all__ = ["Journal", "PermanentError"]

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts
_AT_ONCE = 5000  # entries that are delivered together, at most


class PermanentError(Exception):
    """The receiver is there, and will never take this entry."""


class Journal:
    """A journal, and the thread that sends it.

    Args:
        path: the journal, on a disk of this machine; made if it is new.
        deliver: sends entries, those that wait, in their order, a second time without effect; raises
            :class:`PermanentError` where one is hopeless: it is looked for, by halves, and left out. What raises
            anything else is tried again.
        say: told in a line when the receiver stops answering, when it is back, and what it refused; in the thread.

    Raises:
        UserError: the journal is damaged.

    Example:
        >>> import tempfile
        >>> sent = []
        >>> outbox = Journal(Path(tempfile.mkdtemp()) / "journal.jsonl", sent.extend)
        >>> outbox.put({"metric": 1.0})
        >>> outbox.close(flush_timeout=10), sent
        (0, [{'metric': 1.0}])
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[list[dict[str, Any]]], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path, self._deliver, self._say = path, deliver, say
        self._note = path.with_name(f"{path.name}.sent")
        path.parent.mkdir(parents=True, exist_ok=True)
        entries, self._sent = self._read()
        # Each with whether the journal has it.
        self._waiting = deque((entry, True) for entry in entries[self._sent :])
        self._full = False
        self._file = path.open("ab", buffering=0)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def put(self, entry: dict[str, Any]) -> None:
        """Keep an entry on disk, to be sent after those before it. It returns as soon as the disk has it.

        Args:
            entry: what JSON can hold.
        """
        line = json.dumps(entry).encode() + b"\n"
        with self._changed:
            whole = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) < len(line):
                    raise OSError("no room for a whole line")
                os.fsync(self._file.fileno())
                self._waiting.append((entry, True))
            except OSError as error:
                # Half a line would spoil the journal. What it has no room for is sent from memory.
                with contextlib.suppress(OSError):
                    self._file.truncate(whole)
                self._waiting.append((entry, False))
                if not self._full:
                    self._say(f"{self.path} cannot be written ({_reason(error)}): the tracker is told from memory")
                self._full = True
            self._changed.notify_all()

    def flush(self, flush_timeout: float) -> int:
        """Wait until everything is out.

        Args:
            flush_timeout: seconds to wait at most.

        Returns:
            How many entries are not.
        """
        end = time.monotonic() + flush_timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=max(0.0, end - time.monotonic()))
            return len(self._waiting)

    def close(self, flush_timeout: float) -> int:
        """Wait until everything is out, and stop; what is left lies in the journal.

        Args:
            flush_timeout: seconds to wait at most.

        Returns:
            How many entries are left.
        """
        left = self.flush(flush_timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)  # one that is in the midst of asking dies with the process
        return left

    def _send(self) -> None:
        wait, missed, most = _FIRST_WAIT, 0, _AT_ONCE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                batch = list(itertools.islice(self._waiting, most))
            try:
                self._deliver([entry for entry, _ in batch])
            except PermanentError as error:
                if len(batch) > 1:
                    most = len(batch) // 2
                    continue
                self._say(f"the tracker refused an entry, which is left out: {error}")
            except Exception as error:  # every tracker and file system has exceptions of its own
                if not missed:
                    self._say(f"the tracker does not answer ({_reason(error)}): results are kept in {self.path}")
                missed += 1
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            if missed:
                self._say(f"the tracker answers again: it gets what it missed, {len(self._waiting)} entries")
            wait, missed, most = _FIRST_WAIT, 0, min(2 * most, _AT_ONCE)
            with self._changed:
                self._sent += sum(kept for _, kept in batch)
                with contextlib.suppress(OSError):  # sent a second time, it changes nothing
                    _replace(self._note, str(self._sent))
                for _ in batch:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The entries of the journal, and how many of them are out."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            if lines and not lines[-1].endswith(b"\n"):  # the driver died while it wrote it, and nobody counts on it
                with self.path.open("ab") as file:
                    file.truncate(sum(map(len, lines[:-1])))
                lines.pop()
            entries = [json.loads(line) for line in lines]
            sent = int(self._note.read_text()) if self._note.exists() else 0
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"the journal {self.path} is damaged ({_reason(error)}): what is in it is in summary.json too, so that "
                f"it can be deleted, with {self._note.name} beside it"
            ) from None
        if not (all(isinstance(entry, dict) for entry in entries) and 0 <= sent <= len(entries)):
            raise UserError(f"the journal {self.path} is not one of a tracker, or {self._note.name} is not its own")
        return entries, sent


def _reason(error: Exception) -> str:
    return one_line(error, limit=120)


def _replace(path: Path, text: str) -> None:
    """Write a small file so that it is there before or after, and never half."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    beside.replace(path)
