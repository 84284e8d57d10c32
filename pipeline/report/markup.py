"""Untrusted text in Markdown, as a report and the tracker show it."""

from __future__ import annotations

import re

__all__ = ["code", "escape"]


def escape(text: str) -> str:
    r"""Escape a text for Markdown: on one line, and nothing in it is markup.

    Example:
        >>> print(escape("a|b <c>"))
        a\|b \<c\>
    """
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", " ".join(str(text).split()))


def code(text: str) -> str:
    """Return a text as code in Markdown, in a table as well.

    Example:
        >>> print(code("a|b"))
        `a/b`
    """
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "/") + "`"
