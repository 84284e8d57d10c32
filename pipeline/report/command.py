"""Command line of the commands that read finished sweeps, which have arguments and no config."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable
from pipeline.runtime.redaction import redact
from pipeline.runtime.standard_streams import drop_unwritable_output

__all__ = ["make_parser", "run_command"]

_EXIT_STATUS = """
exit status:
  0  written
  2  refused, with a one-line message that says what to do
"""


def make_parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return the parser of a command, without its arguments.

    Args:
        name: Name of the command, as in ``python -m pipeline.<name>``.
        description: What it does.
        examples: Example commands, one per line.
    """
    return argparse.ArgumentParser(
        prog=f"python -m pipeline.{name}",
        description=description,
        epilog=f"examples:\n{examples}{_EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None]) -> None:
    """Parse the arguments and run the command; a ``UserError`` is a one-line message, and exit status 2.

    Args:
        parser: Parser, with the arguments of the command.
        command: Called with the arguments.
    """
    drop_unwritable_output()
    try:
        arguments = parser.parse_args()
        for value in [arguments.sweep] if isinstance(arguments.sweep, str) else arguments.sweep:
            if value.startswith("output="):
                # As the commands with a config take it.
                raise UserError(f"{value}: this command takes --output {value.removeprefix('output=')}")
        command(arguments)
    except UserError as error:
        print(f"error: {printable(redact(str(error)))}", file=sys.stderr)
        sys.exit(2)
