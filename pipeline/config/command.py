"""Commands of the project: Hydra composes a config, and a user's error is a one-line message and exit status 2."""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import completion, invocation, plugins, schema
from pipeline.config.arguments import GROUPS, explain, quote_texts, text_keys
from pipeline.config.compose import RENAMED_KEYS, config_root, experiments, from_dict, searches
from pipeline.config.fields import keys
from pipeline.config.help import help_text
from pipeline.runtime.errors import LockLost, UserError
from pipeline.runtime.printable import printable
from pipeline.runtime.redaction import redact, refuse_secrets
from pipeline.runtime.standard_streams import drop_unwritable_output

__all__ = ["CommandLine", "Task", "command", "compose", "report_error", "run_command"]


Task = Callable[[Any, dict[str, Any]], int]
"""Body of a command: takes the config and the keys that the command line names, and returns the exit status."""

_MULTIRUN_MODE = re.compile(r"\+{0,2}hydra\.mode=[\"']?multirun[\"']?", re.IGNORECASE)


@dataclass(frozen=True)
class CommandLine:
    """Command line of one command.

    Args:
        help: Returns the text of ``--help``.
        config_name: Name of the composed config in Hydra's ConfigStore.
        parse: Makes the task's first argument from the composed keys.
        presigned_keys: Keys whose URL may be signed, since it is written nowhere as it is.
        text_keys: Keys whose value is a text, which is taken as it was typed.
    """

    help: Callable[[], str]
    config_name: str
    parse: Callable[[dict[str, Any]], Any]
    presigned_keys: tuple[str, ...]
    text_keys: frozenset[str]


def command(
    description: str,
    examples: list[str],
    *,
    groups: tuple[str, ...] = ("conf", "sweeps"),
    sections: Mapping[str, str] | None = None,
    presigned_keys: tuple[str, ...] = (),
    config_name: str = schema.CONFIG_NAME,
    parse: Callable[[dict[str, Any]], Any] = from_dict,
    more_text_keys: frozenset[str] = frozenset(),
) -> Callable[[Task], Callable[[], None]]:
    """Make a function of a config the main function of ``python -m pipeline.<command>``.

    The function imports what it needs in its body: ``--help``, ``--cfg job``, completion and a mistyped key are
    answered without torch and Ray.

    Args:
        description: One or two sentences for ``--help``.
        examples: Commands for ``--help``.
        groups: Config groups that ``--help`` lists: experiments, searches, or none where a checkpoint decides.
        sections: Further sections of ``--help``, by heading.
        presigned_keys: Keys whose URL may be signed, since it is written nowhere as it is.
        config_name: Name of the composed config in Hydra's ConfigStore.
        parse: Makes the task's first argument from the composed keys.
        more_text_keys: Keys beyond the schema's whose value is a text, which is taken as it was typed.

    Returns:
        A decorator. Its result takes no argument, and exits with the task's status, or with status 2 after a one-line
        message on standard error for whatever the user can fix: an unknown key, a wrong type, a missing store, a
        password in a URL. No message contains a credential.
    """
    text = functools.partial(help_text, description, examples, groups, sections or {})
    line = CommandLine(text, config_name, parse, presigned_keys, text_keys(schema.Config) | more_text_keys)
    return lambda task: functools.partial(run_command, task, line)


def run_command(task: Task, line: CommandLine) -> None:
    """Run a task with the config that ``sys.argv`` describes, and exit with its status.

    Args:
        task: Body of the command.
        line: Its command line.
    """
    drop_unwritable_output()
    # With this set Hydra raises its errors; without it, it prints a text of its own and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    args = sys.argv[1:]
    if "--help" in args or "-h" in args:
        print(line.help())
        return
    try:
        if (request := completion.completion_request(args)) is not None:
            completion.complete(request, line.config_name)
            return
        _refuse_multirun(args)
        sys.argv[1:] = quote_texts(args, line.text_keys)
        composed = compose(line.config_name)
        if composed is None:
            return
        values, overrides = composed
        refuse_secrets(values, line.presigned_keys)
        if "plugins" in values:
            values["plugins"] = plugins.load(values["plugins"])
            overrides |= {"plugins": values["plugins"]} if "plugins" in overrides else {}
        status = task(line.parse(values), overrides)
    except (Exception, KeyboardInterrupt) as error:
        status = report_error(error)
    sys.exit(status)


def _refuse_multirun(args: list[str]) -> None:
    """Refuse Hydra's multirun, which composes one config a job, where a command runs one.

    Args:
        args: Arguments of the command.

    Raises:
        UserError: They ask for several jobs.
    """
    # As Hydra reads them: options may be shortened, or joined as in -rm.
    if get_args_parser().parse_known_args(args)[0].multirun or any(map(_MULTIRUN_MODE.fullmatch, args)):
        raise UserError(
            "a command runs one job, and not several (-m, --multirun, hydra.mode): search values with "
            "`python -m pipeline.sweep sweeps=grid '++sweep.space={seed:{choice:[1,2,3]}}'`, or run one command each"
        )


