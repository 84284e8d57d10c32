"""Commands that are printed for the user to copy, quoted for a shell as the last thing that is done to them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.config import invocation
from pipeline.config.compose import format_overrides

__all__ = ["command_words", "format_command", "quote_words"]


def command_words(command: str, keys: Mapping[str, Any] | None = None, *, config_dir: str | None = None) -> list[str]:
    r"""Return the words of a command of the project, each quoted for a shell.

    Args:
        command: ``sweep``, ``train``, ``sample`` or another command.
        keys: Its overrides; see :func:`pipeline.config.compose.format_overrides`.
        config_dir: Folder of the user's own experiments (default: that of ``--config-dir``, where a key chooses one).

    Example:
        >>> command_words("sample", {"checkpoint": "results/a b"})
        ['python -m pipeline.sample', '\'checkpoint="results/a b"\'']
    """
    keys = keys or {}
    folder = config_dir or invocation.current().config_dir
    options = ["--config-dir", shlex.quote(folder)] if folder and "conf" in keys else []
    return [" ".join([f"python -m pipeline.{command}", *options]), *format_overrides(keys)]


def format_command(command: str, keys: Mapping[str, Any] | None = None) -> str:
    """Return a command of the project on one line, as it can be pasted into a shell.

    Args:
        command: ``sweep``, ``train``, ``sample`` or another command.
        keys: Its overrides; see :func:`pipeline.config.compose.format_overrides`.

    Example:
        >>> print(format_command("sweep", {"resume": "results/lsun;id"}))
        python -m pipeline.sweep 'resume="results/lsun;id"'
    """
    return " ".join(command_words(command, keys))


def quote_words(*words: str, **variables: str) -> str:
    """Return a command of another program on one line, quoted for a shell.

    Args:
        words: The program and its arguments.
        variables: Environment variables that are set for it.

    Example:
        >>> print(quote_words("mlflow", "ui", "--backend-store-uri", "sqlite:///a b.db", MLFLOW_X="1"))
        MLFLOW_X=1 mlflow ui --backend-store-uri 'sqlite:///a b.db'
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*settings, shlex.join(words)])
