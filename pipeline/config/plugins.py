"""Plugins: files and modules of the user's own, whose code registers networks, samplers and other parts.

They are named by the user who runs the command, and by no file: in ``plugins=[./mine.py,my_package.parts]``, in the
environment, or as entry points of an installed package. A folder, a store or a checkpoint names none; it only says
which it was made with. A file travels to other processes and nodes as its text; a module has to be installed there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.compose import format_overrides
from pipeline.config.part_settings import named_parts
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.part_errors import place_of

__all__ = [
    "CONSENT",
    "ENVIRONMENT",
    "Plugin",
    "install",
    "load",
    "names",
    "refusal",
    "require_parts",
    "sources",
    "sources_of",
]

ENVIRONMENT = "GEBM_PLUGINS"
"""Environment variable of plugins, separated by commas or as the entries of ``PATH`` are."""

CONSENT = "sha256="
"""Beginning of an entry of :data:`ENVIRONMENT` by which a served model may run the plugin that came with it."""

_ENTRY_POINTS = "gebm.plugins"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MAX_BYTES = 1 << 20
_MAX_SHOWN = 5


@dataclass(frozen=True)
class Plugin:
    """A plugin that this process has loaded.

    Args:
        name: Absolute path of a file, or name of a module.
        source: Text of the file; ``None`` of a module.
    """

    name: str
    source: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the file's text."""
        return hashlib.sha256((self.source or "").encode()).hexdigest()

    @property
    def module(self) -> str:
        """Name of the module that it becomes."""
        return self.name if self.source is None else f"gebm_plugin_{self.digest[:16]}"


# Code that is imported stays imported, so this is state of the process, like ``sys.modules``.
_loaded: dict[str, Plugin] = {}


def load(typed: Iterable[str]) -> list[str]:
    """Load plugins: those of the command line, of the environment and of installed packages.

    Args:
        typed: Value of ``plugins``: paths of files, relative to the working directory, and names of modules.

    Returns:
        The names of all plugins of this process, with absolute paths.

    Raises:
        UserError: One cannot be read or imported, or registers what it may not; the line names its file and line.
    """
    for name in (*typed, *_from_environment(), *_from_packages()):
        if not isinstance(name, str):
            raise UserError(f"plugins: {name!r:.50}: a plugin is a file, such as ./mine.py, or a module")
        # A file that came with a job is loaded by its path on the machine that sent it.
        if str(_path(name) or name) not in _loaded:
            _execute(_read(name))
    return names()


def names() -> list[str]:
    """Return the names of the plugins of this process."""
    return list(_loaded)


def sources() -> list[dict[str, Any]]:
    """Return the plugins of this process, for :func:`install` in another."""
    return [{"name": plugin.name, "source": plugin.source} for plugin in _loaded.values()]


def install(plugins: Iterable[dict[str, Any]]) -> None:
    """Load the plugins of another process of this command, which has chosen them.

    Args:
        plugins: Those of :func:`sources`.

    Raises:
        UserError: One cannot be imported here.
    """
    for entry in plugins:
        plugin = Plugin(**entry)
        if plugin.name not in _loaded:
            _execute(plugin)


def sources_of(config: Config) -> list[dict[str, Any]]:
    """Return those of :func:`sources` that a trained model needs, for its networks and its sampler.

    Args:
        config: The model's config, whose parts are registered.
    """
    named = [(name, parts) for key, name, parts in named_parts(config) if key.startswith(("model.", "sampler."))]
    needed = {plugin.name for name, parts in named for plugin in _plugins_of(parts.part(name).module)}
    return [entry for entry in sources() if entry["name"] in needed]


def _plugins_of(module: str) -> list[Plugin]:
    """Return the plugins by which a module is loaded: that module, a package that it is in, or else its neighbors."""
    own = [plugin for plugin in _loaded.values() if f"{module}.".startswith(f"{plugin.module}.")]
    top = module.partition(".")[0]
    return own or [plugin for plugin in _loaded.values() if plugin.module.partition(".")[0] == top]


