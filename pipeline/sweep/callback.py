"""Tune callback that updates the summary, the terminal and the tracker."""

from __future__ import annotations

import logging
import time
from typing import Any

import psutil
from ray import tune

from pipeline import config as schema
from pipeline.config.scores import chain_points
from pipeline.config.temperature import BETA, sampling_beta
from pipeline.config.warm_up import FOUND_KERNEL
from pipeline.report.escaping import escape
from pipeline.runtime.errors import LockLost, one_line
from pipeline.runtime.redaction import redact
from pipeline.sweep.display.console import Display
from pipeline.sweep.display.eta import duration
from pipeline.sweep.display.event_log import as_event
from pipeline.sweep.gpu_share import suggest_share
from pipeline.sweep.ray_environment import log_folder
from pipeline.sweep.replay import lost_reports
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.sweep.trial_runs import end_run, log_best, start_run
from pipeline.tracking.summary import MAX_WARNINGS, SweepSummary, TrialRecord
from pipeline.tracking.summary_temperature import trial_beta, trial_temperature
from pipeline.tracking.summary_types import LABELS
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.trial_reports import CHAIN_STEP, NUMBER, SINCE_FIRST_STEP

__all__ = ["SweepCallback"]

log = logging.getLogger(__name__)

# Share of the driver's time that may go into writing the summary, which grows with the trials.
_MAX_WRITE_SHARE = 0.1


