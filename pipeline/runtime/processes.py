"""Processes that end when the one that started them does."""

from __future__ import annotations

import multiprocessing
import os
import threading

__all__ = ["exit_with_parent"]


def exit_with_parent() -> None:
    """End this process, started through ``multiprocessing``, as soon as the one that started it is gone.

    Otherwise it would wait for work for ever, and keep its memory. A process that checks whether it has another parent
    than at its start, as torch's loader workers do, does not notice one that was killed before that.
    """
    threading.Thread(target=_wait, name="end with parent", daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
