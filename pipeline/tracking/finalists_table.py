"""Table of a sweep's finalists: their second scores next to those that chose them."""

from __future__ import annotations

from pipeline.config.scores import format_score
from pipeline.tracking.summary import SweepSummary

__all__ = ["finalists_table"]


def finalists_table(records: SweepSummary) -> list[list[str]]:
    """Return the heads, and a row for each finalist with a second score, the best first.

    Args:
        records: The sweep's trials.

    Returns:
        Rows of text; empty where no second scores decide.
    """
    rows = []
    for finalist in records.finals():
        record = records.get(finalist.name)
        before = record.best_metrics if record is not None else {}
        scores = [format_score(metrics, records.metric, missing="-") for metrics in (finalist.metrics, before)]
        rows.append([finalist.name, *scores, str(finalist.rank)])
    return [["trial", records.metric, "before", "rank before"], *rows] if rows else []
