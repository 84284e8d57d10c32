"""Config fields that carry their own meaning, bounds and choices.

A dataclass field made by one of the helpers below keeps a :class:`Rule` in its metadata, which OmegaConf ignores.
:func:`keys` walks a config class and yields every key with its rule: validation refuses by it, and the reference of
the config is generated from it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pkgutil
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.runtime.errors import UserError, one_line

__all__ = [
    "Bounds",
    "Key",
    "Pattern",
    "Rule",
    "bounded",
    "choice",
    "documented",
    "key",
    "keys",
    "matching",
    "typed_value",
]

_T = TypeVar("_T")
_RULE = "rule"


@dataclass(frozen=True)
class Bounds:
    """Interval that a number has to lie in.

    Args:
        gt: Lower limit, which is excluded.
        ge: Lower limit, which is included.
        lt: Upper limit, which is excluded.
        finite: Whether infinities are refused.

    Example:
        >>> 0.5 in Bounds(gt=0, lt=1), 0.0 in Bounds(gt=0), float("nan") in Bounds(ge=0)
        (True, False, False)
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    finite: bool = True

    def __contains__(self, value: float) -> bool:
        # Not by math.isnan and math.isinf, which convert to a float: an int may be too large for one.
        if value != value or (self.finite and abs(value) == math.inf):
            return False
        above = (self.gt is None or value > self.gt) and (self.ge is None or value >= self.ge)
        return above and (self.lt is None or value < self.lt)

    @property
    def requirement(self) -> str:
        """The end of the sentence "it ...", as an error message has it.

        Example:
            >>> Bounds(gt=0).requirement, Bounds(ge=0, lt=1).requirement
            ('has to be positive and finite', 'has to be at least 0 and below 1')
        """
        match self:
            case Bounds(gt=None, ge=None, lt=None):
                return "has to be finite"
            case Bounds(gt=0, lt=None):
                return "has to be positive and finite"
            case Bounds(ge=0, lt=None):
                return "cannot be negative, and has to be finite"
            case Bounds(gt=None, lt=None):
                return f"has to be {self.ge} at least"
            case Bounds(gt=None, ge=None, finite=False):
                return "has to be a number, or -.inf for none"
            case Bounds(gt=None):
                return f"has to be at least {self.ge} and below {self.lt}"
            case _:
                return f"has to lie between {self.gt} and {self.lt}"

    @property
    def interval(self) -> str:
        """The interval in mathematical notation.

        Example:
            >>> Bounds(gt=0).interval, Bounds(ge=0, lt=1).interval, Bounds().interval
            ('> 0', '>= 0, < 1', 'finite')
        """
        limits = (("> ", self.gt), (">= ", self.ge), ("< ", self.lt))
        return ", ".join(f"{sign}{limit}" for sign, limit in limits if limit is not None) or "finite"


@dataclass(frozen=True)
class Pattern:
    """Form that a text has to have.

    Args:
        regex: Regular expression that the whole text has to match.
        like: Noun phrase with an example, for error messages.
    """

    regex: str
    like: str


