"""Refusals of parts that are not built in: a one-line message that names the plugin's file and line."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pipeline.runtime.errors import UserError, one_line

__all__ = ["RegisteredPart", "place_of", "refusal", "refusing"]


class RegisteredPart(Protocol):
    """Part of a registry, as far as its errors need it."""

    @property
    def name(self) -> str:
        """The name that chooses it."""
        ...

    @property
    def make(self) -> Callable[..., Any]:
        """Builds it."""
        ...

    @property
    def module(self) -> str:
        """Name of the module that registered it."""
        ...


@contextlib.contextmanager
def refusing(part: RegisteredPart, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise the exceptions of a part in the block as a one-line message that names its file.

    Args:
        part: The part.
        passing: Exceptions that are raised as they are, since the caller handles them.
    """
    try:
        yield
    except (UserError, *passing):
        raise
    except (Exception, SystemExit) as error:
        # A ValueError's message is a sentence; of another the type says more.
        text = one_line(error, limit=300)
        reason = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}".removesuffix(": ")
        raise refusal(part, reason, error) from None


def refusal(part: RegisteredPart, reason: str, error: BaseException | None = None) -> UserError:
    """Return the refusal of a part, with its file and its line: of the error, or else of its definition."""
    return UserError(f"{_line_of(part, error)}: {part.name}: {reason}")


def _line_of(part: RegisteredPart, error: BaseException | None) -> str:
    make = part.make.func if isinstance(part.make, functools.partial) else part.make
    # Of a class, the first method that was written: those that a dataclass makes are in no file.
    methods = vars(make).values() if isinstance(make, type) else (make,)
    codes = [method.__code__ for method in methods if hasattr(method, "__code__")]
    code = next((code for code in codes if not code.co_filename.startswith("<")), None)
    file = code.co_filename if code else getattr(sys.modules.get(part.module), "__file__", None) or part.module
    return place_of(error, lambda path: path == file) or (f"{file}:{code.co_firstlineno}" if code else str(file))


def place_of(error: BaseException | None, is_own: Callable[[str], bool]) -> str | None:
    """Return the file and the line of a plugin that an error comes from, such as ``mine.py:3``.

    Args:
        error: The error.
        is_own: Whether a path is one of the plugin's.

    Returns:
        Its innermost line of such a file; ``None`` where it comes from none.
    """
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename):
        return f"{error.filename}:{error.lineno}"
    trace = traceback.walk_tb(error.__traceback__ if error is not None else None)
    own = [(frame.f_code.co_filename, line) for frame, line in trace if is_own(frame.f_code.co_filename)]
    return f"{own[-1][0]}:{own[-1][1]}" if own else None
