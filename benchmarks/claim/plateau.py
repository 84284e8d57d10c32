"""Whether the learning curve of a base has come to a plateau, by the rule that was fixed before the runs.

The mean FID of the last three looks is no better than that of the three before, by the standard error of their
difference. The rule takes a slow fall within the noise of six looks for a plateau, so where it first holds is luck. It
ends no run: it says of one that has ended whether its base was still improving.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["first_plateau", "is_plateau", "recent_fall"]

_LOOKS = 3


def is_plateau(fids: Sequence[float]) -> bool:
    """Return whether a base is at a plateau.

    Args:
        fids: FID at each look so far.

    Example:
        >>> is_plateau([9.0, 6.0, 5.0, 4.0, 3.5, 3.2]), is_plateau([9.0, 3.1, 3.3, 3.2, 3.1, 3.3, 3.2])
        (False, True)
    """
    if len(fids) < 2 * _LOOKS:
        return False
    before, last = fids[-2 * _LOOKS : -_LOOKS], fids[-_LOOKS:]
    error = math.sqrt((statistics.variance(before) + statistics.variance(last)) / _LOOKS)
    return statistics.fmean(before) - statistics.fmean(last) < error


def first_plateau(fids: Sequence[float]) -> int | None:
    """Return after how many looks the rule first holds; ``None`` if it never does.

    Example:
        >>> first_plateau([9.0, 6.0, 5.0, 4.0, 4.1, 4.0, 4.1, 4.0, 4.1]), first_plateau([9.0, 6.0])
        (9, None)
    """
    return next((count for count in range(1, len(fids) + 1) if is_plateau(fids[:count])), None)


def recent_fall(fids: Sequence[float]) -> float:
    """Return by what share the mean FID of the last three looks is below that of the three before.

    Example:
        >>> recent_fall([4.0, 4.0, 4.0, 3.0, 3.0, 3.0]), recent_fall([4.0])
        (0.25, nan)
    """
    if len(fids) < 2 * _LOOKS:
        return math.nan
    return 1 - statistics.fmean(fids[-_LOOKS:]) / statistics.fmean(fids[-2 * _LOOKS : -_LOOKS])