@dataclass(frozen=True)
class Rule:
    """Meaning of a key, and the values that it takes in addition to ``None``.

    Args:
        help: Meaning of the key, in words.
        bounds: Interval of a number.
        choices: Names to choose from; or, as ``"module:attribute"``, where they are, so that declaring a field imports
            nothing.
        pattern: Form of a text, or of each text of a list.
        outside: Whether the value names a host, or a path outside of the results. A folder or a checkpoint does not
            decide it: see :mod:`pipeline.config.own_choices`.
    """

    help: str = ""
    bounds: Bounds | None = None
    choices: tuple[str, ...] | str = ()
    pattern: Pattern | None = None
    outside: bool = False

    def names(self) -> tuple[str, ...]:
        """Return the names to choose from; empty where any text will do.

        Example:
            >>> Rule(choices="gebm.training.gradient_guard:NAMES").names()
            ('none', 'clip', 'arbel')
        """
        return tuple(pkgutil.resolve_name(self.choices)) if isinstance(self.choices, str) else self.choices

    def refusal(self, value: Any) -> str | None:
        """Return what is wrong with a value, as the end of the sentence "it ..."; ``None`` where nothing is.

        Args:
            value: Value of the type that the field has.
        """
        if value is None:
            return None
        if self.choices and _as_name(value) not in (names := self.names()):
            return f"has to be one of {', '.join(names)}"
        if self.bounds is not None and value not in self.bounds:
            return self.bounds.requirement
        for text in value if isinstance(value, list) else [value]:
            if self.pattern is not None and not re.fullmatch(self.pattern.regex, text):
                return f"has to be {self.pattern.like}"
        return None

    def limits(self) -> str:
        """Return which values the key takes, in a few words; empty where its type says all."""
        if self.choices:
            return ", ".join(self.names())
        if self.bounds is not None:
            return self.bounds.interval
        return self.pattern.like if self.pattern is not None else ""


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: Dotted name, such as ``train.energy_lr``.
        type: Type, as the schema writes it.
        default: Default value; ``omegaconf.MISSING`` where the key is required.
        rule: Its meaning, bounds and choices.
    """

    name: str
    type: str
    default: Any
    rule: Rule


def _as_name(value: Any) -> Any:
    """Return the name of a truth value, as which YAML reads the choices true and false."""
    return str(value).lower() if isinstance(value, bool) else value


def key(default: _T, help: str, *, outside: bool = False) -> _T:
    """Declare a field that takes any value of its type; see :class:`Rule`."""
    return _field(default, Rule(help, outside=outside))


def bounded(
    default: _T,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    finite: bool = True,
) -> _T:
    """Declare a field that holds a number in an interval; see :class:`Bounds`.

    Example:
        >>> @dataclass
        ... class Training:
        ...     lr: float = bounded(1e-4, "Learning rate.", gt=0)
        >>> [(found.name, found.default, found.rule.limits()) for found in keys(Training)]
        [('lr', 0.0001, '> 0')]
    """
    return _field(default, Rule(help, bounds=Bounds(gt, ge, lt, finite)))


def choice(default: _T, help: str, *, names: tuple[str, ...] | str) -> _T:
    """Declare a field that holds one of a few names; see :class:`Rule`."""
    return _field(default, Rule(help, choices=names))


def matching(default: _T, help: str, *, pattern: Pattern) -> _T:
    """Declare a field that holds a text of a certain form."""
    return _field(default, Rule(help, pattern=pattern))


def documented(help: str, *, pattern: Pattern | None = None, outside: bool = False) -> dict[str, Rule]:
    """Return the metadata of a field that holds a list or a mapping, for :func:`dataclasses.field`."""
    return {_RULE: Rule(help, pattern=pattern, outside=outside)}


def _field(default: _T, rule: Rule) -> _T:
    return field(default=default, metadata={_RULE: rule})


@functools.cache
def keys(config_class: type, prefix: str = "") -> tuple[Key, ...]:
    """Return every key of a config class, those of nested groups by their dotted names.

    Args:
        config_class: Dataclass whose fields are keys or further dataclasses.
        prefix: What precedes the names, such as ``"launch."``.
    """
    hints = get_type_hints(config_class)
    result: list[Key] = []
    for entry in dataclasses.fields(config_class):
        name = f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(nested := hints[entry.name]) and isinstance(nested, type):
            result += keys(nested, f"{name}.")
            continue
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        result.append(Key(name, str(entry.type), default, entry.metadata.get(_RULE, Rule())))
    return tuple(result)


def typed_value(fields: DictConfig, name: str, key: str, value: Any) -> Any:
    """Return the value of a field as its type has it: 1 as 1.0 where the field is a float.

    Args:
        fields: The structured config of the field's group, which gets the value.
        name: Name of the field.
        key: Its key, for messages.
        value: The value.

    Raises:
        UserError: It is of another type.
    """
    try:
        fields[name] = value
        typed = fields[name]
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {str(error).strip().splitlines()[0]}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{key}: {one_line(error)}") from None
    return OmegaConf.to_container(typed) if OmegaConf.is_config(typed) else typed
