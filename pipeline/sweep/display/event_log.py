"""What happens in a sweep as lines of JSON, for programs that watch it.

Each line is an object with four keys::

    {"time": "2026-01-31T12:00:00.000Z", "event": "evaluated", "trial": "003", "values": {"fid_gebm": 11.9, ...}}

and ``event`` is one of :data:`EVENTS`. A line is written at once and whole.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import redact
from pipeline.tracking.summary import drop_nonfinite

__all__ = ["EVENTS", "STANDARD_OUTPUT", "EventLog"]

# What there is to tell, and what its values are.
EVENTS = {
    "sweep_started": "experiment, output, metric, mode, base_steps, trials (how many in all), ended (of them, before)",
    "trial_started": "the trial's parameters",
    "progress": "what the steps since the last report did: base_step, energy_loss, images_per_second, ...",
    "evaluated": "the same and what was measured: fid_base, fid_gebm, ..., beta of the GEBM's chains, and checkpoint",
    "warning": "text: a warning on the health of a trial's training, once each",
    "trial_ended": "status (finished, pruned, failed), seconds, error, warnings, checkpoint, best (what that scored)",
    "note": "text: what a person is told as well",
    "sweep_ended": "finished, pruned, failed, unfinished (how many trials), seconds, best (a trial's number)",
}
STANDARD_OUTPUT = "-"


class EventLog:
    """A file, or standard output, that gets a line for each event.

    Writing never ends a sweep: that a line could not be written is told once.

    Args:
        place: a file of this machine, to which lines are added, or ``-`` for standard output.
        complain: told in a line that the place cannot be written, and later that it can be again.

    Raises:
        UserError: the place cannot be opened.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "events.jsonl"
        >>> log = EventLog(str(place))
        >>> log.write("note", {"text": "so far, so good", "loss": float("nan")}, trial="000")
        >>> log.close()
        >>> {**json.loads(place.read_text()), "time": "..."}
        {'time': '...', 'event': 'note', 'trial': '000', 'values': {'text': 'so far, so good'}}
    """

    def __init__(self, place: str, complain: Callable[[str], None] = lambda line: None) -> None:
        self.place, self._complain = place, complain
        self._lock, self._broken, self._torn = threading.Lock(), False, False
        if place == STANDARD_OUTPUT:
            sys.stdout.flush()
            self._file = os.fdopen(1, "ab", buffering=0, closefd=False)  # whatever stands for sys.stdout meanwhile
            return
        if "://" in place:
            raise UserError(f"log={place}: it has to be a file of this machine, or - for standard output")
        path = Path(place).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._torn = _is_torn(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"log={place}: it cannot be written ({error.strerror or error}); name another") from None

    def write(self, event: str, values: dict[str, Any], trial: str | None = None) -> None:
        """Write a line. Numbers that are not finite are left out, for JSON has none; so is what lets one in anywhere.

        Args:
            event: one of :data:`EVENTS`.
            values: what JSON can hold.
            trial: whose event it is; None for the sweep's own.
        """
        assert event in EVENTS
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": now, "event": event, "trial": trial, "values": drop_nonfinite(redact(values))}
        line = json.dumps(entry, allow_nan=False, default=str).encode() + b"\n"
        with self._lock:
            try:
                self._put(line)
            except OSError as error:
                complaint = f"log={self.place} cannot be written ({error.strerror or error}); the sweep goes on"
                changed, self._broken = not self._broken, True
            else:
                complaint = f"log={self.place} can be written again; what happened meanwhile is not in it"
                changed, self._broken = self._broken, False
        if changed:  # not in the lock, for the complaint may be an event as well
            self._complain(complaint)

    def close(self) -> None:
        """Write no more."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()

    def _put(self, line: bytes) -> None:
        """Write all of a line or nothing of it; where that cannot be had, the next one begins on a line of its own."""
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


def _is_torn(path: Path) -> bool:
    """Whether the last line of a file was cut off, as when its machine died."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
