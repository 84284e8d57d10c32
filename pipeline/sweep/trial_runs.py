"""Runs of trials in the tracker: how one starts, and how those that the tracker has lost come back from the summary."""

from __future__ import annotations

import yaml

from pipeline import config as schema
from pipeline.config.kernels import as_used
from pipeline.config.scores import STANDARD_ERROR
from pipeline.config.temperature import BETA, sampling_beta
from pipeline.tracking import provenance
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker

__all__ = ["end_run", "log_best", "restore_runs", "start_run", "view_columns"]


def start_run(config: schema.Config, record: TrialRecord, tracker: Tracker) -> None:
    """Start a trial's run in the tracker, or reopen the one that it has.

    Args:
        config: The experiment.
        record: The trial.
        tracker: MLflow.
    """
    trial = schema.apply(config, record.params)
    beta = sampling_beta(config, record.params)
    tags = provenance.tags(trial) | ({} if beta is None else {BETA: f"{beta:g}"})
    used = as_used(trial)
    text = yaml.safe_dump(schema.to_dict(used), sort_keys=False)
    tracker.start_trial(record.name, provenance.shown_params(used, record.params), tags, text)


def restore_runs(config: schema.Config, records: SweepSummary, tracker: Tracker) -> None:
    """Give trials that ran before a run under the sweep's new one, with the scores that the summary has.

    Args:
        config: The experiment.
        records: Its trials.
        tracker: MLflow, in which the sweep has just got a new run.
    """
    for record in records.trials:
        ended = record.status in TERMINAL_STATUSES
        if not ended and not record.evaluations:
            continue
        start_run(config, record, tracker)
        for evaluation in record.evaluations:
            tracker.log_metrics(record.name, evaluation, step=int(evaluation["base_step"]))
        for metrics in (record.best_metrics, record.metrics):
            if "base_step" in metrics:
                tracker.log_metrics(record.name, metrics, step=int(metrics["base_step"]))
        log_best(record, records, tracker)
        if ended:
            tracker.describe(record.name, record.error or record.status, {"status": record.status})
            end_run(record, tracker)


def view_columns(records: SweepSummary) -> list[str]:
    """Return the numbers of a trial's best evaluation that the tracker's table of trials has."""
    return list(dict.fromkeys([*records.shown, records.metric, f"{records.metric}{STANDARD_ERROR}"]))


def log_best(record: TrialRecord, records: SweepSummary, tracker: Tracker) -> None:
    """Log the scores of a trial's best evaluation so far, by which trials are ordered.

    They are at the largest base step that the trial has been evaluated at, since the tracker shows the value of the
    largest step, and population-based training takes a trial back in steps.

    Args:
        record: The trial.
        records: All trials.
        tracker: MLflow.
    """
    best = ((name, record.best_metrics.get(name)) for name in view_columns(records))
    scores = {name: value for name, value in best if isinstance(value, int | float)}
    steps = (int(evaluation["base_step"]) for evaluation in record.evaluations)
    tracker.log_best(record.name, scores, step=max(steps, default=0))


def end_run(record: TrialRecord, tracker: Tracker) -> None:
    """End a trial's run; one that was pruned or has failed has that in its name.

    Args:
        record: The trial, which has ended.
        tracker: MLflow.
    """
    name = f"trial {record.name}" + ("" if record.status == "finished" else f", {record.status}")
    # MLflow has no pruned runs; killed ones are also those that were stopped before their end.
    status = {"failed": "FAILED", "pruned": "KILLED"}.get(record.status, "FINISHED")
    tracker.end(record.name, status, name)