def compose(config_name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Compose the config that ``sys.argv`` describes.

    Args:
        config_name: Name of the config in Hydra's ConfigStore.

    Returns:
        All keys, nested; and those that the command line names, dotted. ``None`` where Hydra has answered itself, as
        with ``--cfg job``.

    Raises:
        UserError: The choice of a group is not a name.
        HydraException: An experiment or a key is unknown.
        OmegaConfBaseException: A value has the wrong type.
    """
    composition = _Composition()
    try:
        hydra.main(config_path=str(config_root()), config_name=config_name, version_base="1.3")(composition)()
    except ValueError as error:
        raise UserError(_shorten(error)) from None
    if composition.error is not None:
        raise composition.error
    if composition.config is None:
        return None
    values = OmegaConf.to_container(composition.config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in schema.HYDRA_KEYS}, composition.overrides


def report_error(error: BaseException) -> int:
    """Print an error without credentials, and return the exit status that belongs to it.

    Args:
        error: What a command has raised.

    Returns:
        130 for Ctrl-C; 2 for an error of the user's or of their plugin, a one-line message; 1 for a lock that was lost,
        one line as well, and for any other, which is a traceback.
    """
    if isinstance(error, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    if isinstance(error, UserError | LockLost):
        reason = str(error)
    elif isinstance(error, HydraException | OmegaConfBaseException):
        reason = _shorten(error)
    elif (refusal := plugins.refusal(error)) is not None:
        reason = refusal
    else:
        # A bug, or the error of a library that quotes what it was given.
        print(printable(redact("".join(traceback.format_exception(error)))), end="", file=sys.stderr)
        return 1
    print(f"error: {printable(redact(reason))}", file=sys.stderr)
    return 1 if isinstance(error, LockLost) else 2


class _Composition:
    """Hydra task that keeps the composed config.

    Hydra returns nothing of its task, and prints the whole command line, credentials included, where an error is raised
    inside it. So an error is kept, and a command's body runs afterwards.
    """

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.overrides: dict[str, Any] = {}
        self.error: Exception | None = None

    def __call__(self, config: DictConfig) -> None:
        try:
            self._keep(config)
        except Exception as error:
            self.error = error

    def _keep(self, config: DictConfig) -> None:
        self.config, self.overrides = config, _overridden_keys(config)
        runtime = HydraConfig.get().runtime
        folders = [str(source.path) for source in runtime.config_sources if source.provider == "command-line"]
        name = OmegaConf.select(config, "name", default="")
        names_conf = any(re.match(r"\+*conf=", word) for word in HydraConfig.get().overrides.task)
        invocation.record(
            invocation.Invocation(
                str(runtime.choices["conf"]), name, next(iter(folders), None), self.overrides, names_conf
            )
        )


def _overridden_keys(config: DictConfig) -> dict[str, Any]:
    """Return the keys that the command line names, with their values."""
    parsed = OverridesParser.create().parse_overrides(HydraConfig.get().overrides.task)
    keys = [override.key_or_group.lstrip("+~") for override in parsed]
    values = {key: OmegaConf.select(config, key) for key in keys if key not in GROUPS}
    return {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in values.items()}


def _shorten(error: BaseException) -> str:
    """Return an error of Hydra or OmegaConf as one line that says what is wrong, and what there is to choose from."""
    if isinstance(error, OverrideParseException):
        return explain(error.override)
    for key in re.findall(r"full_key: ([\w.]+)", f"{error}\n{error.__cause__}"):
        if key in RENAMED_KEYS:
            return f"{key} is called {RENAMED_KEYS[key]} now"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:1]
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'$", str(error).partition("\n")[0]):
        key, _, value = ambiguous[1].partition("=")
        return (
            f"{ambiguous[1]}: it takes one value; to search over several, write "
            f"'++sweep.space={{{key.lstrip('+~')}:{{choice:[{value}]}}}}'"
        )
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines.append(str(error.__cause__).splitlines()[0].strip())
    text = "; ".join(lines)
    if "conf/" in text:
        return f"{text}. Experiments: {', '.join(experiments())}"
    if "sweeps/" in text:
        return f"{text}. Searches: {', '.join(searches())}"
    if "Available options" in str(error):
        names = str(error).partition("Available options")[2].partition("\n")[2].partition("Config search path")[0]
        return f"{text}. Options: {', '.join(names.split())}"
    if "override" in text and "Config group" in text:
        return f"{text}. Write key=value, and conf=... and sweeps=... as names that --help lists"
    if "is not in struct" in text or "Could not override" in text:
        return f"{text.replace('.; ', ': ')}{_nearest_key(error)} `--cfg job` prints every key there is"
    return text


def _nearest_key(error: BaseException) -> str:
    """Return the end of a sentence, which names the key that is spelled most like one that there is not."""
    names = [key.name for key in keys(schema.Config)]
    for key in re.findall(r"full_key: ([\w.]+)", f"{error}\n{error.__cause__}"):
        for near in difflib.get_close_matches(key, names, n=1, cutoff=0.8):
            return f"; did you mean {near}?"
    return "."
