"""Untrusted text in Markdown, as a report and the tracker show it."""

from __future__ import annotations

import re

from pipeline.runtime.printable import printable

__all__ = ["code", "code_block", "escape"]


def escape(text: str) -> str:
    r"""Escape a text for Markdown: on one line, and nothing in it is markup.

    Example:
        >>> print(escape("a|b <c>"))
        a\|b \<c\>
    """
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", printable(" ".join(str(text).split())))


def code(text: str) -> str:
    """Return a text as code in Markdown, in a table as well.

    Example:
        >>> print(code("a|b"))
        `a/b`
    """
    return "`" + printable(" ".join(str(text).split())).replace("`", "'").replace("|", "/") + "`"


def code_block(lines: list[str], language: str = "sh") -> str:
    r"""Return lines as a block of code in Markdown, as they are: the fence is longer than any that is in them.

    Example:
        >>> print(code_block(["echo 'a`b'", "```"]))
        ````sh
        echo 'a`b'
        ```
        ````
    """
    block = printable("\n".join(lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block)), default=0))
    return f"{fence}{language}\n{block}\n{fence}"
