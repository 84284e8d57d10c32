"""Text as a terminal prints it: what would steer the terminal, or reorder a line, is written as an escape sequence."""

from __future__ import annotations

import unicodedata

__all__ = ["printable", "printable_name"]

# Controls, marks that reorder what follows (as U+202E does), and what has no character at all.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text: str) -> str:
    r"""Return a text with each character that is not printed as it is, except line breaks and tabs, as its code.

    Example:
        >>> print(printable("\x1b[31mred\x07 \u202etxt.exe é 中"))
        \x1b[31mred\x07 \u202etxt.exe é 中
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape, text))


def printable_name(name: str, limit: int | None = None) -> str:
    r"""Return a name, such as that of a file, as it can be shown on one line.

    Args:
        name: Any text, with control characters, line breaks or lone surrogates.
        limit: Characters after which it is cut, or None.

    Example:
        >>> print(printable_name("caf\udce9/\n\x1b[2J.png"), printable_name("long name", limit=4))
        caf\udce9/\n\x1b[2J.png long...
    """
    shown = printable(name).replace("\n", "\\n").replace("\t", "\\t")
    return shown if limit is None or len(shown) <= limit else f"{shown[:limit]}..."


def _escape(letter: str) -> str:
    if letter in "\n\t" or letter.isprintable() or unicodedata.category(letter) not in _UNPRINTABLE:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode()
