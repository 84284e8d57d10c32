"""What can go wrong that has a name."""

from __future__ import annotations

__all__ = ["NonFiniteLoss", "Preempted", "UserError"]


class UserError(Exception):
    """Input that the user can mend.

    The message is one line: what is wrong, and what to do next. Every verb prints it as it is and exits with
    status 2; nothing has been started or lost when it is raised.

    Example:
        >>> str(UserError("no store at s3://bucket/lsun: make it with `python -m pipeline.shards conf=lsun`"))[:8]
        'no store'
    """


class NonFiniteLoss(ArithmeticError):
    """A loss went to NaN or infinity; the message has the base step and the value."""


class Preempted(Exception):
    """A machine of the trial's is about to be taken away; where the trial stands is in a checkpoint."""
