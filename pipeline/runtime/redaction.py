"""Redaction of secrets: a log, a config, a manifest, a job and a tracker can be read by others.

A config that has a credential in it is refused before anything starts, since it is written into the results, into each
checkpoint and into MLflow. Whatever is logged or written of an error goes through :func:`redact` first, since libraries
quote URLs, and now and then a piece of the environment, in their errors.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pipeline.runtime.errors import LockLost, NonFiniteLoss, Preempted, UserError

__all__ = ["is_secret_name", "looks_random", "redact", "redacted_errors", "refuse_secrets", "without_query"]

_NAMES = re.compile(
    r"SECRET|TOKEN(?!IZ)|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(^|_)KEY($|_)|APIKEY|(^|_|SSH)PASS($|_)|_PWD$|(^|_)PAT($|_)"
    r"|COOKIE|CONNECTION_?STRING|CONN_STR|WEBHOOK|(^|_)DSN($|_)|(^|_)JWT($|_)|BEARER|SIGNATURE",
    re.IGNORECASE,
)
# The location of a secret is none itself.
_LOCATIONS = re.compile(r"_(FILE|PATH|DIR|HOME|SOCK)$", re.IGNORECASE)
# A shorter text does not count as a secret, since it is found in anything.
_MIN_LENGTH = 8
_HIDDEN = "***"

# The text between the scheme and the host. Of HTTP a name alone may be a token; elsewhere it is a container's, as in
# abfs://container@account/path. Libraries of databases take passwords with a slash in them; what is a port is none.
_LOGIN = re.compile(
    r"\b(?P<scheme>[a-z][a-z0-9+.\-]*)://(?P<login>[^\s/?#'\"<>`]*|[^\s/?#@:'\"<>`]*:(?!\d+/)[^\s'\"<>`]*)@",
    re.IGNORECASE,
)
# A parameter by a name that Amazon, Google, Microsoft or anybody else gives to what signs a URL or lets one in: of a
# path that an error quotes without its host, of a connection string, or of a form.
_PARAMETER = re.compile(
    r"(?P<name>(?:[?&;]|(?<![\w.\-]))(?:[\w.\-]*[._\-])?(?:sign|signature|sig|hmac|(?:access|auth|api|id|session|security"
    r"|refresh)?_?token|credentials?|secret|client_?secret|password|passphrase|passwd|pwd|authorization|ticket"
    r"|SharedAccess(?:Key|Signature)|(?:aws|account|shared)?(?:api|secret|access|account)_?key(?:id)?|key-pair-id"
    r"|policy)=)[^\s&;#'\"<>`,]+",
    re.IGNORECASE,
)
# What follows the first ? or # of a URL, and each parameter of it.
_QUERY = re.compile(r"(?P<url>\b[a-z][a-z0-9+.\-]*://[^\s?#'\"<>`]*)(?P<query>[?#][^\s'\"<>`]*)", re.IGNORECASE)
_PAIR = re.compile(r"(?P<name>[?&;#/](?P<key>[^?&;#=/]*)=)(?P<value>[^&;#]+)")
# Parameters of a URL that say what is requested, and not who may request it. Any other may be a way in.
_HARMLESS = frozenset(
    (
        *("application_name", "branch", "charset", "connect_timeout", "database", "dataset", "db", "dl", "download"),
        *("driver", "encoding", "endpoint", "export", "file", "filename", "format", "host", "id", "lang", "limit"),
        *("list-type", "offset", "page", "path", "port", "prefix", "raw", "ref", "region", "revision", "schema"),
        *("split", "sslmode", "table", "timeout", "type", "v", "version", "workflowtype", "workspace"),
        *("x-amz-algorithm", "x-amz-date", "x-amz-expires", "x-amz-signedheaders"),
    )
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
    return _without(value, _hidden(random=True))


@contextlib.contextmanager
def redacted_errors() -> Iterator[None]:
    """Raise an error of the block again without credentials, where its traceback has some.

    Ray logs the whole traceback where it happens, and only there are that machine's secrets known.

    Raises:
        RuntimeError: In place of an error that has credentials; one of :mod:`pipeline.runtime.errors` keeps its type.
    """
    try:
        yield
    except Exception as error:
        text = traceback.format_exc()
        if redact(text) == text:
            raise
        kind = type(error) if isinstance(error, LockLost | UserError | NonFiniteLoss | Preempted) else RuntimeError
        raise kind(redact(str(error))) from None


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
    text = _redact_parameters(text)
    return _HEADER.sub(rf"\g<scheme>\g<blank>{_HIDDEN}", text)


def _login_without(match: re.Match[str]) -> str:
    scheme, login = match["scheme"], match["login"]
    user, colon, _ = login.partition(":")
    if scheme.lower() in ("http", "https"):
        return f"{scheme}://{_HIDDEN}@"
    return f"{scheme}://{user}:{_HIDDEN}@" if colon else match[0]


def _pair_without(match: re.Match[str]) -> str:
    return match[0] if match["key"].lower() in _HARMLESS else f"{match['name']}{_HIDDEN}"


def _redact_parameters(text: str) -> str:
    """Return a text without the values of parameters that may let one in."""
    if "=" not in text:
        return text
    if "://" in text:
        text = _QUERY.sub(lambda match: match["url"] + _PAIR.sub(_pair_without, match["query"]), text)
    return _PARAMETER.sub(rf"\g<name>{_HIDDEN}", text)


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
    signed = "://" in url and _redact_parameters(url) != url
    return redact(re.split(r"[?#]", url, maxsplit=1)[0] if signed else url)


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
    """Describe the credential of a URL or a connection string; None if it has none."""
    for match in _LOGIN.finditer(text):
        if _login_without(match) != match[0] and match["login"] != _HIDDEN:
            return "a password" if ":" in match["login"] else "a name or a token"
    text = text.replace(f"={_HIDDEN}", "")
    return "a signature or a token" if _redact_parameters(text) != text else None


def _instead(key: str, text: str) -> str:
    if key.endswith("tracking.uri"):
        if text.startswith("http"):
            return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        return "let the database's own library find it, as in PGPASSWORD or ~/.pgpass"
    return "have it in the environment of the machines that run it"


def _hidden(*, random: bool = False) -> dict[str, str]:
    """Return the secrets of this process's environment, also as a URL writes them, each with its variable's name.

    Args:
        random: Whether to add values that look random, whatever their variables are called. They are not refused: what
            was typed may be one of them, such as the name of a run.
    """
    return _secrets_of(tuple(os.environ.items()), tuple(sys.argv), random)


@functools.lru_cache(maxsize=4)
def _secrets_of(environment: tuple[tuple[str, str], ...], arguments: tuple[str, ...], random: bool) -> dict[str, str]:
    secrets = {}
    for name, value in environment:
        # A file that holds the secret is none itself.
        if is_secret_name(name) and len(value) >= _MIN_LENGTH and not os.path.exists(value):
            secrets |= {value: name, quote(value, safe=""): name, quote(value): name}
        elif "://" in value and (password := _password(value)):
            secrets |= {password: name, unquote(password): name}
        elif random and not _PUBLIC.search(name) and looks_random(value) and not _is_part(value, arguments):
            secrets |= {value: name, quote(value, safe=""): name}
    # The longest first: one may be a part of another.
    return dict(sorted(secrets.items(), key=lambda entry: -len(entry[0])))


def _is_part(value: str, arguments: tuple[str, ...]) -> bool:
    """Return whether a value was typed on the command line, where nobody writes a secret that is to be hidden."""
    return any(value in argument for argument in arguments)


# Variables that name a thing: their values are no secrets, however random they look.
_PUBLIC = re.compile(
    r"(^|_)(SHA|COMMIT|HASH|DIGEST|REV|REVISION|CHECKSUM|U?UID|ID|IDS|NAME|HOST|HOSTNAME|NODE|POD|VERSION|TAG|BRANCH)($|_)",
    re.IGNORECASE,
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# Shorter, chance alone makes words look random. Longer, it is a text.
_RANDOM_LENGTHS = range(16, 4097)


@functools.lru_cache(maxsize=1024)
def looks_random(value: str) -> bool:
    """Return whether a text looks like a key or a token: long, on one line, and neither a path nor made of words.

    In words and names a capital or a digit follows a letter now and then; in a random text every second time.

    Example:
        >>> looks_random("ghp_x7Kq2mZ9vR4tB8nW3cY6dF1gH5jL0pS"), looks_random("/usr/lib/x86_64-linux-gnu/libc.so.6")
        (True, False)
        >>> looks_random("gebm-2026-11-29-trial-000"), looks_random("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b")
        (False, True)
    """
    if _UUID.fullmatch(value):
        return True
    if len(value) not in _RANDOM_LENGTHS or "://" in value or value.startswith(("/", "~", ".")):
        return False
    # Of base64 the parts between slashes; of lists and paths none is long enough.
    longest = max(re.findall(r"[A-Za-z0-9+=]+", value), key=len, default="")
    if len(longest) < _RANDOM_LENGTHS.start or re.search(r"\s", value):
        return False
    kinds = ["d" if letter.isdigit() else "u" if letter.isupper() else "l" for letter in longest]
    # A capital that begins a word is no change.
    changes = sum(one != other and one + other != "ul" for one, other in itertools.pairwise(kinds))
    return changes / (len(longest) - 1) > _MIN_CHANGES or re.search(r"[b-df-hj-np-tv-xz]{6}", longest, re.I) is not None


# Words in camel case have a sixth, numbers in names less; random letters and digits about a half, hexadecimal as well.
_MIN_CHANGES = 0.22


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
