"""Reports of a trial that trains in its own process, from the thread that trains to the one that Tune waits for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["OwnReports"]

_POLL_SECONDS = 1.0


class OwnReports:
    """Reports on their way to Tune, which decides after each of them whether the trial continues.

    A trial that did not wait would be many reports ahead where the driver is held up. Tune may stop it at the first of
    them, whose checkpoint would have made room for later ones.

    Example:
        >>> reports = OwnReports()
        >>> reports.put({"base_step": 1})
        >>> reports.end()
        >>> [(report, reports.is_behind()) for report in reports], reports.is_behind()
        ([({'base_step': 1}, True)], False)
    """

    def __init__(self) -> None:
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._decided = threading.Event()
        self._decided.set()

    def put(self, report: dict[str, Any]) -> None:
        """Hand a report over, without waiting."""
        self._decided.clear()
        self._reports.put(report)

    def end(self) -> None:
        """End the reports, after the last one."""
        self._reports.put(None)

    def is_behind(self) -> bool:
        """Return whether Tune has still to decide on a report, after a second at most."""
        return not self._decided.wait(_POLL_SECONDS)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the reports. A report is decided on where the next one is asked for."""
        while (report := self._reports.get()) is not None:
            yield report
            self._decided.set()
