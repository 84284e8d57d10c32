"""A process that hangs ends, and its log has the stacks; one that lives does not."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import time

import pytest

from pipeline.runtime.watchdog import Watchdog

HANGS = """
import re, threading
from pipeline.runtime.watchdog import Watchdog

def stuck():
    {call}

watchdog = Watchdog(0.5)
stuck()
"""


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("threading.Event().wait(60)", id="waits"),
        # Exponential, in C, and the interpreter's lock is held all the time: no thread of Python can run.
        pytest.param("re.match(r'(a+)+$', 'a' * 64 + 'b')", id="holds the interpreter's lock"),
    ],
)
def test_a_process_that_hangs_ends_within_the_limit_and_its_log_has_the_stack(call):
    done = subprocess.run([sys.executable, "-c", HANGS.format(call=call)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "Timeout (0:00:00.500000)!" in done.stderr and "in stuck" in done.stderr


def test_a_process_with_heartbeats_continues():
    # Otherwise this very process would end.
    watchdog = Watchdog(1.0)
    for _ in range(20):
        time.sleep(0.1)
        watchdog.heartbeat()
    watchdog.stop()
    watchdog.heartbeat()
    time.sleep(1.2)


def test_heartbeats_restart_the_timer_no_more_than_a_hundred_times_in_the_limit(monkeypatch):
    restarts = []
    restart = faulthandler.dump_traceback_later
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *a, **kw: (restarts.append(a), restart(*a, **kw)))
    watchdog, started = Watchdog(60.0), time.monotonic()
    for _ in range(10_000):
        watchdog.heartbeat()
    watchdog.stop()
    assert 1 <= len(restarts) <= 1 + (time.monotonic() - started) / 0.6
