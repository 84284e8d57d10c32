"""Tables of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import table
from rich.text import Text

from pipeline.report.comparisons.groups import Group
from pipeline.report.comparisons.page import sections
from pipeline.report.comparisons.tables import Table, missing_lines
from pipeline.runtime.terminal import make_console

__all__ = ["print_comparison"]


def print_comparison(groups: Sequence[Group]) -> None:
    """Print the tables of a comparison, and what is missing.

    Args:
        groups: Groups of runs.
    """
    console = make_console()
    for made in sections(groups):
        console.print(_drawn(made))
        console.print(Text(made.note, "dim"))
        console.print()
    for line in missing_lines(groups):
        console.print(Text(f"missing   {line}"))


def _drawn(made: Table) -> table.Table:
    """Return a table as rich draws it; nothing in its cells is markup."""
    drawn = table.Table(title=Text(made.title), title_justify="left", header_style="bold")
    texts = ("data", "networks", "objective", "first", "second")
    for head in made.heads:
        drawn.add_column(Text(head), justify="left" if head in texts else "right", overflow="fold")
    for row in made.rows:
        drawn.add_row(*map(Text, row))
    return drawn
