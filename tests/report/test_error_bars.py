"""Standard errors in charts and tables: shown where there are any, and not missed where an old summary has none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.report.analysis import SweepResults, collect_results
from pipeline.report.charts import charts
from pipeline.report.markdown import markdown
from pipeline.sweep.display.console import results_table
from pipeline.tracking.summary import SweepSummary

NOTE = "bars: two standard errors"


def swept(errors: dict[str, float]) -> SweepResults:
    """A sweep of two trials over a learning rate, each evaluated twice, with these standard errors."""
    facts = {"experiment": "x", "measure": "FID by any"}
    records = SweepSummary("out", metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts=facts)
    for index, value in enumerate((4.5173, 6.0)):
        record = records.add(f"{index:03d}", {"train.base_lr": 1e-4 * (index + 1)})
        record.status = "finished"
        for step in (4, 8):
            metrics = {"base_step": step, "fid_base": 9.0, "fid_gebm": value + 1 / step, **errors}
            records.evaluated(record, metrics, f"out/trials/{index:03d}/checkpoints/step-{step:08d}")
    return collect_results("out", records, {})


@pytest.mark.parametrize("errors", [{"fid_gebm_standard_error": 0.1234}, {}], ids=["errors", "none"])
def test_charts_have_bars_of_two_standard_errors_where_scores_have_errors(errors):
    drawn = {chart.key: chart for chart in charts(swept(errors))}
    for key, count in (("learning_curves", 2), ("against_train_base_lr", 2)):
        chart = drawn[key]
        bars = [series.errors for series in chart.series]
        assert (NOTE in chart.y) == bool(errors)
        assert bars[0] == ([pytest.approx(0.2468)] * count if errors else [])
        # Both kinds of drawing take them.
        figure = chart.to_plotly()
        assert [trace.error_y.array is not None for trace in figure.data] == [bool(errors)] * len(figure.data)
        assert bool(chart.to_matplotlib().axes[0].collections) == (bool(errors) or key != "learning_curves")


def test_tables_show_as_many_digits_as_the_error_has():
    results = swept({"fid_gebm_standard_error": 0.1234})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(results.records))
    for text in (console.export_text(), markdown(results, limit=None)):
        assert "4.64 ± 0.12" in text and "9.00 ±" not in text


def test_an_error_that_is_no_number_is_not_shown():
    results = swept({"fid_gebm_standard_error": float("nan")})
    assert "±" not in markdown(results, limit=None)
    assert results.records.trials[0].evaluations[0] == {"base_step": 4, "fid_gebm": 4.7673}
