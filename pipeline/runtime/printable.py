"""Text as a terminal prints it: what would steer the terminal, or reorder a line, is written as an escape sequence."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

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


def _escape(letter: str) -> str:
    if letter in "\n\t" or letter.isprintable() or unicodedata.category(letter) not in _UNPRINTABLE:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode()
