"""Numbers, seeds and tables as Markdown has them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.claim.results import LABELS
from benchmarks.claim.settings import SEEDS
from pipeline.tracking.seed_statistics import Difference, Estimate

__all__ = ["ABSENT", "change", "estimate", "interval", "number", "paragraph", "seeds", "share_of", "table"]

ABSENT = "-"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as a table has it.

    Example:
        >>> number(3.14159), number(0.00042, 3), number(123456.0), number(math.inf), number(None)
        ('3.14', '4.2e-04', '1.2e+05', 'not finite', '-')
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "not finite"
    if value and (abs(value) >= 1e5 or abs(value) < 0.5 * 10**-digits):
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def estimate(found: Estimate | Difference, digits: int = 2, *, sign: bool = False) -> str:
    """Return a mean with its standard error, if it has one.

    Example:
        >>> estimate(Estimate(2.0, 0.25, 3)), estimate(Estimate(2.0, math.nan, 1), sign=True)
        ('2.00 ± 0.25', '+2.00')
        >>> estimate(Estimate(math.nan, math.nan, 0)), estimate(Estimate(math.nan, math.nan, 2))
        ('-', 'not finite')
    """
    if not found.count:
        return ABSENT
    if not math.isfinite(found.mean):
        return "not finite"
    mean = f"{found.mean:{'+' if sign else ''},.{digits}f}"
    return f"{mean} ± {found.error:,.{digits}f}" if math.isfinite(found.error) else mean


def interval(found: Difference, digits: int = 2) -> str:
    """Return the ends of the interval, if there is one.

    Example:
        >>> interval(Difference(2.0, 0.1, 1.7, 2.3, 5)), interval(Difference(2.0, math.nan, math.nan, math.nan, 1))
        ('1.70 to 2.30', '-')
    """
    return f"{found.low:,.{digits}f} to {found.high:,.{digits}f}" if math.isfinite(found.low) else ABSENT


def change(found: Difference, digits: int = 2) -> str:
    """Return a gain in words: how much lower, or higher, a score is.

    Example:
        >>> change(Difference(2.0, 0.1, 1.7, 2.3, 5)), change(Difference(-2.0, math.nan, math.nan, math.nan, 1))
        ('lower by 2.00 ± 0.10', 'higher by 2.00')
    """
    if not math.isfinite(found.mean):
        return "not finite"
    size = estimate(found._replace(mean=abs(found.mean)), digits)
    return f"{'lower' if found.mean >= 0 else 'higher'} by {size}"


def seeds(found: Mapping[str, Sequence[int]]) -> str:
    """Return which seeds of which objectives.

    Example:
        >>> seeds({"kale_fenchel": [3, 4], "gan": [4], "hinge": [0, 1, 2, 3, 4]})
        'GEBM (KALE-F) seeds 3, 4; GAN (logistic) seed 4; GAN (hinge) all seeds'
    """

    def which(ones: Sequence[int]) -> str:
        if len(ones) == len(SEEDS):
            return "all seeds"
        return f"seed{'s' if len(ones) > 1 else ''} {', '.join(map(str, ones))}"

    return "; ".join(f"{LABELS[name]} {which(ones)}" for name, ones in found.items())


def share_of(count: int, total: int) -> str:
    """Return how many there are of how many.

    Example:
        >>> share_of(3, 25)
        '3 of 25'
    """
    return f"{count} of {total}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """Return the text in lines of at most 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)
