"""From the command line to a verb: Hydra composes, a user's mistake becomes one line and exit status 2."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import completion, schema
from pipeline.config.compose import RENAMED_KEYS, config_root, experiments, from_dict, searches
from pipeline.config.help import help_text
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import redact, refuse_secrets

__all__ = ["Task", "command"]


Task = Callable[[Any, dict[str, Any]], int]
# Which file of a group the command line names is no key.
_GROUPS = ("conf", "sweeps", "launch")


def command(
    description: str,
    examples: list[str],
    *,
    groups: tuple[str, ...] = ("conf", "sweeps"),
    sections: Mapping[str, str] | None = None,
    presigned_keys: tuple[str, ...] = (),
    config_name: str = schema.CONFIG_NAME,
    parse: Callable[[dict[str, Any]], Any] = from_dict,
) -> Callable[[Task], Callable[[], None]]:
    """Make a function of a config the main function of ``python -m pipeline.<verb>``.

    Args:
        description: one or two sentences for ``--help``.
        examples: commands for ``--help``.
        groups: the config groups that it is about: experiments, searches, or none where a checkpoint says.
        sections: what else ``--help`` tells, by heading.
        presigned_keys: keys whose URL may be signed, since it is written nowhere as it is.
        config_name: what is composed, by its name in Hydra's ConfigStore.
        parse: makes what the task takes of the composed keys.

    Returns:
        A decorator. What it decorates takes the config and those keys that were named on the command line, and returns
        the exit status; what comes out takes no argument, and exits with status 2 after one line on standard error for
        whatever the user can mend: an unknown key, a wrong type, a missing store, a password in a URL. Nothing that is
        printed of an error has a credential in it.
    """

    def decorate(task: Task) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            # With this set Hydra lets errors through to us; without it, it prints its own text and exits with 1.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            if any(flag in sys.argv[1:] for flag in ("--help", "-h")):
                print(help_text(description, examples, groups, sections or {}))
                return
            compose = hydra.main(config_path=str(config_root()), config_name=config_name, version_base="1.3")

            composed: list[tuple[DictConfig, dict[str, Any]]] = []

            def keep(values: DictConfig) -> None:
                composed.append((values, _named(values)))

            try:
                if (asked := completion.completion_request(sys.argv[1:])) is not None:
                    completion.complete(asked, config_name)
                    return
                try:
                    compose(keep)()
                except ValueError as error:  # Hydra's own, of a group that is not a name
                    raise UserError(_one_line(error)) from None
                # Run out here: Hydra would add lines of its own to whatever is raised. It has composed nothing where
                # it was only asked to show the config or to complete a word.
                for values, named in composed:
                    plain = OmegaConf.to_container(values, resolve=True)
                    keys = {key: plain[key] for key in plain if key not in schema.HYDRA_KEYS}
                    refuse_secrets(keys, presigned_keys)
                    sys.exit(task(parse(keys), named))
            except UserError as error:
                _refuse(str(error))
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                sys.exit(130)
            except (HydraException, OmegaConfBaseException) as error:
                _refuse(_one_line(error))
            except Exception:  # a mistake of ours, or of a library that quotes what it was given
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
                sys.exit(1)

        return main

    return decorate


def _named(values: DictConfig) -> dict[str, Any]:
    """The keys that the command line names, with their values; which experiment and search it names is no key."""
    parsed = OverridesParser.create().parse_overrides(HydraConfig.get().overrides.task)
    keys = [override.key_or_group.lstrip("+~") for override in parsed]
    named = {key: OmegaConf.select(values, key) for key in keys if key not in _GROUPS}
    return {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in named.items()}


def _refuse(reason: str) -> None:
    print(f"error: {redact(reason)}", file=sys.stderr)
    sys.exit(2)


def _one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors, cut to the sentence that says what is wrong."""
    for key in re.findall(r"full_key: ([\w.]+)", f"{error}\n{error.__cause__}"):
        if key in RENAMED_KEYS:
            return f"{key} is called {RENAMED_KEYS[key]} now"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    if cause is not None:
        lines.append(str(cause).splitlines()[0].strip())
    text = "; ".join(lines[:1] + lines[-1:] if cause is not None else lines[:1])
    if "conf/" in text:
        return f"{text}. Experiments: {', '.join(experiments())}"
    if "sweeps/" in text:
        return f"{text}. Searches: {', '.join(searches())}"
    if "Available options" in str(error):
        names = str(error).partition("Available options")[2].partition("\n")[2].partition("Config search path")[0]
        return f"{text}. Options: {', '.join(names.split())}"
    if "override" in text and ("parsing" in text or "Config group" in text):
        return f"{text}. Write key=value, and conf=... and sweeps=... as names that --help lists"
    if "is not in struct" in text or "Could not override" in text:
        return f"{text}. `--cfg job` prints every key there is"
    return text
