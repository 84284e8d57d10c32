"""What a shell may complete: names of experiments and searches, and every key.

Hydra knows the words (``-sc query=bash``). Its own function for bash looks for a file behind ``python`` and finds none
behind ``python -m pipeline.sweep``, so that function is made here. It asks this module, which imports next to nothing:
whoever presses the tabulator should not wait for torch and Ray.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

import hydra

from pipeline.config import compose, schema
from pipeline.runtime.errors import UserError

__all__ = ["complete", "completion_request", "main"]

_FLAGS = ("-sc", "--shell-completion")
# Up to the first word of ours: `.venv/bin/python -X dev -m pipeline.sweep `.
_COMMAND = re.compile(r"^.*?\s-m\s+pipeline\.\w+\s")

# COMP_LINE goes as far as the cursor. Words of ours have no blanks; `=` and `:` are within them, and where bash breaks
# words there, only what is behind the last one may be given back.
_BASH = """\
_gebm_complete() {
  local python="$1" words line="${COMP_LINE:0:COMP_POINT}" word="" choice
  COMPREPLY=()
  [[ "$line" =~ [[:space:]]-m[[:space:]]+pipeline\\.[a-z]+[[:space:]] ]] || return 0
  [[ "$line" =~ [[:space:]]$ ]] || word="${line##*[[:space:]]}"
  words="$(COMP_LINE="$line" "$python" -m pipeline.config.completion 2>/dev/null)" || return 0
  for choice in $words; do
    if [[ "$choice" == "$word"* ]]; then COMPREPLY+=("$choice"); fi
  done
  choice="${COMPREPLY[0]}"
  local breaks="${word%"${word##*[=:]}"}"
  if [[ -n "$breaks" && "$COMP_WORDBREAKS" == *"${breaks: -1}"* ]]; then COMPREPLY=("${COMPREPLY[@]#"$breaks"}"); fi
  if [[ ${#COMPREPLY[@]} == 1 && "$choice" != *[=.] ]]; then compopt +o nospace; fi
  return 0
}
complete -o nospace -o default -F _gebm_complete python python3
"""


def completion_request(words: list[str]) -> str | None:
    """What the words of a command line ask of a shell's completion, such as ``install=bash``; None if nothing.

    Example:
        >>> completion_request(["-sc", "install=bash"]), completion_request(["--shell-completion=query=bash"])
        ('install=bash', 'query=bash')
        >>> completion_request(["conf=lsun"]) is None
        True
    """
    for index, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in _FLAGS:
            return value or " ".join(words[index + 1 : index + 2])
    return None


def complete(asked: str, config_name: str) -> None:
    """Print what a shell asks for.

    Args:
        asked: ``install=bash``, ``uninstall=bash`` or ``query=bash``, which takes the line from ``COMP_LINE``.
        config_name: what is composed, by its name in Hydra's ConfigStore.

    Raises:
        UserError: it is of another shell.
    """
    if asked == "install=bash":
        print(_BASH, end="")
    elif asked == "uninstall=bash":
        print("complete -r python python3; unset -f _gebm_complete")
    elif asked == "query=bash":
        _query(config_name)
    else:
        raise UserError(
            f'--shell-completion {asked}: there is completion for bash, by eval "$(python -m pipeline.sweep -sc '
            f'install=bash)"'
        )


def _query(config_name: str) -> None:
    line = _COMMAND.sub("python pipeline ", os.environ.get("COMP_LINE", ""))
    os.environ["COMP_LINE"] = line if line.startswith("python pipeline ") else f"python pipeline {line}"
    sys.argv[1:] = ["-sc", "query=bash"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        hydra.main(config_path=str(compose.config_root()), config_name=config_name, version_base="1.3")(
            lambda _: None
        )()
    # In a checkout each folder beside conf/ could be a config group, and none is.
    print(*(word for word in printed.getvalue().split() if "=" in word or word.endswith(".")))


def main() -> None:
    """Print the words that may come at the end of ``COMP_LINE``, which names a verb of this project."""
    config_name = schema.CONFIG_NAME
    if re.search(r"\s-m\s+pipeline\.submit\s", os.environ.get("COMP_LINE", "")):
        from pipeline.config.launchers import SUBMISSION

        config_name = SUBMISSION
    complete("query=bash", config_name)


if __name__ == "__main__":
    main()
