"""Report as one self-contained HTML file: text, pictures of samples, interactive charts, and tables that sort."""

from __future__ import annotations

from plotly.offline import get_plotlyjs

from pipeline.evaluation import plots
from pipeline.report.analysis import SweepResults
from pipeline.report.chart_types import Chart
from pipeline.report.charts import charts
from pipeline.report.markdown import sections
from pipeline.report.page import document, gallery_section, image, render
from pipeline.report.pictures import galleries

__all__ = [
    "report",
]

# No button of plotly's mode bar leads to another host.
_PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
# Sections of the text that pictures and charts follow.
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
        parts.append(f'<section id="{key}">{render(text)}</section>')
        if key == _BEFORE_PICTURES:
            parts += [gallery_section(gallery) for gallery in galleries(results)]
        if key == _BEFORE_CHARTS:
            chart_parts = [_chart(chart, still) for chart, still in zip(drawn, images.values(), strict=True)]
            parts.append(f'<div class="charts">{"".join(chart_parts)}</div>')
    page = document(f"{results.experiment}: report of a sweep", "".join(parts), get_plotlyjs())
    return {"report.html": page, **images}


def _chart(chart: Chart, still: bytes) -> str:
    """Return an interactive chart, and a picture for browsers in which no script runs."""
    figure = chart.to_plotly()
    div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=chart.key, config=_PLOTLY_CONFIG)
    return f'<div class="chart">{div}<noscript>{image("image/png", still, chart.title)}</noscript></div>'
