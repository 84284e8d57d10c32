"""Keys of an experiment as words of a command, which a user copies from a report into a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

__all__ = ["words"]

_PLAIN = re.compile(r"[a-z_/.][\w/.:@%+-]*", re.ASCII | re.IGNORECASE)  # what Hydra takes for a string without quotes
_NOT_STRINGS = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)


def words(keys: Mapping[str, Any]) -> list[str]:
    """What to type so that Hydra sets these keys to these values.

    Args:
        keys: key to a number, a string, a truth value, None, or a list or mapping of such.

    Returns:
        A word a key, quoted for a shell where it has to be.

    Example:
        >>> print(*words({"train.base_lr": 1e-4, "sampler.name": "ula", "model.energy": None}))
        train.base_lr=0.0001 sampler.name=ula model.energy=null
        >>> print(*words({"evaluation.metrics": ["fid", "kid"], "data.store": "s3://bucket/my store"}))
        'evaluation.metrics=[fid,kid]' 'data.store="s3://bucket/my store"'
    """
    return [shlex.quote(f"{key}={_value(value)}") for key, value in keys.items()]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_value(key)}:{_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and not _NOT_STRINGS.fullmatch(value)
        return value if plain else QuotedString(value, Quote.double).with_quotes()
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
