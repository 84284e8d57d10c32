"""Composition of an experiment: from files and keys to a typed config, and back to overrides on a command line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shlex
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import part_settings
from pipeline.config.arguments import format_text
from pipeline.config.fields import keys, typed_value
from pipeline.config.schema import AUTO, Config
from pipeline.runtime.errors import UserError, one_line

__all__ = [
    "RENAMED_KEYS",
    "apply",
    "config_root",
    "experiments",
    "format_overrides",
    "from_dict",
    "from_saved",
    "monitored_metrics",
    "searches",
    "to_dict",
]


def config_root() -> Path:
    """Return the folder that holds ``conf/`` and ``sweeps/``: the top of a checkout, or a copy in an installed wheel.

    Example:
        >>> sorted(path.name for path in config_root().iterdir() if path.name in ("conf", "sweeps"))
        ['conf', 'sweeps']
    """
    installed = Path(__file__).resolve().parents[1] / "experiments"
    return installed if installed.is_dir() else installed.parent.parent


def experiments() -> dict[str, str]:
    """Return the names of the experiments, each with the first comment line of its file."""
    return _first_lines(config_root() / "conf")


def searches() -> dict[str, str]:
    """Return the names of the searches, each with the first comment line of its file."""
    return _first_lines(config_root() / "sweeps")


def _first_lines(folder: Path) -> dict[str, str]:
    lines = {}
    for path in sorted(folder.glob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
        lines[path.stem] = comments[0][2:] if comments else ""
    return lines


def to_dict(config: Config) -> dict[str, Any]:
    """Return a plain nested dict, for JSON and for workers."""
    return dataclasses.asdict(config)


# Former names of keys, by which earlier runs have written their configs.
RENAMED_KEYS = {
    "data.hold": "data.device_resident",
    "data.writers": "data.num_writers",
    "data.reader_workers": "data.num_workers",
    "data.read_ahead": "data.prefetch_shards",
    "tracking.patience": "tracking.flush_timeout",
    "sweep.points": "sweep.grid_size",
    "train.nonfinite_restarts": "train.max_nonfinite_restarts",
}


def from_saved(values: Any) -> Config:
    """Make a typed config from what an earlier run has written, whose keys may have former names.

    Args:
        values: Nested keys, from a checkpoint's state or from the ``config.yaml`` of a sweep.

    Raises:
        UserError: A key is unknown or has the wrong type.

    Example:
        >>> from_saved({"name": "x", "data": {"store": "s", "hold": True, "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}}).data.device_resident
        True
    """
    if not isinstance(values, dict):
        return from_dict(values)
    values = {key: dict(inner) if isinstance(inner, dict) else inner for key, inner in values.items()}
    for old, new in RENAMED_KEYS.items():
        group, _, name = old.partition(".")
        keys, new_name = values.get(group), new.partition(".")[2]
        if isinstance(keys, dict) and name in keys and new_name not in keys:
            keys[new_name] = keys.pop(name)
    # Those of before there were lanes read as with one, and their trials that are left do, too.
    if isinstance(values.get("data"), dict):
        values["data"].setdefault("lanes", 1)
    # A search names keys as well.
    for group in (values.get("sweep"), values.get("spaces")):
        for name, space in group.items() if isinstance(group, dict) else ():
            if isinstance(space, dict):
                group[name] = {RENAMED_KEYS.get(key, key): form for key, form in space.items()}
    return from_dict(values)


def from_dict(values: dict[str, Any] | DictConfig) -> Config:
    """Make a typed config from a nested dict.

    Args:
        values: Nested keys, from :func:`to_dict` or as Hydra composed them.

    Raises:
        UserError: A key is unknown or has the wrong type.

    Example:
        >>> from_dict({"name": "x", "data": {"store": "s"}, "train": {"base_stepz": 1}})
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: no such key: train.base_stepz
    """
    plain: Any = OmegaConf.to_container(values, resolve=False) if isinstance(values, DictConfig) else values
    if not isinstance(plain, dict):
        raise UserError(f"a config is a mapping of keys, such as train and model, and this is {plain!r}")
    try:
        _refuse_interpolations(plain)
        merged = OmegaConf.merge(_schema(), plain)
        config = OmegaConf.to_object(merged)
        assert isinstance(config, Config)
        part_settings.convert(config)
        _choose_ranking(config)
        return config
    except RecursionError:
        raise UserError("a config is a mapping of keys, and this one is nested without end") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        if "not in" in str(error) and key:
            raise UserError(f"no such key: {key}{_new_name_of(key)}") from None
        reason = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
        raise UserError(f"{key}: {reason}" if key and key not in reason else reason) from None
    # Raised by OmegaConf for keys that are not identifiers.
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = one_line(error)
        raise UserError(f"a config is a mapping of keys, such as train and model: {reason}") from None


@functools.cache
def _schema() -> DictConfig:
    """Return the config's types and defaults, which a merge copies: to build them takes longer than all else here."""
    return OmegaConf.structured(Config)


def _new_name_of(key: str) -> str:
    """Return the end of an error message that gives a key's new name; empty where it never had another one."""
    return f"; it is called {RENAMED_KEYS[key]} now" if key in RENAMED_KEYS else ""


def _refuse_interpolations(values: Any, key: str = "") -> None:
    """Refuse what OmegaConf would interpolate: Hydra has done so, and an untrusted file could name our secrets."""
    if isinstance(values, str) and "${" in values:
        raise UserError(f"{key}: a value cannot have ${{ in it; write its value")
    if isinstance(values, dict):
        for name, value in values.items():
            _refuse_interpolations(str(name), f"{key}.{name}".lstrip("."))
            _refuse_interpolations(value, f"{key}.{name}".lstrip("."))
    if isinstance(values, list | tuple):
        for value in values:
            _refuse_interpolations(value, key)


def apply(config: Config, overrides: dict[str, Any]) -> Config:
    """Return the config with dotted keys replaced, as a trial gets it from the search.

    Args:
        config: The experiment.
        overrides: Dotted keys to values, for example ``{"train.energy_lr": 3e-4}``.

    Raises:
        UserError: A key does not exist or its value has the wrong type.
    """
    settings = {key: value for key, value in overrides.items() if part_settings.group_of(key)}
    rest = {key: value for key, value in overrides.items() if key not in _leaves() and key not in settings}
    if rest:
        config = _apply_groups(config, rest)
    config = copy.deepcopy(config)
    for key, value in overrides.items():
        if key in _leaves():
            path, _, name = key.rpartition(".")
            group = attrgetter(path)(config) if path else config
            setattr(group, name, _typed(type(group), name, key, value))
    for key, value in settings.items():
        _refuse_interpolations(value, key)
        part_settings.assign(config, key, value)
    part_settings.convert(config)
    _choose_ranking(config)
    return config


def _choose_ranking(config: Config) -> None:
    """Set the score that trials are ranked by, and which way is better, where they are left to the task."""
    if AUTO not in (config.sweep.metric, config.sweep.mode):
        return
    # Imports torch, as nearly all that has a config does.
    from pipeline.config import ranking

    ranking.choose(config)


@functools.cache
def _leaves() -> frozenset[str]:
    """Return the keys that are no groups."""
    return frozenset(key.name for key in keys(Config))


# One field alone: a whole config takes OmegaConf a tenth of a second, and a search tries hundreds of values.
_fields_of = functools.cache(OmegaConf.structured)


def _typed(group: type, name: str, key: str, value: Any) -> Any:
    """Return the value of a field as its type has it."""
    _refuse_interpolations(value, key)
    return typed_value(_fields_of(group), name, key, value)


def _apply_groups(config: Config, overrides: dict[str, Any]) -> Config:
    """Return the config with keys replaced that are groups, or in a group that has no schema."""
    values = OmegaConf.create(to_dict(config))
    for key, value in overrides.items():
        if OmegaConf.select(values, key, default=_ABSENT) is _ABSENT:
            hint = _new_name_of(key) or "; a search space names keys of the experiment, such as train.energy_lr"
            raise UserError(f"no such key: {key}{hint}")
        if OmegaConf.is_dict(OmegaConf.select(values, key)) and not isinstance(value, dict):
            raise UserError(f"{key}={value}: it is a group of keys; name one of them, as in train.energy_lr")
        OmegaConf.update(values, key, value)
    return from_dict(values)


_ABSENT = object()


def monitored_metrics(config: Config) -> tuple[str, str]:
    """Return the two scores that are monitored while a sweep runs: the base's and the GEBM's.

    Example:
        >>> config = from_dict({"name": "x", "task": "density", "data": {"store": "s", "source": {"kind": "redwine"}},
        ...     "model": {"networks": "maf"}})
        >>> monitored_metrics(config)
        ('nll_base', 'nll_gebm')
    """
    from pipeline.config.tasks import facts_of

    facts = facts_of(config.task)
    return facts.monitored("base"), facts.monitored("gebm")


def format_overrides(keys: Mapping[str, Any]) -> list[str]:
    """Format keys and values as Hydra's overrides.

    Args:
        keys: Key to a number, a string, a boolean, ``None``, or a list or mapping of these.

    Returns:
        One override a key, quoted for a shell where necessary.

    Example:
        >>> print(*format_overrides({"train.base_lr": 1e-4, "sampler.name": "ula", "model.energy": None}))
        train.base_lr=0.0001 sampler.name=ula model.energy=null
        >>> print(*format_overrides({"evaluation.metrics": ["fid", "kid"], "data.store": "s3://bucket/my store"}))
        'evaluation.metrics=[fid,kid]' 'data.store="s3://bucket/my store"'
    """
    return [shlex.quote(f"{key}={_format_value(value)}") for key, value in keys.items()]


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_format_value(key)}:{_format_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_format_value, value)) + "]"
    if isinstance(value, str):
        return format_text(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
