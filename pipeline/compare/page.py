"""Page of a comparison: Markdown, and one HTML file that requests nothing from any address."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from markdown_it import MarkdownIt

from pipeline.compare.groups import Group
from pipeline.compare.pictures import sample_grid
from pipeline.compare.tables import Table, differences_table, groups_table, missing_lines, scores_table
from pipeline.report.escaping import escape
from pipeline.runtime.printable import printable

__all__ = ["html_page", "markdown", "sections"]

# Bytes of all pictures together.
_MAX_PICTURES = 6_000_000

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right; }
.grids { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 0 1 22rem; }
figcaption { font-size: .875rem; overflow-wrap: anywhere; }
img { max-width: 100%; }
"""


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
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(groups))
    title = html.escape(printable(_title(groups)))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body>{body}{_grids(groups)}</body></html>"
    )
    return page.encode()


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


def _grids(groups: Sequence[Group]) -> str:
    """Return the samples of each group in a row for each data set, of a seed that as many as possible have."""
    parts, left = ["<h2>Samples</h2>"], _MAX_PICTURES
    for data in dict.fromkeys(group.data for group in groups):
        ones = [group for group in groups if group.data == data and group.runs]
        seeds = sorted({seed for group in ones for seed in group.runs})
        if not ones:
            continue
        usual = max(seeds, key=lambda seed: sum(seed in group.runs for group in ones))
        figures = []
        for group in ones:
            content, caption = sample_grid(group, usual if usual in group.runs else min(group.runs))
            if content is not None and len(content) > left:
                content, caption = None, f"{caption}: left out, for the page has no room for it"
            left -= len(content or b"")
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}" if content else ""
            picture = f'<img alt="samples" src="{source}">' if content else ""
            figures.append(f"<figure>{picture}<figcaption>{html.escape(printable(caption))}</figcaption></figure>")
        parts.append(f'<h3>{html.escape(printable(data))}</h3><div class="grids">{"".join(figures)}</div>')
    return "".join(parts)
