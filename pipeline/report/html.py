"""Report as one self-contained HTML file: text, pictures of samples, interactive charts, and tables that sort."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from pipeline.evaluation import plots
from pipeline.report.analysis import SweepResults
from pipeline.report.chart_types import Chart
from pipeline.report.charts import charts
from pipeline.report.escaping import escape
from pipeline.report.markdown import sections
from pipeline.report.pictures import Gallery, galleries

__all__ = [
    "report",
]

# No button of plotly's mode bar leads to another host.
_PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
# What a browser may load for the page: nothing of any address. Plotly saves a chart by way of a blob.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
# Sections of the text after which pictures and charts stand.
_BEFORE_PICTURES, _BEFORE_CHARTS = "best", "importances"


def report(results: SweepResults) -> dict[str, bytes]:
    """Return the report's files: the page, which requests nothing from any address, and its charts as PNG.

    Args:
        results: Results of the sweep.

    Returns:
        Contents by file name, ``report.html`` first.
    """
    drawn = charts(results)
    images = {f"{chart.key}.png": plots.png(chart.to_matplotlib()) for chart in drawn}
    parts = []
    for key, text in sections(results).items():
        parts.append(f'<section id="{key}">{_render(text)}</section>')
        if key == _BEFORE_PICTURES:
            parts += [_gallery(gallery) for gallery in galleries(results)]
        if key == _BEFORE_CHARTS:
            chart_parts = [_chart(chart, image) for chart, image in zip(drawn, images.values(), strict=True)]
            parts.append(f'<div class="charts">{"".join(chart_parts)}</div>')
    title = html.escape(f"{results.experiment}: report of a sweep")
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{style}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>{''.join(parts)}<script>{script}</script></body></html>"
    )
    return {"report.html": page.encode(), **images}


def _render(text: str) -> str:
    """Return Markdown as HTML, in which no markup of the text's own is any."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def _chart(chart: Chart, image: bytes) -> str:
    """Return an interactive chart, and in its place a picture where no script runs."""
    figure = chart.to_plotly()
    div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=chart.key, config=_PLOTLY_CONFIG)
    return f'<div class="chart">{div}<noscript>{_image("image/png", image, chart.title)}</noscript></div>'


def _gallery(gallery: Gallery) -> str:
    """Return a section of pictures side by side, and the lines on those that are missing."""
    shown = [
        f"<figure>{_image(media_type, content, caption or gallery.title)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, media_type, content in gallery.pictures
    ]
    missing = "\n".join(f"- {escape(line)}" for line in gallery.missing)
    return (
        f'<section id="{gallery.key}"><h2>{html.escape(gallery.title)}</h2>'
        f'<div class="gallery">{"".join(shown)}</div>{_render(missing)}</section>'
    )


def _image(media_type: str, content: bytes, alt: str) -> str:
    source = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return f'<img alt="{html.escape(alt)}" src="{source}">'
