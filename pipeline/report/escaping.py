"""Untrusted text in Markdown, as a report and the tracker show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pipeline.runtime.printable import printable

__all__ = ["code", "code_block", "escape", "format_value", "table"]

# MLflow's tables have no space between columns.
_CELL_END = "&emsp;"


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


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown, of cells that are Markdown.

    Args:
        heads: Heads of the columns.
        rows: Rows of cells, one cell for each head.

    Example:
        >>> print(table(["trial", "score"], [["000", "4.5"]]))
        | trial&emsp; | score&emsp; |
        | --- | --- |
        | 000 | 4.5 |
    """
    heads = list(heads)
    lines = [[head + _CELL_END for head in heads], ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_value(value: Any) -> str:
    """Return the value of a key as a report prints it.

    Example:
        >>> format_value(0.00012345), format_value("ula"), format_value(None)
        ('0.0001234', 'ula', '-')
    """
    if value is None:
        return "-"
    return f"{value:#.4g}" if isinstance(value, float) else str(value)
