"""Shell completion: commands, names of experiments and searches, and every key.

Hydra lists the candidates (``-sc query=bash``). Its own function for bash looks for a file behind ``python`` and finds
none behind ``python -m pipeline.sweep``, so that function is written here. It calls ``gebm -sc query=bash``, or
``python -m pipeline -sc query=bash``, with the line so far in ``COMP_LINE``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

import hydra

from pipeline.config import compose, schema
from pipeline.config.help import COMMANDS
from pipeline.runtime.errors import UserError

__all__ = ["complete", "completion_request"]

_FLAGS = ("-sc", "--shell-completion")
# Commands that take folders, which the shell completes by itself.
_WITHOUT_KEYS = ("report", "compare")
# Up to the first argument of a command: `.venv/bin/python -X dev -m pipeline.sweep ` or `gebm sweep `.
_COMMAND = re.compile(r"^(?:.*?\s-m\s+pipeline\.|.*?\s-m\s+pipeline\s+|\S*gebm\s+)(?P<command>\w+)\s")

# COMP_LINE ends at the cursor. Our words have no blanks; `=` and `:` are within them, and where bash breaks words
# there, only what is behind the last one may be given back.
_BASH = """\
_gebm_complete() {
  local words line="${COMP_LINE:0:COMP_POINT}" word="" choice call=("$1")
  COMPREPLY=()
  if [[ "$1" != *gebm ]]; then
    [[ "$line" =~ [[:space:]]-m[[:space:]]+pipeline(\\.[a-z]+)?[[:space:]] ]] || return 0
    call+=(-m pipeline)
  fi
  [[ "$line" =~ [[:space:]]$ ]] || word="${line##*[[:space:]]}"
  words="$(COMP_LINE="$line" "${call[@]}" -sc query=bash 2>/dev/null)" || return 0
  for choice in $words; do
    if [[ "$choice" == "$word"* ]]; then COMPREPLY+=("$choice"); fi
  done
  choice="${COMPREPLY[0]}"
  local breaks="${word%"${word##*[=:]}"}"
  if [[ -n "$breaks" && "$COMP_WORDBREAKS" == *"${breaks: -1}"* ]]; then COMPREPLY=("${COMPREPLY[@]#"$breaks"}"); fi
  if [[ ${#COMPREPLY[@]} == 1 && "$choice" != *[=.] ]]; then compopt +o nospace; fi
  return 0
}
complete -o nospace -o default -F _gebm_complete python python3 gebm
"""


def completion_request(args: list[str]) -> str | None:
    """Return what a command line requests of shell completion, such as ``install=bash``; ``None`` for nothing.

    Args:
        args: Arguments of a command.

    Example:
        >>> completion_request(["-sc", "install=bash"]), completion_request(["--shell-completion=query=bash"])
        ('install=bash', 'query=bash')
        >>> completion_request(["conf=lsun"]) is None
        True
    """
    for index, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag in _FLAGS:
            return value or " ".join(args[index + 1 : index + 2])
    return None


def complete(request: str, config_name: str | None = None) -> None:
    """Print what a shell requests.

    Args:
        request: ``install=bash``, ``uninstall=bash`` or ``query=bash``, which reads the line from ``COMP_LINE``.
        config_name: Name of the config in Hydra's ConfigStore whose keys are completed (default: by the command that
            the line names; where it names none, the commands are completed).

    Raises:
        UserError: The request is for another shell.
    """
    if request == "install=bash":
        print(_BASH, end="")
    elif request == "uninstall=bash":
        print("complete -r python python3 gebm; unset -f _gebm_complete")
    elif request == "query=bash":
        line = os.environ.get("COMP_LINE", "")
        named = _COMMAND.match(line)
        if config_name is None and named is None:
            print(*COMMANDS)
        elif named is None or named["command"] not in _WITHOUT_KEYS:
            _print_keys(_COMMAND.sub("", line), config_name or _config_name(named["command"] if named else ""))
    else:
        raise UserError(
            f'--shell-completion {request}: there is completion for bash, by eval "$(python -m pipeline.sweep -sc '
            f'install=bash)"'
        )


def _config_name(command: str) -> str:
    """Return the name of a command's config; importing it registers the groups of launchers."""
    if command != "submit":
        return schema.CONFIG_NAME
    from pipeline.config.launcher_schema import SUBMISSION

    return SUBMISSION


def _print_keys(args: str, config_name: str) -> None:
    """Print the words that may come at the end of a command's arguments."""
    os.environ["COMP_LINE"] = f"python pipeline {args}"
    sys.argv[1:] = ["-sc", "query=bash"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        hydra.main(config_path=str(compose.config_root()), config_name=config_name, version_base="1.3")(
            lambda _: None
        )()
    # In a checkout each folder next to conf/ could be a config group, and none is.
    print(*(word for word in printed.getvalue().split() if "=" in word or word.endswith(".")))
