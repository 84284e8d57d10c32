"""A worker that hangs ends itself, so that its trial can be started anew from the last checkpoint.

A read that never returns or a driver that is stuck leaves a process that is alive and does nothing. Workers that wait
for it give up after a time of their own, but a single worker has nobody who waits.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

__all__ = ["Watchdog"]


class Watchdog:
    """Ends the process when it has shown no sign of life for too long; where it stood is in its log by then.

    Args:
        seconds: without a sign of life.

    Example:
        >>> watchdog = Watchdog(60.0)
        >>> watchdog.heartbeat()
        >>> watchdog.stop()
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def heartbeat(self) -> None:
        """Give a sign of life."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(self._seconds / 4, 5.0)):
            if time.monotonic() - self._last > self._seconds:
                print(
                    f"no sign of life for {self._seconds:g} s; the worker ends itself. It stands here:", file=sys.stderr
                )
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                sys.stderr.flush()
                os._exit(1)  # anything gentler would wait for the thread that hangs
