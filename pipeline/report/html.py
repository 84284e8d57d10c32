"""Report as one self-contained HTML file with interactive charts."""

from __future__ import annotations

import base64
import html

from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from pipeline.evaluation import plots
from pipeline.report.analysis import SweepResults
from pipeline.report.charts import charts
from pipeline.report.markdown import markdown

__all__ = [
    "report",
]

# No button of plotly's mode bar leads to another host.
_PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .875rem; }
img { max-width: 100%; }
"""


def report(results: SweepResults) -> dict[str, bytes]:
    """Return the report's files: the page, which requests nothing from any address, and its charts as PNG.

    Args:
        results: Results of the sweep.

    Returns:
        Contents by file name, ``report.html`` first.
    """
    drawn = charts(results)
    images = {f"{chart.key}.png": plots.png(chart.to_matplotlib()) for chart in drawn}
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(results, limit=None))
    parts = []
    for chart, image in zip(drawn, images.values(), strict=True):
        figure = chart.to_plotly()
        div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=chart.key, config=_PLOTLY_CONFIG)
        source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        parts.append(f'{div}<noscript><img alt="{html.escape(chart.title)}" src="{source}"></noscript>')
    title = html.escape(f"{results.experiment}: report of a sweep")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>{body}{''.join(parts)}</body></html>"
    )
    return {"report.html": page.encode(), **images}
