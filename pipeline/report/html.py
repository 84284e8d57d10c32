"""A report as one HTML file that needs nothing else, with charts to point at."""

from __future__ import annotations

import base64
import html

from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from pipeline.evaluation import plots
from pipeline.report.analysis import SweepResults
from pipeline.report.charts import charts, draw, interactive
from pipeline.report.markdown import markdown

__all__ = [
    "report",
]

_BAR = {"displaylogo": False, "showSendToCloud": False}  # no button leads to somebody else's host

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .875rem; }
img { max-width: 100%; }
"""


def report(found: SweepResults) -> dict[str, bytes]:
    """The report's files: the page, for which no address outside of it is asked for anything, and its charts as PNG.

    Args:
        found: what the sweep has found.

    Returns:
        File name to contents, ``report.html`` first.
    """
    made = charts(found)
    stills = {f"{chart.key}.png": plots.png(draw(chart)) for chart in made}
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(found, limit=None))
    parts = []
    for chart, still in zip(made, stills.values(), strict=True):
        drawn = interactive(chart).to_html(full_html=False, include_plotlyjs=False, div_id=chart.key, config=_BAR)
        source = f"data:image/png;base64,{base64.b64encode(still).decode()}"
        parts.append(f'{drawn}<noscript><img alt="{html.escape(chart.title)}" src="{source}"></noscript>')
    title = html.escape(f"{found.experiment}: report of a sweep")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>{body}{''.join(parts)}</body></html>"
    )
    return {"report.html": page.encode(), **stills}