def require_parts(config: Config, url: str) -> None:
    """Refuse what was made with a plugin that is not loaded, and has a part of it.

    Args:
        config: The config that a folder or a checkpoint has, as it was saved.
        url: The folder or checkpoint.

    Raises:
        UserError: It does; the line says which plugin to name. It is for the user to trust its code.
    """
    missing = config.plugins and [f"{key}={name}" for key, name, parts in named_parts(config) if name not in parts]
    if not missing:
        return
    [override] = format_overrides({"plugins": config.plugins[:_MAX_SHOWN]})
    raise UserError(
        f"{url} needs {missing[0]}, which no loaded plugin has: it was made with a plugin, whose code no checkpoint or "
        f"folder can load; if you have it and trust it, add {override}"
    )


def refusal(error: BaseException) -> str | None:
    """Return the message of an error that the code of a plugin has raised; ``None`` of any other.

    Args:
        error: The error.
    """
    for plugin in _loaded.values():
        if (location := place_of(error, _is_file_of(plugin))) is not None:
            return f"{location}: {_reason(error)}"
    return None


def _from_environment() -> list[str]:
    entries = [entry.strip() for entry in re.split(f"[,{re.escape(os.pathsep)}]", os.environ.get(ENVIRONMENT, ""))]
    return [entry for entry in entries if entry and not entry.startswith(CONSENT)]


def _from_packages() -> Iterator[str]:
    for entry in metadata.entry_points(group=_ENTRY_POINTS):
        yield entry.module


def _path(name: str) -> Path | None:
    """Return the absolute path of a plugin that is a file; ``None`` of a module."""
    if _MODULE.fullmatch(name) and not name.endswith(".py"):
        return None
    # However it is spelled, a file is one plugin.
    return Path(os.path.abspath(os.path.expanduser(name)))


def _read(name: str) -> Plugin:
    """Return a plugin by the name that was typed."""
    path = _path(name)
    if path is None:
        top = name.partition(".")[0]
        if os.path.exists(name) and top not in sys.modules and not importlib.util.find_spec(top):
            raise UserError(f"plugins: {name}: it is a path, and no module; name a file in it, as ./{name}/mine.py")
        return Plugin(name)
    if "://" in name or path.suffix != ".py":
        raise UserError(
            f"plugins: {name}: a plugin is a file, such as ./mine.py, or a module, such as my_package.parts"
        )
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"plugins: {path}: it is a folder or a device; give the path of a file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"plugins: {path} has more than {_MAX_BYTES >> 20} MiB: a plugin is a file of Python")
        return Plugin(str(path), content.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"plugins: {path}: {error.strerror or one_line(error)}; give the path of a file") from None
    except UnicodeDecodeError:
        raise UserError(f"plugins: {path}: it is not a text in UTF-8") from None


def _execute(plugin: Plugin) -> None:
    # Not imported above: a command without plugins starts without torch.
    from gebm.registry import all_or_nothing, load_source

    try:
        with all_or_nothing(), _unchanged_process():
            if plugin.source is None:
                importlib.import_module(plugin.module)
            else:
                load_source(plugin.source, plugin.name, plugin.module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        ends = isinstance(error, SystemExit)
        reason = "SystemExit: a plugin is imported, and must not end the command" if ends else _reason(error)
        location = place_of(error, _is_file_of(plugin)) or plugin.name
        raise UserError(f"plugins: {location}: {reason}") from None
    _loaded[plugin.name] = plugin


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Restore the state that an import may change, and print its output on standard error."""
    import torch

    folder, dtype = os.getcwd(), torch.get_default_dtype()
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            os.chdir(folder)
            torch.set_default_dtype(dtype)


def _is_file_of(plugin: Plugin) -> Callable[[str], bool]:
    """Return the function that says whether a path is that of a plugin's code."""
    if plugin.source is not None:
        return lambda path: path == plugin.name
    try:
        spec = importlib.util.find_spec(plugin.name.partition(".")[0])
    except ValueError:
        spec = None
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    return lambda path: (
        spec is not None and (path == spec.origin or any(Path(path).is_relative_to(folder) for folder in folders))
    )


def _reason(error: BaseException) -> str:
    """Return the type and the message of an error, as one line."""
    return f"{type(error).__name__}: {one_line(error, limit=300)}".removesuffix(f": {type(error).__name__}")
