"""Heartbeat of a log: a message on what runs, where nothing else has been logged for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pipeline.sweep.display.event_log import as_event

__all__ = ["SECONDS", "Heartbeat"]

SECONDS = 30.0
"""Time after which a log without a new line gets one."""

_IS_HEARTBEAT = "is_heartbeat"
_SECONDS_BETWEEN_BEATS = 1.0

log = logging.getLogger(__name__)


class Heartbeat(logging.Handler):
    """Handler that logs a message of its own where none has been logged for a while.

    It checks once a second, in a thread of its own, while it is entered.

    Args:
        line: Returns the line, from the last one that was logged by anything else, and the seconds since then.
        seconds: Time without a line.
        clock: Returns the time in seconds.

    Example:
        >>> times = iter([0, 10, 31])
        >>> heartbeat = Heartbeat(lambda last, since: f"nothing for {since:g} s", clock=lambda: next(times))
        >>> heartbeat.line(), heartbeat.line()
        (None, 'nothing for 31 s')
    """

    def __init__(
        self,
        line: Callable[[str, float], str],
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._make, self._seconds, self._clock = line, seconds, clock
        self._text, self._text_at = "", clock()
        self._line_at = self._text_at
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Note that a message is logged."""
        self._line_at = self._clock()
        if not getattr(record, _IS_HEARTBEAT, False):
            self._text, self._text_at = record.getMessage(), self._line_at

    def line(self) -> str | None:
        """Return the line that is due now, or None."""
        now = self._clock()
        return self._make(self._text, now - self._text_at) if now - self._line_at >= self._seconds else None

    def beat(self) -> None:
        """Log the line that is due now, if one is."""
        line = self.line()
        if line is not None:
            # The event log has events of its own.
            log.info(line, extra={**as_event(None), _IS_HEARTBEAT: True})

    def _run(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_BEATS):
            self.beat()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
