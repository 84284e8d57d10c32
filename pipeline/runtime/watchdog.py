"""Watchdog that ends a process which hangs, so that its trial can restart from the last checkpoint.

A read that never returns or a deadlock in a device driver leaves a process that is alive and does nothing. Workers that
wait for it give up after a timeout of their own, but nothing waits for a single worker.
"""

from __future__ import annotations

import faulthandler
import math
import threading
import time

__all__ = ["Watchdog"]

# The timer is restarted once it has run for this share of the limit: that starts a thread, and a busy machine makes
# each step of a chain wait for it.
_SHARE = 0.01
# Not sys.stderr, which may be an object without a file; a worker's log is what the descriptor is redirected to.
_STDERR = 2


class Watchdog:
    """Watchdog that ends the process with status 1 after too long without a heartbeat.

    On standard error there is then ``Timeout (H:MM:SS)!``, with the limit, and the stack of every thread. The timer is
    a thread of C: it also ends a call that never releases the interpreter's lock. A process has one such timer, and so
    one watchdog at a time.

    Args:
        seconds: Time without a heartbeat after which the process ends, or after a hundredth less.

    Example:
        >>> watchdog = Watchdog(60.0)
        >>> watchdog.heartbeat()
        >>> watchdog.stop()
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = min(seconds, threading.TIMEOUT_MAX)
        self._stopped, self._due = False, -math.inf
        self.heartbeat()

    def heartbeat(self) -> None:
        """Restart the timer, unless it has just been; a watchdog that was stopped stays so."""
        now = time.monotonic()
        if not self._stopped and now >= self._due:
            self._due = now + _SHARE * self._seconds
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=_STDERR)

    def stop(self) -> None:
        """Stop the timer."""
        self._stopped = True
        faulthandler.cancel_dump_traceback_later()
