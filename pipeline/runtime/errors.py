"""Exceptions that have a meaning for the whole pipeline, and their one-line form."""

from __future__ import annotations

__all__ = ["LockLost", "NonFiniteLoss", "Preempted", "UserError", "one_line"]


class UserError(Exception):
    """Input that the user can fix.

    The message is one line: what is wrong, and what to do next. Every command prints it as it is and exits with
    status 2; nothing has been started or lost when it is raised.

    Example:
        >>> str(UserError("no store at s3://bucket/lsun: make it with `python -m pipeline.shards conf=lsun`"))[:8]
        'no store'
    """


class LockLost(Exception):
    """Another process has taken over a folder that this one was writing to; the message is one line that names it."""


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite; the message has the base step and the value."""


class Preempted(Exception):
    """A machine of the trial is about to be taken away; the trial's state is in a checkpoint."""


def one_line(error: BaseException, limit: int | None = None) -> str:
    r"""Return the message of an exception on one line.

    Args:
        error: The exception. One without a message is named by its class.
        limit: Characters after which the line is cut, or None.

    Example:
        >>> one_line(OSError("connection\n  refused")), one_line(OSError("connection refused"), limit=10)
        ('connection refused', 'connection')
        >>> one_line(TimeoutError())
        'TimeoutError'
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__
