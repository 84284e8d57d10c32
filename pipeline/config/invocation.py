"""Invocation of a command: the experiment's file, the folder of the user's own experiments, and the overrides.

A command is one process with one command line, so this is state of the process, like its arguments. The commands that
are printed for the user to run next are made from it (:mod:`pipeline.config.printed_commands`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Invocation", "current", "record"]

# Where the published files are: their URL may be signed, and each command has its own.
_SOURCE_URL = "data.source.url"
# Keys outside of ``data`` that are an experiment's own: its name in the tracker, and the code that its parts are of.
_OF_EXPERIMENT = ("name", "plugins")


@dataclass(frozen=True)
class Invocation:
    """What a command line chose.

    Args:
        conf: Name of the experiment's file: the choice of ``conf``.
        name: Name of the experiment, which its file sets.
        config_dir: Folder of ``--config-dir``, absolute, or ``None``.
        overrides: Keys that the command line names, dotted.
        names_conf: Whether the command line names ``conf``, which has a default.
    """

    conf: str = ""
    name: str = ""
    config_dir: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    names_conf: bool = False

    def experiment_keys(self, name: str) -> dict[str, Any]:
        """Return the overrides with which another command has the same experiment, and the same data.

        Args:
            name: Name of the experiment; where it is not the one of this command line, it counts as its file's name.

        Example:
            >>> overrides = {"name": "photos", "data.resolution": 16, "seed": 1}
            >>> Invocation("mine", "photos", "/a", overrides).experiment_keys("photos")
            {'conf': 'mine', 'name': 'photos', 'data.resolution': 16}
            >>> Invocation("mine", "digits", "/a").experiment_keys("lsun")
            {'conf': 'lsun'}
        """
        if not self.conf or name != self.name:
            return {"conf": name}
        kept = {key: value for key, value in self.overrides.items() if _is_kept(key)}
        return {"conf": self.conf, **kept}

    def facts(self, name: str) -> dict[str, str]:
        """Return what the summary of a sweep keeps, so that its report can name the experiment's file."""
        if not self.conf or name != self.name:
            return {}
        return {"conf": self.conf, **({"config_dir": self.config_dir} if self.config_dir else {})}


def _is_kept(key: str) -> bool:
    return key in _OF_EXPERIMENT or (key.startswith("data.") and key != _SOURCE_URL)


_current = Invocation()


def current() -> Invocation:
    """Return the invocation of this process; empty where no command line was composed, as on a cluster."""
    return _current


def record(invocation: Invocation) -> None:
    """Keep the invocation of this process.

    Args:
        invocation: The invocation; its ``config_dir`` is made absolute.
    """
    global _current
    folder = invocation.config_dir and str(Path(invocation.config_dir).absolute())
    _current = replace(invocation, config_dir=folder or None, overrides=dict(invocation.overrides))
