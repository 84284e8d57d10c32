"""Settings of the parts that a config names: the keys below ``model.settings``, ``sampler.settings`` and the like.

Which there are, of which type and within which limits, is written where a part is registered (:mod:`gebm.registry`).
Here they become keys as those of the schema are: with a type, a rule and a meaning. :mod:`gebm` is imported where a
config has such a setting, since without any, a command line is read without torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from pipeline.config.fields import Bounds, Key, Rule, keys, typed_value
from pipeline.config.networks import network_arguments
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError

if TYPE_CHECKING:
    from gebm.registry import Part, Registry, Setting

__all__ = [
    "GROUPS",
    "assign",
    "check",
    "convert",
    "find_key",
    "frozen",
    "group_of",
    "named_parts",
    "own_settings",
    "part_keys",
    "read",
    "registry",
    "uses",
]

GROUPS = {
    "model.settings": "model.networks",
    "sampler.settings": "sampler.name",
    "train.objective_settings": "train.objective",
    "train.penalty_settings": "train.penalty_kind",
}
"""Groups of settings, each with the key that chooses the part."""


def registry(group: str) -> Registry[Any]:
    """Return the parts that a group of settings is for.

    Args:
        group: A key of :data:`GROUPS`.
    """
    from gebm import networks, objectives, penalties, samplers

    registries: dict[str, Registry[Any]] = {
        "model.settings": networks.NAMES,
        "sampler.settings": samplers.NAMES,
        "train.objective_settings": objectives.NAMES,
        "train.penalty_settings": penalties.NAMES,
    }
    return registries[group]


def named_parts(config: Config) -> Iterator[tuple[str, str, Registry[Any]]]:
    """Yield each key of a config that names a part, the name, and the parts that there are."""
    from gebm import networks, objectives, penalties, samplers
    from pipeline.config import metrics, tasks

    yield "task", config.task, tasks.NAMES
    yield "model.networks", config.model.networks, networks.NAMES
    if (energy := network_arguments(config)["energy"]) is not None:
        yield "model.energy", energy, networks.NAMES
    yield "sampler.name", config.sampler.name, samplers.NAMES
    for key, name in _inner_parts("sampler.settings", config.sampler.name, config.sampler.settings):
        yield key, name, samplers.NAMES
    yield "train.objective", config.train.objective, objectives.NAMES
    yield "train.penalty_kind", config.train.penalty_kind, penalties.NAMES
    for name in config.evaluation.metrics:
        if name not in metrics.BUILTIN:
            yield "evaluation.metrics", name, metrics.NAMES


def group_of(key: str) -> str | None:
    """Return the group that a key is a setting in; ``None`` where it is none.

    Example:
        >>> group_of("sampler.settings.jitter"), group_of("sampler.settings"), group_of("sampler.beta")
        ('sampler.settings', None, None)
    """
    group = key.rpartition(".")[0]
    return group if group in GROUPS else None


def find_key(name: Any, config: Config | None = None) -> Key | None:
    """Return a key of the config by its dotted name, or a setting of any part; ``None`` where there is neither.

    Args:
        name: The value that a file has for the name; of any type.
        config: The experiment. Of several parts that have the setting it is that of the chosen one; without an
            experiment, or where the chosen one lacks it, that of the first.

    Example:
        >>> find_key("sampler.settings.num_leapfrog_steps").rule.limits(), find_key("sampler.settings.depth")
        ('>= 1', None)
    """
    if not isinstance(name, str):
        return None
    group = group_of(name)
    if group is None:
        return next((key for key in keys(Config) if key.name == name), None)
    chosen = None if config is None else attrgetter(GROUPS[group])(config)
    part = _owner(group, chosen, name.rpartition(".")[2])
    return None if part is None else next(key for key in part_keys(part, group) if key.name == name)


@functools.cache
def part_keys(part: Part, group: str) -> tuple[Key, ...]:
    """Return the settings of a part as keys of the config."""
    return keys(_class(part), f"{group}.")


def read(config: Config, key: str) -> Any:
    """Return the value of a key or of a setting; of a setting that is not set, the default of the chosen part."""
    group = group_of(key)
    if group is None:
        return attrgetter(key)(config)
    name, settings = key.rpartition(".")[2], attrgetter(group)(config)
    if name in settings:
        return settings[name]
    part = _owner(group, attrgetter(GROUPS[group])(config), name)
    return None if part is None else part.settings[name].default


def assign(config: Config, key: str, value: Any) -> None:
    """Set a setting.

    Args:
        config: The experiment, which is changed.
        key: A key of which :func:`group_of` is not ``None``.
        value: Its value.

    Raises:
        UserError: No part has such a setting.
    """
    group, name = str(group_of(key)), key.rpartition(".")[2]
    if _owner(group, attrgetter(GROUPS[group])(config), name) is None:
        raise UserError(_unknown(config, group, name))
    attrgetter(group)(config)[name] = value


def convert(config: Config) -> None:
    """Convert the settings of a config to their types; those that no part has stay, for :func:`check` to refuse.

    Raises:
        UserError: A value has the wrong type.
    """
    for group, settings in _groups(config):
        for name, value in settings.items():
            if (part := _owner(group, attrgetter(GROUPS[group])(config), name)) is not None:
                settings[name] = _typed(part, group, name, value)


def check(config: Config, groups: Collection[str]) -> None:
    """Refuse a setting that the chosen part does not have, that is out of bounds, or that is missing.

    The settings of a sampler may be those of others, too, between which a search or a later command chooses.

    Args:
        config: The experiment.
        groups: Keys of :data:`GROUPS`, whose settings are looked at.

    Raises:
        UserError: One is; the message names it and what there is.
    """
    for group, settings in _groups(config):
        if group not in groups:
            continue
        chosen = attrgetter(GROUPS[group])(config)
        for name, value in settings.items():
            part = _owner(group, chosen, name)
            if part is None or (group != "sampler.settings" and part.name != chosen):
                raise UserError(_unknown(config, group, name))
            [rule] = [key.rule for key in part_keys(part, group) if key.name == f"{group}.{name}"]
            if requirement := rule.refusal(_typed(part, group, name, value)):
                raise UserError(f"{group}.{name}={value}: it {requirement}")
    for group in groups:
        selector = GROUPS[group]
        chosen = attrgetter(selector)(config)
        if (part := _chosen_part(group, chosen)) is None:
            continue
        settings = attrgetter(group)(config)
        for key in part_keys(part, group):
            if key.default == MISSING and key.name.rpartition(".")[2] not in settings:
                raise UserError(f"{selector}={chosen} needs {key.name}: give it a value")


def own_settings(group: str, chosen: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the settings that the chosen part uses."""
    return {name: value for name, value in settings.items() if uses(group, chosen, name)}


