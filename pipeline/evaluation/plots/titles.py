"""Titles of plots, with the temperature of the samples that are shown."""

from __future__ import annotations

__all__ = ["AT_START", "at_temperature"]

AT_START = "at the start: samples of the base"
"""Title of the first picture of each kind, before any step of training and of a chain."""


def at_temperature(title: str, temperature: str | None, separator: str = " ") -> str:
    """Return a title with the temperature of its samples.

    Args:
        title: Title of the plot, or of a part of it.
        temperature: In words; ``None`` for the title alone.
        separator: Between the two.

    Example:
        >>> at_temperature("GEBM", "beta 10: colder than the model"), at_temperature("GEBM", None)
        ('GEBM (beta 10: colder than the model)', 'GEBM')
    """
    return title if temperature is None else f"{title}{separator}({temperature})"
