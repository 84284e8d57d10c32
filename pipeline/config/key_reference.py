"""Reference of every config key, generated from the schema: ``python -m pipeline.config.key_reference`` prints it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING

from pipeline.config import part_settings
from pipeline.config.fields import Key, keys
from pipeline.config.launcher_schema import LAUNCHERS
from pipeline.config.schema import Config

__all__ = ["markdown", "reference"]


def reference() -> list[Key]:
    """Return every key of an experiment's config, with its type, default, bounds, choices and meaning.

    Example:
        >>> [key] = [key for key in reference() if key.name == "train.energy_lr"]
        >>> key.type, key.default, key.rule.limits(), key.rule.help
        ('float', 0.0001, '> 0', 'Learning rate of the energy.')
    """
    return list(keys(Config))


def markdown() -> str:
    """Return the reference as a Markdown page, with a table for each group of keys."""
    meanings = dict(_groups(Config))
    parts = [
        "# Configuration reference",
        "Written by `python -m pipeline.config.key_reference`. Any key is set on the command line as `key=value`; "
        "`python -m pipeline.sweep conf=<experiment> --cfg job` prints the values of an experiment.",
    ]
    groups: dict[str, list[Key]] = {}
    for key in reference():
        groups.setdefault(key.name.rpartition(".")[0], []).append(key)
    for name, entries in groups.items():
        parts += [f"## {f'`{name}`' if name else 'The run'}", meanings.get(name, ""), _table(entries)]
    for group, selector in part_settings.GROUPS.items():
        parts += [f"## `{group}`, by `{selector}`", meanings.get(group, "")]
        for part in part_settings.registry(group).parts():
            if entries := part_settings.part_keys(part, group):
                parts += [f"### `{selector}={part.name}`", part.help, _table(list(entries))]
    for kind, launcher in LAUNCHERS.items():
        meaning = inspect.cleandoc(launcher.__doc__ or "")
        parts += [f"## `launch={kind}`", meaning, _table(list(keys(launcher, "launch.")))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(config_class: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the meaning of each group of keys."""
    for name, nested in get_type_hints(config_class).items():
        if is_dataclass(nested) and isinstance(nested, type):
            yield f"{prefix}{name}", inspect.cleandoc(nested.__doc__ or "")
            yield from _groups(nested, f"{prefix}{name}.")


def _table(entries: list[Key]) -> str:
    lines = ["| Key | Type | Default | Values | Meaning |", "| --- | --- | --- | --- | --- |"]
    for key in entries:
        code = (f"`{key.name}`", f"`{key.type}`", _default(key.default))
        # Outside of backticks Markdown would take <name> for an HTML tag.
        text = (part.replace("<", "&lt;") for part in (key.rule.limits(), key.rule.help))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in (*code, *text))} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    return "required" if value == MISSING else f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    print(markdown(), end="")