def uses(group: str, chosen: str, name: str) -> bool:
    """Return whether a part has a setting, itself or in a part that it is built of, as tempering is of a kernel."""
    parts = registry(group)
    if chosen not in parts:
        return False
    return any(name in parts.part(part).settings for part in (chosen, *parts.inner(chosen)))


def _inner_parts(group: str, chosen: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting of the chosen part that names a part that it is built of, and the name."""
    parts = registry(group)
    for name, setting in parts.part(chosen).settings.items() if chosen in parts else ():
        inner = settings.get(name, setting.default)
        if inner in setting.limits.choices and inner in parts:
            yield f"{group}.{name}", inner


def frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return settings as a key of a cache."""
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in sorted(settings.items()))


def _groups(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each group of settings that is not empty."""
    for group in GROUPS:
        if settings := attrgetter(group)(config):
            yield group, settings


def _chosen_part(group: str, chosen: str) -> Part | None:
    parts = registry(group)
    return parts.part(chosen) if chosen in parts else None


def _owner(group: str, chosen: str | None, name: str) -> Part | None:
    """Return the chosen part where it has a setting, or else the first that has."""
    parts = registry(group)
    known = [part for part in parts.parts() if name in part.settings]
    return next((part for part in known if part.name == chosen), next(iter(known), None))


def _unknown(config: Config, group: str, name: str) -> str:
    chosen = attrgetter(GROUPS[group])(config)
    parts = registry(group)
    if chosen not in parts:
        return f"{group}.{name}: {GROUPS[group]}={chosen} is not known"
    own = ", ".join(f"{group}.{setting}" for setting in parts.part(chosen).settings)
    return f"no such key: {group}.{name}; {GROUPS[group]}={chosen} has {own or 'no settings of its own'}"


@functools.cache
def _class(part: Part) -> type:
    """Return a dataclass of a part's settings, whose fields have their rules."""
    fields = [(setting.name, _type_of(setting), _field_of(setting)) for setting in part.settings.values()]
    return dataclasses.make_dataclass(f"{part.name}_settings", fields)


def _type_of(setting: Setting) -> str:
    kind = "list[float]" if setting.type == tuple[float, ...] else setting.type.__name__
    return f"{kind} | None" if setting.optional else kind


def _field_of(setting: Setting) -> Any:
    from gebm.registry import REQUIRED

    limits = setting.limits
    bounds = Bounds(limits.gt, limits.ge, limits.lt) if setting.type in (int, float) else None
    metadata = {"rule": Rule(setting.help, bounds=bounds, choices=limits.choices)}
    if isinstance(setting.default, tuple):
        return dataclasses.field(default_factory=functools.partial(list, setting.default), metadata=metadata)
    return dataclasses.field(default=MISSING if setting.default is REQUIRED else setting.default, metadata=metadata)


def _typed(part: Part, group: str, name: str, value: Any) -> Any:
    """Return the value of a setting as its type has it."""
    return typed_value(OmegaConf.structured(_class(part)), name, f"{group}.{name}", value)
