"""Choices of the user that no folder makes: hosts, and paths outside of the results.

A sweep's folder and a checkpoint say what was done, and anybody may have written them. Whom a command talks to (the
tracker, the Ray cluster, the store and its cache, the extractor's weights, a model to start from) comes from its
command line, from the environment, or from what the user chose when the sweep was started here. The last is kept in
the user's state folder, one file for each sweep, so that ``resume=<folder>`` is all that has to be typed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Container, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline.config import plugins
from pipeline.config.compose import format_overrides
from pipeline.config.fields import keys
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.user_folders import default_tracker, state_folder, stores_root

__all__ = [
    "CHOICES",
    "DATA_KEYS",
    "OUTSIDE",
    "RESUME_KEYS",
    "choose",
    "is_own",
    "keep_choices",
    "kept_choices",
    "load_kept_plugins",
    "own_choices",
    "own_overrides",
]

log = logging.getLogger(__name__)

_PLUGINS = "plugins"
_DEFAULTS = {key.name: key.default for key in keys(Config) if key.rule.outside and key.name != _PLUGINS}

OUTSIDE = tuple(_DEFAULTS)
"""Keys that name a host, or a path outside of the results."""

CHOICES = tuple(key for key in OUTSIDE if key not in ("model.base", "images", "against", "output", "resume", "log"))
"""Those that are kept for a sweep; the others are of one command."""

DATA_KEYS = ("data.store", "data.cache")
"""Those that a command needs which reads the store of a trained model."""

RESUME_KEYS = (*DATA_KEYS, "evaluation.weights", "ray.address", "tracking.uri", "checkpoint")
"""Those that a command needs which resumes a sweep."""

# A checkpoint is five folders below its sweep's.
_MAX_PARENTS = 8


def own_choices(config: Config) -> dict[str, Any]:
    """Return the values of :data:`CHOICES` in a config."""
    return {key: attrgetter(key)(config) for key in CHOICES}


def keep_choices(folder: str, config: Config) -> None:
    """Keep a sweep's choices for the commands that resume it, or read its checkpoints, later.

    Args:
        folder: The sweep's folder, behind any fsspec URL.
        config: Its config, whose choices are the user's.
    """
    path = _path(_real(folder))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A temporary file of this function is nobody else's to read.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        with os.fdopen(handle, "w") as file:
            json.dump({"folder": _real(folder), "choices": own_choices(config), _PLUGINS: config.plugins}, file)
        os.replace(name, path)
    except OSError as error:
        log.warning(f"cannot write {path} ({one_line(error)}): resume={folder} will need tracking.uri and the like")


def is_own(folder: str) -> bool:
    """Return whether the user has started a sweep here in a folder, or resumed one."""
    return _path(_real(folder)).is_file()


def kept_choices(url: str) -> dict[str, Any]:
    """Return what the user has chosen for a sweep; empty where it was not started here.

    Args:
        url: The sweep's folder, or the folder of one of its trials or checkpoints.
    """
    # Not a file of this version: the user chooses anew.
    with contextlib.suppress(KeyError, TypeError):
        choices = _kept(url)["choices"]
        return {key: choices[key] for key in CHOICES if isinstance(choices[key], str | None)}
    return {}


def load_kept_plugins(url: str) -> None:
    """Load the plugins that the user has named for a sweep, when it was started here.

    Args:
        url: The sweep's folder, or the folder of one of its trials or checkpoints.

    Raises:
        UserError: One of them is gone, or cannot be imported any more.
    """
    named = _kept(url).get(_PLUGINS, [])
    if isinstance(named, list) and all(isinstance(name, str) for name in named):
        plugins.load(named)


def _kept(url: str) -> dict[str, Any]:
    for folder in _with_parents(_real(url)):
        try:
            document = json.loads(_path(folder).read_text())
            return document if isinstance(document, dict) else {}
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            break
    return {}


def choose(saved: Config, overrides: Mapping[str, Any], url: str, needed: Container[str]) -> None:
    """Make every choice of a saved config the user's own; one that is not, and that is not needed, becomes the default.

    Args:
        saved: Config of a folder or a checkpoint, with the overrides of this command applied; it is changed.
        overrides: Keys of the command line.
        url: The folder or checkpoint.
        needed: Keys that the command uses.

    Raises:
        UserError: A needed key has a value that the user has not chosen; the line says what to add.
    """
    # Those that this command has loaded, whatever the folder was made with.
    saved.plugins = plugins.names()
    kept, foreign, typed = kept_choices(url), {}, set(_leaf_names(overrides))
    for key, default in _DEFAULTS.items():
        value = attrgetter(key)(saved)
        if key in typed:
            continue
        if key in kept:
            _set(saved, key, kept[key])
        elif value == default or _is_chosen(key, value):
            continue
        elif key in needed:
            foreign[key] = value
        elif default != MISSING:
            _set(saved, key, default)
    if foreign:
        raise UserError(
            f"{url} was not written by a sweep that you started here, and does not decide whom to talk to: to use what "
            f"it names, add {' '.join(format_overrides(foreign))}, or add values of your own"
        )


def own_overrides(text: str, folder: str) -> list[str]:
    """Return the overrides that a sweep's folder has noted, without those by which another's would name a host.

    Args:
        text: Overrides as a shell reads them.
        folder: The sweep's folder.

    Example:
        >>> own_overrides("train.base_steps=40 tracking.uri=http://x hydra.searchpath=[x]", "memory://nobody/sweep")
        ['train.base_steps=40']
    """
    try:
        overrides = shlex.split(text)
    # Not what a sweep writes there.
    except ValueError:
        return []
    if is_own(folder):
        return overrides
    return [override for override in overrides if _names_nobody(override.lstrip("+~").partition("=")[0])]


def _names_nobody(name: str) -> bool:
    """Return whether no value of a key, or of a group of keys, names a host or a path outside of the results."""
    below = [key for key in keys(Config) if key.name == name or key.name.startswith(f"{name}.")]
    return bool(below) and not any(key.rule.outside for key in below)


def _leaf_names(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the keys that are overridden, those within a group as well."""
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _leaf_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_chosen(key: str, value: Any) -> bool:
    """Return whether the environment, or what holds without any choice, names the same."""
    match key:
        case "data.store":
            return _is_below_root(value)
        case "tracking.uri":
            return value in (os.environ.get("MLFLOW_TRACKING_URI"), default_tracker())
        case "ray.address":
            return value == os.environ.get("RAY_ADDRESS")
    return False


def _is_below_root(store: Any) -> bool:
    """Return whether a store is one by its name, under the stores' root."""
    if not isinstance(store, str) or ".." in store.split("/"):
        return False
    is_name = "://" not in store and not os.path.isabs(store) and not store.startswith((".", "~"))
    root = stores_root()
    return is_name or store.startswith((f"{root}/", f"{os.path.abspath(root)}/"))


def _set(config: Config, key: str, value: Any) -> None:
    group, _, name = key.rpartition(".")
    setattr(attrgetter(group)(config) if group else config, name, value)


def _real(url: str) -> str:
    local = url.removeprefix("file://")
    return url.rstrip("/") if "://" in local else os.path.realpath(os.path.expanduser(local))


def _with_parents(url: str) -> Iterator[str]:
    for _ in range(_MAX_PARENTS):
        yield url
        url = url.rpartition("/")[0]
        if not url or url.endswith(("/", ":")):
            return


def _path(folder: str) -> Path:
    digest = hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()
    return state_folder() / "choices" / f"{digest[:32]}.json"