class SweepCallback(tune.Callback):
    """Callback that passes the trials' reports to the summary, the terminal and the tracker; only the driver does.

    Args:
        config: The experiment.
        records: The sweep's trials.
        tracker: MLflow.
        display: The terminal.
    """

    def __init__(self, config: schema.Config, records: SweepSummary, tracker: Tracker, display: Display) -> None:
        self._config, self._records, self._tracker, self._display = config, records, tracker, display
        self._score = schema.monitored_metrics(config)[0].removesuffix("_base")
        # When a trial has begun in its process, or last reported; of one that has lost its process there is none.
        self._started_at: dict[str, float] = {}
        # A sweep that is resumed continues at its last evaluation: when it was interrupted is not known.
        self._began_at = time.monotonic() - records.seconds()
        self._logged: set[str] = set()
        self._share_due = config.scale.gpus_per_worker == "auto"
        self._first_step_due = True
        # Exceptions of the trials' own processes, after which Tune tries again.
        self._failures: dict[str, str] = {}
        # Whether the summary has to be written, and when it may be.
        self._changed, self._write_due = False, 0.0

    def _require_lock(self) -> None:
        """End the search where another driver has taken over the folder; a storage that does not answer is no sign."""
        try:
            self._records.verify()
        except LockLost:
            raise
        # Each file system has exceptions of its own.
        except Exception:
            return

    def _record(self, trial: Any) -> TrialRecord:
        """Return the record of a trial, with the parameters that it has now."""
        self._require_lock()
        name = str(trial)
        params = {key: value for key, value in trial.config.items() if key != TRIAL_NAME_KEY}
        record = self._records.get(name) or self._records.add(name, params)
        # Population-based training changes them.
        if params != record.params:
            record.params = params
            values = [
                f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
            ]
            log.info(f"trial {name} exploits a better trial's weights; new values: {', '.join(values)}")
        return record

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start or resume a trial's run in the tracker."""
        record = self._record(trial)
        self._started_at[record.name] = time.monotonic()
        if record.status != "running":
            record.status, record.error = "running", None
            start_run(self._config, record, self._tracker)
            # Of a driver that died before it wrote the summary.
            self._replay(record)
        self._changed = True
        self._display.update(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take in a trial's report: a failure, a restart, the progress of its steps, or an evaluation."""
        record = self._record(trial)
        self._count_time(record)
        record.mlflow_run_id = self._tracker.trial_run_id(record.name) or record.mlflow_run_id
        # Tune adds keys of its own.
        report = {key: value for key, value in result.items() if key in result.get("reported", ())}
        if "error" in report:
            self._replay(record)
            record.error = redact(report["error"])
        elif "failure" in report:
            self._failures[record.name] = redact(report["failure"])
        elif "restart" in report:
            self._replay(record)
            log.info(f"trial {record.name} restarts from its last checkpoint: {report['restart']}")
        else:
            number = report.pop(NUMBER, None)
            if number is not None:
                self._replay(record, before=number)
                record.reports = number
            self._log_first_step(report.get(SINCE_FIRST_STEP))
            self._take_report(record, report)

    def _log_first_step(self, since: float | None) -> None:
        """Log once how long it took from the start of the command to the first step of its trials."""
        if self._first_step_due and since is not None:
            seconds = time.time() - psutil.Process().create_time() - since
            log.info(f"the first step was {duration(seconds)} after the start of the command")
            self._first_step_due = False

    def _replay(self, record: TrialRecord, before: int | None = None) -> None:
        """Take in the reports that the trial wrote down and that did not arrive."""
        for report in lost_reports(self._config, record, before):
            self._changed = True
            self._take_report(record, report)

    def _take_report(self, record: TrialRecord, report: dict[str, Any]) -> None:
        report.pop(SINCE_FIRST_STEP, None)
        self._take_warnings(record, report.get("warnings"))
        evaluated = isinstance(report.get(self._config.sweep.metric), int | float)
        # A trial that resumes reports its last evaluation first, in population-based training of a copy.
        if evaluated and self._records.is_newest(record, report):
            record.checkpoint = report.get("checkpoint") or record.checkpoint
            return
        numbers = {key: value for key, value in report.items() if isinstance(value, int | float)}
        is_best = False
        if evaluated:
            is_best = self._take_evaluation(record, report, numbers)
        else:
            record.metrics.update(numbers)
        self._log_notes(record, report.get("notes", ()))
        # The peak of a trial includes its chains once it has been evaluated.
        if evaluated and self._share_due:
            log.info(f"trial {record.name}: {suggest_share(self._config, report.get('system', {}))}")
            self._share_due = False
        system = {f"system/{name}": value for name, value in report.get("system", {}).items()}
        # Points along the chain of one model are told apart by their place on it.
        step = report["base_step"] if evaluated else report.get(CHAIN_STEP, report["base_step"])
        self._tracker.log_metrics(record.name, numbers | system, step=step)
        # A slider begins at step 0, and is empty at a step without a picture.
        self._tracker.log_pictures(record.name, report.get("start_figures", []), 0)
        if evaluated:
            self._tracker.log_chain(record.name, self._score, chain_points(report["chain"]), report["base_step"])
            if is_best:
                log_best(record, self._records, self._tracker)
            self._tracker.log_pictures(record.name, report["figures"], report["base_step"])
        self._display.update(record, numbers, evaluated=evaluated)

    def _take_evaluation(self, record: TrialRecord, report: dict[str, Any], numbers: dict[str, Any]) -> bool:
        """Add an evaluation to the summary, with what its scores depend on, and return whether it is the best."""
        numbers |= {name: report[name] for name in LABELS if name in report}
        # With the scores, since a sweep may be resumed with another beta than that of its earlier evaluations.
        beta = sampling_beta(self._config, record.params)
        if beta is not None:
            numbers.setdefault(BETA, beta)
        self._changed = True
        chain, kernel = chain_points(report["chain"]), report.get(FOUND_KERNEL)
        elapsed = time.monotonic() - self._began_at
        return self._records.evaluated(record, numbers, report.get("checkpoint"), chain, kernel, elapsed)

    def _log_notes(self, record: TrialRecord, notes: Any) -> None:
        """Log the notes of a report once: they come with each evaluation of each trial."""
        for note in set(notes) - self._logged:
            log.info(f"trial {record.name}: {note}")
            self._logged.add(note)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that a trial's own process died and is restarted."""
        record = self._record(trial)
        self._started_at.pop(record.name, None)
        self._replay(record)
        reason = self._failures.pop(record.name, "its process died, or its machine was lost")
        log.info(f"trial {record.name} restarts from its last checkpoint: {reason}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial that finished, was pruned, or has reported a failure."""
        record = self._record(trial)
        if record.error:
            self.on_trial_error(iteration, trials, trial)
            return
        self._end(record, "finished" if self._is_done(record) else "pruned")

    def _is_done(self, record: TrialRecord) -> bool:
        """Return whether a trial has come to its end, rather than been stopped before."""
        steps = self._records.steps
        return steps.done(record) >= steps.planned(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial that failed, or whose own process died too often.

        One that got a process which died before the trial had begun is left for a resumed sweep. Tune gives such a
        trial up at once, and what the process had before it is to blame.
        """
        record = self._record(trial)
        self._replay(record)
        if record.name not in self._started_at:
            self._leave(record)
            return
        reason = self._failures.pop(record.name, "the trial's process died")
        record.error = record.error or f"{reason}; Ray's logs are under {log_folder()}"
        self._end(record, "failed")
        log.info(f"trial {record.name} failed: {record.error}")

    def _leave(self, record: TrialRecord) -> None:
        record.status, self._changed = "pending", True
        self._display.update(record)
        log.info(
            f"trial {record.name} did not begin: the process that it was given died; a sweep with "
            f"resume={self._records.output} runs it"
        )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Write the summary if it has changed and is due; Tune calls this many times a second."""
        self._require_lock()
        if self._changed and time.monotonic() >= self._write_due:
            start, self._changed = time.monotonic(), False
            self._write()
            now = time.monotonic()
            self._write_due = now + (now - start) / _MAX_WRITE_SHARE

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Take in what trials that are interrupted have reported."""
        self._require_lock()
        for record in self._records.trials:
            if record.status == "running":
                self._replay(record)

    def _end(self, record: TrialRecord, status: str) -> None:
        self._count_time(record)
        record.status = status
        self._changed = True
        self._describe(record, {"status": status, **({"error": record.error} if record.error else {})})
        end_run(record, self._tracker)
        self._display.update(record)

    def _take_warnings(self, record: TrialRecord, lines: Any) -> None:
        """Add the warnings of a report to the summary, and log those that are new."""
        new = self._records.add_warnings(record, redact(lines))
        for line in new:
            log.warning(f"trial {record.name}: warning: {line}", extra=as_event("warning", {"text": line}, record.name))
        if new:
            self._changed = True
            self._describe(record, {})
            if len(record.warnings) == MAX_WARNINGS:
                log.info(f"trial {record.name}: {MAX_WARNINGS} warnings; further ones are dropped")

    def _describe(self, record: TrialRecord, tags: dict[str, str]) -> None:
        """Set the description of a trial's run: its status, the temperature of its scores, and its warnings."""
        temperature = trial_temperature(self._records, record)
        parts = [record.error or record.status]
        if temperature is not None:
            parts.append(f"Scores of the GEBM are at {temperature}.")
            tags = {**tags, BETA: f"{trial_beta(self._records, record):g}"}
        if record.warnings:
            parts.append("\n".join(["Warnings:", "", *(f"- {escape(line)}" for line in record.warnings)]))
            tags = {**tags, "warnings": "; ".join(record.warnings)}
        self._tracker.describe(record.name, "\n\n".join(parts), tags)

    def _write(self) -> None:
        """Write the summary; a failure is logged and does not end the trials, whose files are separate."""
        try:
            self._records.write()
        except LockLost:
            raise
        # Each file system has exceptions of its own.
        except Exception as error:
            line = f"cannot write {self._records.output}/summary.json ({one_line(error)}); trials continue"
            if line not in self._logged:
                log.warning(line)
                self._logged.add(line)

    def _count_time(self, record: TrialRecord) -> None:
        now = time.monotonic()
        record.seconds += now - self._started_at.get(record.name, now)
        self._started_at[record.name] = now
