"""Event log: what happens in a sweep as lines of JSON, for programs that watch it.

Each line is an object with four keys::

    {"time": "2026-01-31T12:00:00.000Z", "event": "evaluated", "trial": "003", "values": {"fid_gebm": 11.9, ...}}

and ``event`` is one of :data:`EVENTS`. A line is written at once and whole.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import redact
from pipeline.tracking.finite_json import drop_nonfinite

__all__ = ["EVENTS", "STANDARD_OUTPUT", "EventHandler", "EventLog", "as_event"]

# Every event, and its values.
EVENTS = {
    "sweep_started": "experiment, output, metric, mode, base_steps (of a trial; chain_steps where trials only sample), "
    "trials (how many in all), ended (of them, before)",
    "trial_started": "the trial's parameters",
    "progress": "what the steps since the last report did: base_step, energy_loss, images_per_second, ...",
    "evaluated": "the same and what was measured: fid_base, fid_gebm, ..., beta of the GEBM's chains, and checkpoint",
    "warning": "text: a warning on the health of a trial's training, once each",
    "trial_ended": "status (finished, pruned, failed), seconds, error, warnings, checkpoint, best (what that scored)",
    "note": "text: a line that the terminal has too",
    "sweep_ended": "finished, pruned, failed, unfinished (how many trials), seconds, best (a trial's number)",
}
STANDARD_OUTPUT = "-"


class EventLog:
    """A file, or standard output, that gets a line for each event.

    Writing never ends a sweep: that a line could not be written is reported once.

    Args:
        path: A file of this machine, to which lines are appended, or ``-`` for standard output.
        notify: Called with one line when the file cannot be written, and when it can be written again.

    Raises:
        UserError: The file cannot be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "events.jsonl"
        >>> event_log = EventLog(str(path))
        >>> event_log.write("note", {"text": "so far, so good", "loss": float("nan")}, trial="000")
        >>> event_log.close()
        >>> {**json.loads(path.read_text()), "time": "..."}
        {'time': '...', 'event': 'note', 'trial': '000', 'values': {'text': 'so far, so good'}}
    """

    def __init__(self, path: str, notify: Callable[[str], None] = lambda line: None) -> None:
        self.path, self._notify = path, notify
        self._lock, self._broken, self._torn = threading.Lock(), False, False
        if path == STANDARD_OUTPUT:
            sys.stdout.flush()
            # The process's standard output, whatever replaces sys.stdout meanwhile.
            self._file = os.fdopen(1, "ab", buffering=0, closefd=False)
            return
        if "://" in path:
            raise UserError(f"log={path}: it has to be a file of this machine, or - for standard output")
        local = Path(path).expanduser()
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            self._torn = _is_torn(local)
            self._file = local.open("ab", buffering=0)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"log={path}: it cannot be written ({reason}); choose another file") from None

    def write(self, event: str, values: dict[str, Any], trial: str | None = None) -> None:
        """Write a line, redacted and without numbers that are not finite, since JSON has none.

        Args:
            event: One of :data:`EVENTS`.
            values: What JSON can hold.
            trial: The trial that the event belongs to; None for the sweep's own.
        """
        assert event in EVENTS
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": now, "event": event, "trial": trial, "values": drop_nonfinite(redact(values))}
        line = json.dumps(entry, allow_nan=False, default=str).encode() + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                notice = f"log={self.path} cannot be written ({error.strerror or error}); the sweep continues"
                changed, self._broken = not self._broken, True
            else:
                notice = f"log={self.path} can be written again; events in between are missing from it"
                changed, self._broken = self._broken, False
        # Outside the lock, since the notice may be an event as well.
        if changed:
            self._notify(notice)

    def close(self) -> None:
        """Write no more."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()

    def _append(self, line: bytes) -> None:
        """Write all of a line or nothing of it; where that fails, the next one begins on a line of its own."""
        state = os.fstat(self._file.fileno())
        rest = memoryview(b"\n" + line if self._torn else line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            if stat.S_ISREG(state.st_mode):
                self._file.truncate(state.st_size)
            elif len(rest) < len(line):
                self._torn = True
            raise
        self._torn = False


class EventHandler(logging.Handler):
    """Handler that writes log records to an event log: as the event of :func:`as_event`, otherwise as a note.

    Args:
        event_log: Where to write.
    """

    def __init__(self, event_log: EventLog) -> None:
        super().__init__()
        self._event_log = event_log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        event = getattr(record, "event", "note")
        if event is not None:
            values = getattr(record, "values", {"text": record.getMessage()})
            self._event_log.write(event, values, getattr(record, "trial", None))


def as_event(event: str | None, values: dict[str, Any] | None = None, trial: str | None = None) -> dict[str, Any]:
    """Return the ``extra`` of a log record that makes it another event than a note.

    Args:
        event: One of :data:`EVENTS`; None where the record is for the terminal alone.
        values: Values of the event; by default the record's message as ``text``.
        trial: The trial that the event belongs to.

    Example:
        >>> as_event("warning", {"text": "KALE is negative"}, trial="003")
        {'event': 'warning', 'trial': '003', 'values': {'text': 'KALE is negative'}}
    """
    extra: dict[str, Any] = {"event": event, "trial": trial}
    return extra if values is None else {**extra, "values": values}


def _is_torn(path: Path) -> bool:
    """Return whether the last line of a file was cut off, as when its machine died."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
