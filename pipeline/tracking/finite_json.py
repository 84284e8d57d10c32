"""JSON without the numbers that are not finite."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["drop_nonfinite", "one_line_json"]


def drop_nonfinite(value: Any) -> Any:
    """Return a value without the numbers that are not finite: JSON has none, and other readers refuse Python's NaN.

    Args:
        value: A value that is JSON otherwise. A dict loses the key, and in a list the number becomes ``None``.

    Example:
        >>> drop_nonfinite({"loss": float("nan"), "step": 3, "losses": [1.0, float("inf")]})
        {'step': 3, 'losses': [1.0, None]}
    """
    if isinstance(value, dict):
        finite = {key: item for key, item in value.items() if not isinstance(item, float) or math.isfinite(item)}
        return {key: drop_nonfinite(item) for key, item in finite.items()}
    if isinstance(value, list | tuple):
        return [drop_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line_json(value: dict[str, Any]) -> str:
    """Return a line of JSON, without the numbers that are not finite.

    Args:
        value: A dict that is JSON otherwise.

    Example:
        >>> one_line_json({"loss": float("nan"), "step": 3})
        '{"step": 3}'
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(drop_nonfinite(value))
