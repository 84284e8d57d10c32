"""A process that hangs ends, and says where it stood; one that lives does not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

from pipeline.runtime.watchdog import Watchdog

HANGS = """
import threading
from pipeline.runtime.watchdog import Watchdog

def stuck():
    threading.Event().wait(60)

watchdog = Watchdog(0.5)
stuck()
"""


def test_a_process_that_hangs_ends_and_says_where():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(HANGS)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "no sign of life for 0.5 s" in done.stderr and "in stuck" in done.stderr


def test_one_that_gives_signs_of_life_goes_on():
    watchdog = Watchdog(0.4)  # or else this very process would end
    for _ in range(20):
        time.sleep(0.05)
        watchdog.heartbeat()
    watchdog.stop()
    time.sleep(0.6)
