"""Standard errors in charts and tables: shown where there are any, and not missed where an old summary has none."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console

from pipeline.config.scores import ChainPoint, chain_points
from pipeline.report.analysis import SweepResults, collect_results
from pipeline.report.charts import charts
from pipeline.report.markdown import markdown
from pipeline.sweep.display.tables import draw_trials
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.tracking.trial_reports import TrialReports, missed_reports

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
            chain = {0: ChainPoint(9.0), 50: ChainPoint(metrics["fid_gebm"], errors.get("fid_gebm_standard_error"))}
            records.evaluated(record, metrics, f"out/trials/{index:03d}/checkpoints/step-{step:08d}", chain)
    return collect_results("out", records, {})


@pytest.mark.parametrize("errors", [{"fid_gebm_standard_error": 0.1234}, {}], ids=["errors", "none"])
def test_charts_have_bars_of_two_standard_errors_where_scores_have_errors(errors):
    drawn = {chart.key: chart for chart in charts(swept(errors))}
    bar = pytest.approx(0.2468)
    # The base's point on the chain has none.
    for key, lengths in (
        ("learning_curves", [bar, bar]),
        ("against_train_base_lr", [bar, bar]),
        ("along_chain", [0.0, bar]),
    ):
        chart = drawn[key]
        bars = [series.errors for series in chart.series]
        assert (NOTE in chart.y) == bool(errors)
        assert bars[0] == (lengths if errors else [])
        # Both kinds of drawing take them.
        figure = chart.to_plotly()
        assert [trace.error_y.array is not None for trace in figure.data] == [bool(errors)] * len(figure.data)
        assert bool(chart.to_matplotlib().axes[0].collections) == (bool(errors) or key.startswith("against"))


def test_tables_show_as_many_digits_as_the_error_has():
    results = swept({"fid_gebm_standard_error": 0.1234})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(draw_trials(results.records))
    for text in (console.export_text(), markdown(results, limit=None)):
        assert "4.64 ± 0.12" in text and "9.00 ±" not in text


def test_the_trials_are_in_the_order_of_a_score_that_the_table_has():
    results = swept({"validation": 3.25})
    results.records.metric = "validation"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(draw_trials(results.records, width=60))
    assert "validation" in console.export_text()
    assert re.search(r"\| trial\S* \| status.*\| validation", markdown(results, limit=None))


def test_an_error_that_is_no_number_is_not_shown():
    results = swept({"fid_gebm_standard_error": float("nan")})
    assert "±" not in markdown(results, limit=None)
    assert results.records.trials[0].evaluations[0] == {"base_step": 4, "fid_gebm": 4.7673}


def test_the_curve_along_the_chain_is_that_of_the_best_evaluation_and_survives_the_summary(tmp_path):
    records = swept({"fid_gebm_standard_error": 0.1234}).records
    records.output = str(tmp_path)
    records.trials[0].best_chain[75] = ChainPoint(math.nan, math.inf)
    records.write()
    chains = [trial.best_chain for trial in read_summary(str(tmp_path))[1]]
    # The second evaluation is the better one; what is not finite is not a point.
    assert chains[0] == {0: (9.0, None), 50: (4.5173 + 1 / 8, 0.1234)}
    assert chains[1] == records.trials[1].best_chain
    # A summary of an earlier version has none.
    document = json.loads((tmp_path / "summary.json").read_text())
    for trial in document["trials"]:
        del trial["best_chain"]
    (tmp_path / "summary.json").write_text(json.dumps(document))
    assert [trial.best_chain for trial in read_summary(str(tmp_path))[1]] == [{}, {}]


def test_reports_without_errors_along_the_chain_still_read(tmp_path):
    reports = TrialReports(str(tmp_path))
    for chain in ({"0": 5.0, "50": 4.0}, {"0": [5.0, 0.2], "50": [4.0, None]}, {"0": [5.0, 0.2, 1.0]}, {"x": 5.0}):
        reports.add({"base_step": 4, "chain": chain})
    found = [chain_points(report["chain"]) for _, report in missed_reports(str(tmp_path), after=0)]
    # Lines that no trial writes are left out.
    assert found == [{0: (5.0, None), 50: (4.0, None)}, {0: (5.0, 0.2), 50: (4.0, None)}]
