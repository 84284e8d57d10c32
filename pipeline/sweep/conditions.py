"""Conditions of a search space: keys that are part of a point only where other keys have certain values.

A form may have a condition, on keys that the space has choices of or on keys of the experiment::

    sampler.name: {choice: [ula, kla]}
    sampler.friction: {log_uniform: [0.1, 10.0], when: {sampler.name: kla}}
    train.penalty: {uniform: [0.1, 3.0], when: {train.objective: [kale_fenchel, hinge], train.penalty_kind: gradient}}

A list is any of its values, and several keys have to hold together. A key that is not part of a point fulfills no
condition. What the experiment decides by itself is decided before the search: its key is searched, or is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config, apply, part_settings
from pipeline.runtime.errors import UserError
from pipeline.sweep.dimension import Choice

__all__ = ["Condition", "ConditionalForms", "by_depth", "resolve_conditions"]

# Key to the values that it may have.
Allowed = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Condition:
    """Values of other keys with which a key is part of a point.

    Args:
        allowed: Keys that the space has choices of, each with the values that it may have.

    Example:
        >>> condition = Condition({"sampler.name": ("kla",)})
        >>> condition.holds({"sampler.name": "kla"}), condition.holds({"sampler.name": "ula"}), condition.holds({})
        (True, False, False)
    """

    allowed: Allowed = field(default_factory=dict)

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return whether parameters have all these keys, with one of these values each."""
        return all(key in params and params[key] in Choice(values) for key, values in self.allowed.items())


@dataclass(frozen=True)
class ConditionalForms:
    """Forms of a space whose conditions have been looked at.

    Attributes:
        forms: Key to its form, without its condition; keys that no trial has are left out.
        conditions: Key to its condition, of those that some trials have and others do not.
        notes: A line for each key that was left out.
    """

    forms: dict[str, Any]
    conditions: dict[str, Condition]
    notes: tuple[str, ...]


def resolve_conditions(config: Config, forms: Mapping[str, Any], implied: Mapping[str, Allowed]) -> ConditionalForms:
    """Return the forms of a space without their conditions, and the conditions that its points decide.

    Args:
        config: The experiment, whose values decide conditions on keys that are not searched.
        forms: Key to its form, as written in YAML.
        implied: Conditions that keys have by themselves.

    Raises:
        UserError: A condition names a key that does not exist, or is searched and is no choice, or a value that the key
            cannot have; or conditions depend on one another.
    """
    wanted = {key: _parse_condition(config, forms, key, implied.get(key, {})) for key in forms}
    possible: set[str] = set()
    conditions: dict[str, Condition] = {}
    notes = []
    for key in by_depth(wanted):
        allowed: dict[str, tuple[Any, ...]] = {}
        for name, values in wanted[key].items():
            left = _allowed_choices(config, forms, name, values) if name not in forms or name in possible else ()
            if not left:
                notes.append(f"sweep.space: {key} is left out: no trial has {name}={_any_of(values)}")
                break
            if name in forms and (len(left) < len(forms[name]["choice"]) or name in conditions):
                allowed[name] = left
        else:
            possible.add(key)
            if allowed:
                conditions[key] = Condition(allowed)
    left_in = {key: _without_condition(form) for key, form in forms.items() if key in possible}
    return ConditionalForms(left_in, conditions, tuple(notes))


def by_depth(allowed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the keys of a space, each after those that its condition names.

    Args:
        allowed: Key to the keys that its condition names.

    Raises:
        UserError: Conditions depend on one another.

    Example:
        >>> by_depth({"c": {"b": (1,)}, "b": {"a": (1,)}, "a": {}, "d": {}})
        ['a', 'd', 'b', 'c']
    """
    depths: dict[str, int] = {}

    def depth(key: str, above: tuple[str, ...]) -> int:
        if key in above:
            path = " on ".join((*above[above.index(key) :], key))
            raise UserError(f"sweep.space: conditions depend on one another, {path}: leave out one of them")
        if key not in depths:
            names = [name for name in allowed[key] if name in allowed]
            depths[key] = 1 + max((depth(name, (*above, key)) for name in names), default=0)
        return depths[key]

    return sorted(allowed, key=lambda key: depth(key, ()))


def _parse_condition(
    config: Config, forms: Mapping[str, Any], key: str, implied: Allowed
) -> dict[str, tuple[Any, ...]]:
    """Return the condition of a key: the one that is written with its form, and the one that it has by itself."""
    form = forms[key]
    result = dict(implied)
    if not (isinstance(form, Mapping) and "when" in form):
        return result
    written = form["when"]
    if not isinstance(written, Mapping) or not written:
        raise UserError(
            f"sweep.space: {key}: when takes conditions such as {{sampler.name: kla}}, and got {written or 'none'}"
        )
    for name, value in written.items():
        _check_name(config, forms, key, name)
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise UserError(f"sweep.space: {key}: when {name}: it takes a value or a list of values, and got {value}")
        typed = tuple(_typed(config, name, one, f"{key}: when ") for one in values)
        result[name] = tuple(one for one in typed if one in Choice(result[name])) if name in result else typed
    return result


def _check_name(config: Config, forms: Mapping[str, Any], key: str, name: Any) -> None:
    """Refuse a condition on a key that does not exist, or is searched and is no choice."""
    if part_settings.find_key(name) is None:
        raise UserError(f"sweep.space: {key}: when {name}: there is no such key")
    searched = forms.get(name, config.sweep.space.get(name, {"choice": []}))
    if not (isinstance(searched, Mapping) and isinstance(searched.get("choice"), list | tuple)):
        raise UserError(f"sweep.space: {key}: when {name}: it is searched, and conditions can only be on a choice")


def _allowed_choices(config: Config, forms: Mapping[str, Any], name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return which of the space's choices of a key are allowed; of a key that it does not have, the experiment's value.

    They are as trials have them, where a number that is written as text is a number.
    """
    if name not in forms:
        return tuple(value for value in (part_settings.read(config, name),) if value in Choice(values))
    pairs = [(value, _typed(config, name, value, "")) for value in forms[name]["choice"]]
    return tuple(typed if isinstance(value, str) else value for value, typed in pairs if typed in Choice(values))


def _typed(config: Config, name: str, value: Any, where: str) -> Any:
    """Return a value of a key with the key's type."""
    known = part_settings.find_key(name, config)
    try:
        typed = part_settings.read(apply(config, {name: value}), name)
        refusal = known and known.rule.refusal(typed)
    except UserError as error:
        raise UserError(f"sweep.space: {where}{error}") from None
    if refusal:
        raise UserError(f"sweep.space: {where}{name}={value}: it {refusal}")
    return typed


def _without_condition(form: Any) -> Any:
    return {name: value for name, value in form.items() if name != "when"} if isinstance(form, Mapping) else form


def _any_of(values: tuple[Any, ...]) -> str:
    return " or ".join(map(str, values)) or "both of its conditions"
