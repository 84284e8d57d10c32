"""Redaction of secrets: a log, a config, a manifest, a job and a tracker can be read by others.

A config that has a credential in it is refused before anything starts, since it is written into the results, into each
checkpoint and into MLflow. Whatever is logged or written of an error goes through :func:`redact` first, since libraries
quote URLs, and now and then a piece of the environment, in their errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pipeline.runtime.errors import UserError

__all__ = ["is_secret_name", "redact", "refuse_secrets", "without_query"]

_NAMES = re.compile(r"SECRET|TOKEN(?!IZ)|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(^|_)KEY($|_)|APIKEY", re.IGNORECASE)
# The location of a secret is none itself.
_LOCATIONS = re.compile(r"_(FILE|PATH|DIR|HOME)$", re.IGNORECASE)
# A shorter text does not count as a secret, since it is found in anything.
_MIN_LENGTH = 8
_HIDDEN = "***"

# The text between the scheme and the host. Of HTTP a name alone may be a token; elsewhere it is a container's, as in
# abfs://container@account/path. Libraries of databases take passwords with a slash in them; what is a port is none.
_LOGIN = re.compile(
    r"\b(?P<scheme>[a-z][a-z0-9+.\-]*)://(?P<login>[^\s/?#'\"<>`]*|[^\s/?#@:'\"<>`]*:(?!\d+/)[^\s'\"<>`]*)@",
    re.IGNORECASE,
)
# A parameter of a URL, by a name that Amazon, Google, Microsoft or anybody else gives to what signs it or lets one in.
_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:[\w.\-]*[._\-])?(?:sign|signature|sig|(?:access|auth|api|id|session|security)?token|credentials?"
    r"|secret|password|passwd|pwd|auth|authorization|(?:aws)?(?:api|secret|access)?key(?:id)?|key-pair-id|policy)=)"
    r"[^\s&;#'\"<>`]+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<scheme>\bBearer|\bauthorization['\"]?\s*[:=]\s*['\"]?\w+)(?P<blank>\s+)[^\s'\"<>]+", re.IGNORECASE
)


def is_secret_name(variable: str) -> bool:
    """Return whether the name of an environment variable says that its value is secret.

    Example:
        >>> [is_secret_name(name) for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_ENDPOINT_URL")]
        [True, True, False]
    """
    return _NAMES.search(variable) is not None and _LOCATIONS.search(variable) is None


def redact(value: Any) -> Any:
    """Return a value without credentials: passwords and signatures of URLs, and secrets of this process's environment.

    Args:
        value: A text, or dicts and lists with texts at any depth; anything else is returned as it is.

    Returns:
        The value, with ``***`` in place of each credential.

    Example:
        >>> redact("no host at https://me:hush@mlflow.example.org/a, nor at /x.zip?X-Amz-Signature=c0ffee")
        'no host at https://***@mlflow.example.org/a, nor at /x.zip?X-Amz-Signature=***'
    """
    return _without(value, _hidden())


def _without(value: Any, hidden: dict[str, str]) -> Any:
    if isinstance(value, str):
        return _text_without(value, hidden)
    if isinstance(value, dict):
        return {_without(key, hidden): _without(item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = (_without(item, hidden) for item in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _text_without(text: str, hidden: dict[str, str]) -> str:
    for secret in hidden:
        text = text.replace(secret, _HIDDEN)
    if "://" in text:
        text = _LOGIN.sub(_login_without, text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\g<name>{_HIDDEN}", text)
    return _HEADER.sub(rf"\g<scheme>\g<blank>{_HIDDEN}", text)


def _login_without(match: re.Match[str]) -> str:
    scheme, login = match["scheme"], match["login"]
    user, colon, _ = login.partition(":")
    if scheme.lower() in ("http", "https"):
        return f"{scheme}://{_HIDDEN}@"
    return f"{scheme}://{user}:{_HIDDEN}@" if colon else match[0]


def without_query(url: str | None) -> str | None:
    """Return a URL without its query if that signs it, since a signature expires within hours.

    Args:
        url: A path or a URL.

    Example:
        >>> without_query("https://bucket.s3.amazonaws.com/lsun.zip?X-Amz-Date=20260101T000000Z&X-Amz-Signature=c0ffee")
        'https://bucket.s3.amazonaws.com/lsun.zip'
        >>> without_query("https://example.org/get?file=lsun.zip")
        'https://example.org/get?file=lsun.zip'
    """
    if url is None:
        return None
    return redact(url.partition("?")[0] if "://" in url and _PARAMETER.search(url) else url)


def refuse_secrets(values: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """Refuse values that others must not read.

    Args:
        values: Nested keys, as they are sent or written.
        but: Keys that may have one, since they are written nowhere as they are.

    Raises:
        UserError: If a URL has a password or a signature in it, or a value has that of an environment variable whose
            name says that it is secret. The line names the key, and never the value.

    Example:
        >>> refuse_secrets({"tracking": {"uri": "https://me:hush@mlflow.example.org"}})
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: tracking.uri has a password in it, and would be written where others can \
read it: \
leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment
    """
    hidden = _hidden()
    for key, text in _texts(values):
        if key in but:
            continue
        credential = next((f"the value of {name}" for secret, name in hidden.items() if secret in text), None)
        credential = credential or _credential(text)
        if credential:
            raise UserError(
                f"{key} has {credential} in it, and would be written where others can read it: leave it out, and "
                f"{_instead(key, text)}"
            )


def _credential(text: str) -> str | None:
    """Describe the credential of a URL; None if it has none."""
    if "://" not in text:
        return None
    for match in _LOGIN.finditer(text):
        if _login_without(match) != match[0] and match["login"] != _HIDDEN:
            return "a password" if ":" in match["login"] else "a name or a token"
    return "a signature or a token" if _PARAMETER.search(text) else None


def _instead(key: str, text: str) -> str:
    if key.endswith("tracking.uri"):
        if text.startswith("http"):
            return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        return "let the database's own library find it, as in PGPASSWORD or ~/.pgpass"
    return "have it in the environment of the machines that run it"


def _hidden() -> dict[str, str]:
    """Return the secrets of this process's environment, also as a URL writes them, each with its variable's name."""
    secrets = {}
    for name, value in os.environ.items():
        # A file that holds the secret is none itself.
        if is_secret_name(name) and len(value) >= _MIN_LENGTH and not os.path.exists(value):
            secrets |= {value: name, quote(value, safe=""): name, quote(value): name}
        elif "://" in value and (password := _password(value)):
            secrets |= {password: name, unquote(password): name}
    # The longest first: one may be a part of another.
    return dict(sorted(secrets.items(), key=lambda entry: -len(entry[0])))


def _password(url: str) -> str | None:
    """Return the password of a URL, such as MLFLOW_TRACKING_URI, where it is long enough to be searched for."""
    try:
        password = urlsplit(url).password
    # Not a URL after all.
    except ValueError:
        return None
    return password if password and len(password) >= _MIN_LENGTH else None


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
