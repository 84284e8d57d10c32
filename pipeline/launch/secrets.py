"""What must not travel: a job, a manifest and a script can be read by others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import UserError

__all__ = ["refuse_secrets", "sounds_secret"]

_NAMES = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|(^|_)KEY($|_)", re.IGNORECASE)
_SHORTEST = 8  # characters of what counts as a secret: a shorter one is found in anything


def sounds_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that its value is not for everybody.

    Example:
        >>> [sounds_secret(name) for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_ENDPOINT_URL")]
        [True, True, False]
    """
    return _NAMES.search(variable) is not None


def refuse_secrets(values: dict[str, Any]) -> None:
    """Refuse values that others must not read.

    Args:
        values: nested keys, as they are sent.

    Raises:
        UserError: a URL has a password in it, or a value has that of an environment variable whose name says that it
            is secret. The line names the key, and never the value.

    Example:
        >>> refuse_secrets({"tracking": {"uri": "https://me:hush@mlflow.example.org"}})
        Traceback (most recent call last):
        ...
        pipeline.errors.UserError: tracking.uri has a password in it, and would be written where others can read it: \
leave it out, and let the cluster have it in its environment
    """
    hidden = {value: name for name, value in os.environ.items() if sounds_secret(name) and len(value) >= _SHORTEST}
    for key, text in _texts(values):
        found = "a password" if _has_password(text) else None
        found = next((f"the value of {name}" for value, name in hidden.items() if value in text), found)
        if found:
            raise UserError(
                f"{key} has {found} in it, and would be written where others can read it: leave it out, and let the "
                f"cluster have it in its environment"
            )


def _has_password(text: str) -> bool:
    try:
        return "://" in text and bool(urlsplit(text).password)
    except ValueError:  # no URL after all
        return False


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield key or str(name), str(name)
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, key)
