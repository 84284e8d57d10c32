"""Arguments of a command line: the value of a text key is what was typed, and a mistyped one is explained in a line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from pipeline.config import part_settings
from pipeline.config.fields import keys
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import redact

__all__ = ["GROUPS", "explain", "format_text", "quote_texts", "text_keys"]

GROUPS = ("conf", "sweeps", "launch")
"""Config groups, whose choices are names of files or of launchers and no keys."""

# Beginnings of the keys that are settings of a part.
_SETTINGS = tuple(f"{group}." for group in part_settings.GROUPS)
_OVERRIDE = re.compile(r"(?P<prefix>[+~]{0,2})(?P<key>[^=]*)=(?P<value>.*)", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*(@[\w.:-]*)?", re.ASCII)
_NULL = re.compile(r"\s*null\s*", re.IGNORECASE)
# What Hydra reads as a text without quotes.
_PLAIN = re.compile(r"[a-z_/.][\w/.:@%+-]*", re.ASCII | re.IGNORECASE)
_NOT_TEXTS = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)
_MAX_SHOWN = 80


def text_keys(config_class: type, prefix: str = "") -> frozenset[str]:
    """Return the keys of a config class whose value is a text, such as a path; ``env.`` for a mapping of texts.

    Args:
        config_class: Dataclass of keys.
        prefix: What precedes their names, such as ``"launch."``.
    """
    types = {"str": "", "str | None": "", "dict[str, str]": "."}
    return frozenset(f"{key.name}{types[key.type]}" for key in keys(config_class, prefix) if key.type in types)


def format_text(text: str) -> str:
    """Return a text as the value of an override, in quotes where Hydra would read it as something else.

    Example:
        >>> print(format_text("lsun"), format_text("a(1)"), format_text("null"))
        lsun "a(1)" "null"
    """
    plain = _PLAIN.fullmatch(text) and not _NOT_TEXTS.fullmatch(text)
    return text if plain else QuotedString(text, Quote.double).with_quotes()


def quote_texts(args: Iterable[str], texts: frozenset[str]) -> list[str]:
    """Quote the values of text keys for Hydra's grammar, in which ``( ) , = #`` and letters beyond ASCII mean more.

    A value that is in quotes already, as in a command that was printed, and ``null`` stay as they are.

    Args:
        args: Arguments of a command.
        texts: Keys whose value is a text; see :func:`text_keys`.

    Raises:
        UserError: An argument is not valid UTF-8, or refers to a key in a way that cannot be read.

    Example:
        >>> print(*quote_texts(["conf=lsun", "output=a,b", "seed=1,2"], frozenset({"output"})))
        conf=lsun output="a,b" seed=1,2
    """
    return [_quote_text(arg, texts) for arg in args]


def _quote_text(arg: str, texts: frozenset[str]) -> str:
    try:
        arg.encode()
    except UnicodeEncodeError:
        raise UserError(f"{_shown(arg)}: it is not valid UTF-8; use another name") from None
    override = _OVERRIDE.fullmatch(arg)
    if override is None:
        return arg
    if not override["prefix"] and override["key"].startswith(_SETTINGS):
        # Which settings there are is known to the parts, and not to Hydra, which would want them to be added.
        return f"++{arg}"
    value = override["value"]
    if override["key"] == "plugins" and value and not value.lstrip().startswith(("[", "$")):
        is_plain = _PLAIN.fullmatch(value) and not _NULL.fullmatch(value)
        shown = shlex.quote(_shown(f"plugins=[{value if is_plain else './mine.py'}]"))
        raise UserError(f"{_shown(arg)}: plugins are a list, which may have one entry; write {shown}")
    if not _is_text(override["key"], texts):
        return arg
    if not _has_valid_references(value):
        raise UserError(f"{_shown(arg)}: ${{ begins a reference to another key, as in ${{name}}; leave it out")
    if not value or _NULL.fullmatch(value) or _is_quoted(value):
        return arg
    return f"{override['prefix']}{override['key']}={format_text(value)}"


def _is_text(key: str, texts: frozenset[str]) -> bool:
    return key in texts or key in GROUPS or any(text.endswith(".") and key.startswith(text) for text in texts)


def _is_quoted(value: str) -> bool:
    """Return whether Hydra reads the whole value as one text in quotes."""
    if value.strip()[:1] not in ("'", '"'):
        return False
    try:
        parser = OverridesParser.create()
        # The second call alone would pass over what follows the closing quote.
        parser.parse_override(f"key={value}")
        return isinstance(parser.parse_rule(value, "value"), QuotedString)
    except HydraException:
        return False


def _has_valid_references(value: str) -> bool:
    """Return whether OmegaConf can read each ``${`` of a text."""
    try:
        OmegaConf.create({"key": value})
    except GrammarParseError:
        return False
    return True


def explain(override: str) -> str:
    """Return what is wrong with an argument that Hydra's grammar does not take, and what to write, on one line.

    Args:
        override: The argument.

    Example:
        >>> print(explain("train.base_lr=1)"))
        train.base_lr=1): this value cannot be read; a text with ( ) , = # { } or a blank in it needs double quotes \
of its own, as in 'train.base_lr="1)"'
    """
    shown, parts = _shown(override), _OVERRIDE.fullmatch(override)
    if parts is None or not parts["key"]:
        return f"{shown}: write key=value, and conf=... and sweeps=... as names that --help lists"
    key, value = parts["key"], parts["value"]
    if not _KEY.fullmatch(key):
        return f"{shown}: {_shown(key)} is no key; keys are made of letters, digits, _ and dots, as in train.energy_lr"
    if key in GROUPS:
        return f"{shown}: write key=value, and {key}=... as a name that --help lists"
    rule = "a text with ( ) , = # { } or a blank in it needs double quotes of its own"
    if value[:1] in ("[", "{"):
        example = f'{key}=["a(1)",b]' if value[0] == "[" else f'{key}={{name:"a(1)"}}'
        return f"{shown}: this value cannot be read; each bracket has to close, and {rule}, as in '{example}'"
    example = f"{key}={QuotedString(value, Quote.double).with_quotes()}"
    return f"{shown}: this value cannot be read; {rule}, as in {shlex.quote(_shown(example))}"


def _shown(text: str) -> str:
    """Return a text as it is shown in a message: on one line, printable, and cut."""
    # Redacted before it is cut: of a part of a credential nobody can say that it is one.
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in redact(text))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
