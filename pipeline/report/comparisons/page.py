"""Page of a comparison: Markdown, and one HTML file that requests nothing from any address."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.comparisons.groups import Group
from pipeline.report.comparisons.pictures import sample_galleries
from pipeline.report.comparisons.tables import Table, differences_table, groups_table, missing_lines, scores_table
from pipeline.report.escaping import escape
from pipeline.report.page import document, gallery_section, render

__all__ = ["html_page", "markdown", "sections"]


def sections(groups: Sequence[Group]) -> list[Table]:
    """Return the tables of a comparison, the one of the scores first."""
    return [scores_table(groups), differences_table(groups), groups_table(groups)]


def markdown(groups: Sequence[Group]) -> str:
    """Return the comparison in Markdown.

    Args:
        groups: Groups of runs.
    """
    scores, *others = sections(groups)
    parts = [f"# {_title(groups)}", _table(scores), _missing(groups)]
    parts += [f"## {escape(table.title)}\n\n{_table(table)}" for table in others]
    folders = dict.fromkeys(sweep.folder for group in groups for sweep in group.sweeps)
    parts.append("## Sweeps\n\n" + "\n".join(f"- {escape(folder)}" for folder in folders))
    return "\n\n".join(part for part in parts if part) + "\n"


def html_page(groups: Sequence[Group]) -> bytes:
    """Return the comparison as one HTML file, with sample grids side by side.

    Args:
        groups: Groups of runs.
    """
    galleries = "".join(map(gallery_section, sample_galleries(groups)))
    return document(_title(groups), render(markdown(groups)) + galleries)


def _title(groups: Sequence[Group]) -> str:
    count = len({sweep.folder for group in groups for sweep in group.sweeps})
    return f"{scores_table(groups).title} of {count} sweep{'s' if count > 1 else ''}"


def _table(table: Table) -> str:
    lines = [table.heads, ["---"] * len(table.heads), *table.rows]
    cells = [[escape(cell) if index != 1 else cell for cell in line] for index, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + f"\n\n{escape(table.note)}"


def _missing(groups: Sequence[Group]) -> str:
    lines = missing_lines(groups)
    return "## What is missing\n\n" + "\n".join(f"- {escape(line)}" for line in lines) if lines else ""
