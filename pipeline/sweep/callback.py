"""What Tune tells of its trials, taken to the records, the terminal and the tracker."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from pipeline import config as schema
from pipeline.config.temperature import BETA, sampling_beta
from pipeline.report.markup import escape
from pipeline.runtime.errors import one_line
from pipeline.runtime.redaction import redact
from pipeline.sweep.display.console import Display
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking import provenance
from pipeline.tracking.summary import MAX_WARNINGS, SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.trial_temperature import trial_beta, trial_temperature

__all__ = ["SweepCallback"]

_WRITING = 0.1  # share of the driver's time that may go into writing the summary, which grows with the trials


class SweepCallback(tune.Callback):
    """Takes what the trials report to the records, the terminal and the tracker. The driver alone does this.

    Args:
        config: the experiment.
        records: the sweep's trials.
        tracker: MLflow.
        display: the terminal.
    """

    def __init__(self, config: schema.Config, records: SweepSummary, tracker: Tracker, display: Display) -> None:
        self._config, self._records, self._tracker, self._display = config, records, tracker, display
        self._score = schema.monitored_metrics(config)[0].removesuffix("_base")
        self._started: dict[str, float] = {}
        self._noted: set[str] = set()
        self._changed, self._due = False, 0.0  # the summary: whether it is to be written, and when it may be

    def _record(self, trial: Any) -> TrialRecord:
        name = str(trial)
        params = {key: value for key, value in trial.config.items() if key != TRIAL_NAME_KEY}
        record = self._records.get(name) or self._records.add(name, params)
        if params != record.params:
            record.params = params  # population-based training changes them
            found = ", ".join(f"{key}={value:.3g}" for key, value in params.items() if isinstance(value, float))
            self._display.say(f"trial {name} goes on from the weights of a better one, with {found}")
        return record

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on."""
        record = self._record(trial)
        self._started[record.name] = time.monotonic()
        if record.status != "running":
            record.status, record.error = "running", None
            config = schema.apply(self._config, record.params)
            beta = sampling_beta(self._config, record.params)
            tags = provenance.tags(config) | ({} if beta is None else {BETA: f"{beta:g}"})
            self._tracker.start_trial(record.name, schema.to_dict(config), tags)
        self._changed = True
        self._display.update(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported."""
        record = self._record(trial)
        self._clock(record)
        record.mlflow_run_id = self._tracker.trial_run_id(record.name) or record.mlflow_run_id
        known = {key: value for key, value in result.items() if key in result.get("reported", ())}
        if "error" in known:
            record.error = redact(known["error"])
            return
        if "restart" in known:
            self._display.say(f"trial {record.name} goes on from its last checkpoint: {known['restart']}")
            return
        self._take_warnings(record, known.get("warnings"))
        evaluated = self._config.sweep.metric in known
        if evaluated and record.evaluations[-1:] == [self._records.evaluation(known)]:
            return  # a trial that goes on says first where it stands
        numbers = {key: value for key, value in known.items() if isinstance(value, int | float)}
        if evaluated:
            if "extractor" in known:
                numbers["extractor"] = known["extractor"]
            # With the scores, for a sweep may be resumed with another beta than that of its earlier evaluations.
            beta = sampling_beta(self._config, record.params)
            if beta is not None:
                numbers.setdefault(BETA, beta)
            self._records.evaluated(record, numbers, known.get("checkpoint"))
        else:
            record.metrics.update(numbers)
        for note in set(known.get("notes", ())) - self._noted:
            self._display.say(f"trial {record.name}: {note}")
            self._noted.add(note)  # it comes with each evaluation of each trial
        self._changed |= evaluated
        machine = {f"system/{name}": value for name, value in known.get("system", {}).items()}
        self._tracker.log_metrics(record.name, numbers | machine, step=known["base_step"])
        if evaluated:
            self._tracker.log_chain(record.name, self._score, known["chain"], known["base_step"])
            self._tracker.log_pictures(record.name, known["figures"], known["base_step"])
        self._display.update(record, numbers, evaluated=evaluated)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's own process has died, and is started anew."""
        record = self._record(trial)
        self._display.say(f"trial {record.name} goes on from its last checkpoint: its machine went away")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has come to its end, or was pruned."""
        record = self._record(trial)
        if record.error:
            self.on_trial_error(iteration, trials, trial)
            return
        planned = record.params.get("train.base_steps", self._config.train.base_steps)
        done = record.metrics.get("base_step", 0) >= planned
        self._end(record, "finished" if done else "pruned")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's own process has died too often."""
        record = self._record(trial)
        record.error = record.error or "the trial's process died; Ray's logs are under /tmp/ray/session_latest/logs"
        self._end(record, "failed")
        self._display.say(f"trial {record.name} failed: {record.error}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop has been round once, as it does many times a second."""
        if self._changed and time.monotonic() >= self._due:
            began, self._changed = time.monotonic(), False
            self._write()
            now = time.monotonic()
            self._due = now + (now - began) / _WRITING

    def _end(self, record: TrialRecord, status: str) -> None:
        self._clock(record)
        record.status = status
        self._changed = True
        self._describe(record, {"status": status, **({"error": record.error} if record.error else {})})
        self._tracker.end(record.name, "FAILED" if status == "failed" else "FINISHED")
        self._display.update(record)

    def _take_warnings(self, record: TrialRecord, lines: Any) -> None:
        """Keep the warnings of a report, and pass on those that are new."""
        new = self._records.add_warnings(record, redact(lines))
        for line in new:
            self._display.warn(record, line)
        if new:
            self._changed = True
            self._describe(record, {})
            if len(record.warnings) == MAX_WARNINGS:
                self._display.say(f"trial {record.name}: {MAX_WARNINGS} warnings; further ones are not kept")

    def _describe(self, record: TrialRecord, tags: dict[str, str]) -> None:
        """Set the description of a trial's run: how it stands, the temperature of its scores, and its warnings."""
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
        """Keep the summary; that it could not be kept this once must not end the trials, whose own files are apart."""
        try:
            self._records.write()
        except Exception as error:  # each file system has exceptions of its own
            reason = one_line(error)
            line = f"{self._records.output}/summary.json cannot be written ({reason}); the trials go on"
            if line not in self._noted:
                self._display.say(line)
                self._noted.add(line)

    def _clock(self, record: TrialRecord) -> None:
        now = time.monotonic()
        record.seconds += now - self._started.get(record.name, now)
        self._started[record.name] = now
