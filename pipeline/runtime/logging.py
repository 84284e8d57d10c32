"""Logging of the driver: a redacting filter, and a handler for terminals.

A module logs to ``logging.getLogger(__name__)``. Nothing else has to be remembered: whatever a handler of
:func:`logging_to` gets has been redacted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from rich.console import Console

from pipeline.runtime.printable import printable
from pipeline.runtime.redaction import redact

__all__ = ["ConsoleHandler", "RedactingFilter", "logging_to"]

_ROOT = __name__.partition(".")[0]


class RedactingFilter(logging.Filter):
    """Filter that takes secrets out of a record's message, and what would steer a terminal.

    Example:
        >>> record = logging.LogRecord("x", logging.INFO, "x.py", 1, "no host at %s", ("https://me:hush@host/",), None)
        >>> RedactingFilter().filter(record), record.getMessage()
        (True, 'no host at https://***@host/')
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the message, its arguments included, and let the record pass."""
        record.msg, record.args = printable(redact(record.getMessage())), None
        return True


class ConsoleHandler(logging.Handler):
    """Handler that prints records on a rich console, warnings in yellow.

    Args:
        console: Where to print.
        timestamps: True where the output is a log: each record begins with the time and is not folded.
    """

    def __init__(self, console: Console, *, timestamps: bool) -> None:
        super().__init__()
        self._console, self._timestamps = console, timestamps

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; a console that is gone ends the driver as it does for all that is printed."""
        stamp = time.strftime("%H:%M:%S  ", time.localtime(record.created)) if self._timestamps else ""
        self._console.print(
            stamp + record.getMessage(),
            style="yellow" if record.levelno >= logging.WARNING else None,
            highlight=False,
            markup=False,
            soft_wrap=self._timestamps,
        )


@contextlib.contextmanager
def logging_to(*handlers: logging.Handler) -> Iterator[None]:
    """Send what the pipeline logs to these handlers alone, redacted, while the block runs.

    Args:
        handlers: The handlers, in the order in which they get a record.

    Example:
        >>> import sys
        >>> with logging_to(logging.StreamHandler(sys.stdout)):
        ...     logging.getLogger("pipeline.doctest").info("to %s", "s3://key:hush-hush@bucket")
        to s3://key:***@bucket
    """
    logger, redacting = logging.getLogger(_ROOT), RedactingFilter()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    # Hydra may have given the root logger a handler, which would print everything twice.
    logger.propagate = False
    for handler in handlers:
        handler.addFilter(redacting)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.removeFilter(redacting)
        logger.setLevel(level)
        logger.propagate = propagate
