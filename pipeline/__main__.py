"""``gebm <command>`` and ``python -m pipeline <command>``: all commands of the project under one name."""

from __future__ import annotations

import runpy
import sys

from pipeline.config.command import report_error
from pipeline.config.completion import complete, completion_request
from pipeline.config.help import COMMANDS, overview
from pipeline.runtime.errors import UserError
from pipeline.runtime.standard_streams import drop_unwritable_output

__all__ = ["main"]


def main() -> None:
    """Run the command that the first argument names, as ``python -m pipeline.<command>`` does."""
    drop_unwritable_output()
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(overview())
        return
    try:
        if (request := completion_request([name, *args[:1]])) is not None and name.startswith("-"):
            complete(request)
            return
        if name not in COMMANDS:
            raise UserError(f"no command {name!r}: choose one of {', '.join(COMMANDS)}")
    except UserError as error:
        sys.exit(report_error(error))
    sys.argv[1:] = args
    runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
