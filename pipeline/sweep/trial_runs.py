"""Runs of trials in the tracker: how one starts, and how those that the tracker has lost come back from the summary."""

from __future__ import annotations

from pipeline import config as schema
from pipeline.config.kernels import as_used
from pipeline.config.temperature import BETA, sampling_beta
from pipeline.tracking import provenance
from pipeline.tracking.summary import TERMINAL_STATUSES, SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker

__all__ = ["restore_runs", "start_run"]


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
    tracker.start_trial(record.name, schema.to_dict(as_used(trial)), tags)


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
        if ended:
            tracker.describe(record.name, record.error or record.status, {"status": record.status})
            tracker.end(record.name, "FAILED" if record.status == "failed" else "FINISHED")
