"""Shared view of a sweep's trials in MLflow's UI: ordered by score, with searched keys, scores and charts.

MLflow keeps a shared view as a tag of the experiment, and opens it by its key in the address. A view is JSON; MLflow 3
ignores keys that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

__all__ = ["route", "shared_view", "tag_name"]

# Searched keys that are columns, and axes of the chart that has them. A tag of an experiment has 5,000 bytes.
_MAX_SEARCHED = 10
_SECTION = "score"


def tag_name(run_id: str) -> str:
    """Return the name of the experiment's tag that a view is kept in.

    Args:
        run_id: Run of the sweep, which is the view's key.
    """
    return f"mlflow.sharedViewState.{run_id}"


def route(experiment_id: str, run_id: str) -> str:
    """Return the address of a view, behind that of the server.

    Example:
        >>> route("1", "0af1")
        '#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=0af1'
    """
    # Without the first, a new browser shows MLflow's pages for language models.
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={run_id}"


def shared_view(run_id: str, metrics: Sequence[str], score: str, *, is_ascending: bool, searched: Sequence[str]) -> str:
    """Return the view of a sweep's trials.

    Args:
        run_id: Run of the sweep.
        metrics: Names of the metrics in its columns, as MLflow has them.
        score: The one that trials are ranked by.
        is_ascending: Whether the lowest score is the best.
        searched: Keys that the search sets, in its order.

    Returns:
        JSON.

    Example:
        >>> view = json.loads(shared_view("0af1", ["fid/gebm"], "fid/gebm", is_ascending=True, searched=["seed"]))
        >>> view["orderByKey"], view["selectedColumns"]
        ('metrics.`fid/gebm`', ['metrics.`fid/gebm`', 'params.`seed`', 'tags.`status`'])
    """
    keys = list(searched)[:_MAX_SEARCHED]
    columns = [*_columns("metrics", metrics), *_columns("params", keys), *_columns("tags", ["status"])]
    return json.dumps(
        {
            "searchFilter": f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'",
            "orderByKey": f"metrics.`{score}`",
            "orderByAsc": is_ascending,
            "selectedColumns": columns,
            "compareRunSections": [
                {"uuid": _SECTION, "name": "Score", "display": True, "isReordered": False, "deleted": False}
            ],
            "compareRunCharts": _charts(score, keys),
            # Otherwise sections are sorted by their names.
            "isAccordionReordered": True,
        },
        separators=(",", ":"),
    )


def _charts(score: str, searched: Sequence[str]) -> list[dict[str, Any]]:
    curve = {
        "uuid": "score-over-steps",
        "type": "LINE",
        "metricKey": score,
        "displayName": score,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "range": {},
    }
    of_searched = {
        "uuid": "score-by-searched",
        "type": "PARALLEL",
        "selectedParams": list(searched),
        "selectedMetrics": [score],
        "showAllRuns": False,
    }
    common = {"runsCountToCompare": 100, "metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    return [{**common, **chart} for chart in ([of_searched, curve] if searched else [curve])]


def _columns(kind: str, names: Sequence[str]) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]
