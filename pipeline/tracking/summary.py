"""What a sweep knows of its trials, kept in ``summary.json`` while it runs.

The same file is the result that others read and the state from which an interrupted sweep goes on, so the two cannot
disagree. It is JSON: resuming from a folder that somebody else wrote runs no code of theirs.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import filesystem, write_file

__all__ = [
    "MAX_WARNINGS",
    "TERMINAL_STATUSES",
    "SeedMean",
    "SweepSummary",
    "TrialRecord",
    "drop_nonfinite",
    "read_summary",
]

TERMINAL_STATUSES = ("finished", "pruned", "failed")
MAX_WARNINGS = 20
"""Warnings that are kept of a trial, the first of them."""

_MAX_WARNING_LENGTH = 500


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        name: its number, and its folder under ``trials/``.
        params: the keys that the search set.
        status: pending, running, finished, pruned or failed.
        metrics: the newest of each: ``fid_base``, ``fid_gebm`` and what else was measured.
        checkpoint: the newest checkpoint's URL.
        best_checkpoint: the URL of the checkpoint with the best score, and ``best_metrics`` what it scored.
        evaluations: base step and metric of every evaluation, for schedulers and curves.
        mlflow_run_id: where the tracker has it.
        seconds: time it has run, over all its starts.
        error: why it failed.
        warnings: Lines on the health of its training, each once, in the order in which they came; see
            :meth:`SweepSummary.add_warnings`.
    """

    name: str
    params: dict[str, Any]
    status: str = "pending"
    metrics: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    best_checkpoint: str | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    mlflow_run_id: str | None = None
    seconds: float = 0.0
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SeedMean:
    """Trials that differ in their seed alone.

    Attributes:
        params: what they share.
        trials: how many of them have a score.
        mean: of each score that is followed, at each trial's best checkpoint.
        standard_error: of these means; none of a single trial.
    """

    params: dict[str, Any]
    trials: int
    mean: dict[str, float]
    standard_error: dict[str, float]


class SweepSummary:
    """All trials of a sweep.

    Args:
        output: the sweep's folder, behind any fsspec URL.
        metric: what trials are ranked by.
        mode: ``min`` or ``max``.
        shown: the scores that the terminal follows, such as ``fid_base`` and ``fid_gebm``.
        facts: what else the summary says: the experiment's name, the feature extractor, the tracker.
        trials: earlier trials of a resumed sweep.
    """

    def __init__(
        self,
        output: str,
        *,
        metric: str,
        mode: str,
        shown: tuple[str, ...],
        facts: dict[str, Any],
        trials: list[TrialRecord] | None = None,
    ) -> None:
        self.output, self.metric, self.mode, self.shown, self.facts = output, metric, mode, shown, facts
        self.trials = list(trials or [])

    def get(self, name: str) -> TrialRecord | None:
        """The trial of this name."""
        return next((trial for trial in self.trials if trial.name == name), None)

    def add(self, name: str, params: dict[str, Any]) -> TrialRecord:
        """A trial that the search has come up with."""
        record = TrialRecord(name, params)
        self.trials.append(record)
        return record

    def better(self, score: float, than: float | None) -> bool:
        """Whether a score beats another; one that is not finite beats none."""
        if not math.isfinite(score):
            return False
        return than is None or (score < than if self.mode == "min" else score > than)

    def evaluated(self, record: TrialRecord, metrics: dict[str, Any], checkpoint: str | None) -> None:
        """Take in an evaluation.

        Args:
            record: the trial.
            metrics: with ``base_step`` and the sweep's metric among them.
            checkpoint: the URL of the model that was evaluated; none if it could not be written.
        """
        record.metrics.update(metrics)
        record.checkpoint = checkpoint or record.checkpoint
        record.evaluations.append(self.evaluation(metrics))
        if checkpoint is None:  # it could not be written, and a model that is not there is nobody's best
            return
        # Who takes over another's weights goes back, and writes over what it had: that folder's score is the new one.
        rewritten = checkpoint is not None and checkpoint == record.best_checkpoint
        if rewritten or self.better(metrics[self.metric], record.best_metrics.get(self.metric)):
            record.best_metrics, record.best_checkpoint = dict(metrics), checkpoint

    def add_warnings(self, record: TrialRecord, lines: Any) -> list[str]:
        r"""Keep warnings of a trial, each once and at most :data:`MAX_WARNINGS` of them.

        Args:
            record: The trial.
            lines: ``warnings`` of a report; anything but a list of texts has none, for a report may come from an
                untrusted checkpoint.

        Returns:
            Those that are new, as they are kept: on one line, without control characters, and cut where they are
            overlong.

        Example:
            >>> records = SweepSummary("out", metric="fid_gebm", mode="min", shown=(), facts={})
            >>> trial = records.add("000", {})
            >>> records.add_warnings(trial, ["KALE is\nnegative", "KALE is negative"])
            ['KALE is negative']
            >>> records.add_warnings(trial, ["KALE is negative"]), trial.warnings
            ([], ['KALE is negative'])
        """
        new = []
        for line in lines if isinstance(lines, list | tuple) else ():
            text = _one_line(line) if isinstance(line, str) else ""
            if text and text not in record.warnings and len(record.warnings) < MAX_WARNINGS:
                record.warnings.append(text)
                new.append(text)
        return new

    def evaluation(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """An evaluation as the summary's curves have it: base step and score."""
        return {"base_step": metrics["base_step"], self.metric: metrics[self.metric]}

    def ranking(self) -> list[TrialRecord]:
        """Trials, the best first and those without a score last."""

        def key(record: TrialRecord) -> tuple[bool, float]:
            score = record.best_metrics.get(self.metric, math.nan)
            return math.isnan(score), score if self.mode == "min" else -score

        return sorted(self.trials, key=key)

    def best(self) -> TrialRecord | None:
        """The trial with the best score."""
        ranked = self.ranking()
        return ranked[0] if ranked and self.metric in ranked[0].best_metrics else None

    def mean_over_seeds(self) -> list[SeedMean]:
        """Means over the seeds, the best first; empty if the trials have no seeds to average over.

        By the best checkpoints of the trials that finished, which the sweep's metric chooses; look at their number.
        """
        groups: dict[str, dict[int, TrialRecord]] = {}
        for record in self.trials:
            if "seed" in record.params and self.metric in record.best_metrics and record.status == "finished":
                shared = {key: value for key, value in record.params.items() if key != "seed"}
                # A seed that a search drew twice is one seed.
                groups.setdefault(json.dumps(shared, sort_keys=True), {})[record.params["seed"]] = record
        if all(len(group) == 1 for group in groups.values()):
            return []
        found = []
        for shared, group in groups.items():
            means, errors = {}, {}
            for name in dict.fromkeys([*self.shown, self.metric]):
                values = [record.best_metrics.get(name, math.nan) for record in group.values()]
                values = [value for value in values if math.isfinite(value)]
                if values:
                    means[name] = statistics.fmean(values)
                if len(values) > 1:
                    errors[name] = statistics.stdev(values) / math.sqrt(len(values))
            found.append(SeedMean(json.loads(shared), len(group), means, errors))
        return sorted(found, key=lambda group: group.mean[self.metric] * (1 if self.mode == "min" else -1))

    def write(self) -> None:
        """Write ``summary.json``."""
        best = self.best()
        document = {
            "metric": self.metric,
            "mode": self.mode,
            **self.facts,
            "best": drop_nonfinite(_at_its_best(best)) if best else None,
            "over_seeds": [drop_nonfinite(asdict(group)) for group in self.mean_over_seeds()],
        }
        # A line a trial: json indents in Python, which is ten times slower, and there may be a thousand of them.
        trials = ",\n  ".join(_line(vars(trial)) for trial in self.trials)
        head = json.dumps(document, indent=1).removesuffix("\n}")
        write_file(f"{self.output}/summary.json", f'{head},\n "trials": [\n  {trials}\n ]\n}}\n'.encode())


def _at_its_best(record: TrialRecord) -> dict[str, Any]:
    """The trial with the checkpoint and the metrics that made it the best, which need not be its newest."""
    return {**asdict(record), "checkpoint": record.best_checkpoint, "metrics": record.best_metrics}


def drop_nonfinite(value: Any) -> Any:
    """Without the numbers that are not finite: JSON has none, and other readers refuse Python's NaN.

    Args:
        value: what JSON can hold otherwise; of a dict the key goes, in a list None takes the place.

    Example:
        >>> drop_nonfinite({"loss": float("nan"), "step": 3, "losses": [1.0, float("inf")]})
        {'step': 3, 'losses': [1.0, None]}
    """
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not isinstance(item, float) or math.isfinite(item)}
        return {key: drop_nonfinite(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [drop_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(value: dict[str, Any]) -> str:
    """A line of JSON, without the keys whose number is not finite."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(drop_nonfinite(value))


def _one_line(text: str) -> str:
    """Return a text on one line that a terminal prints as it is, cut where it is overlong."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= _MAX_WARNING_LENGTH else line[: _MAX_WARNING_LENGTH - 3] + "..."


def _plausible(trial: TrialRecord) -> bool:
    """Whether a sweep can have written it. Its name becomes a folder's, which must not lead elsewhere."""
    dicts = (trial.params, trial.metrics, trial.best_metrics)
    texts = (trial.checkpoint, trial.best_checkpoint, trial.mlflow_run_id, trial.error)
    return (
        isinstance(trial.name, str)
        and re.fullmatch(r"[0-9]{3,}", trial.name) is not None
        and trial.status in ("pending", "running", *TERMINAL_STATUSES)
        and all(isinstance(one, dict) and all(isinstance(key, str) for key in one) for one in dicts)
        and all(text is None or isinstance(text, str) for text in texts)
        and isinstance(trial.seconds, int | float)
        and isinstance(trial.evaluations, list)
        and all(isinstance(one, dict) and isinstance(one.get("base_step"), int) for one in trial.evaluations)
        and isinstance(trial.warnings, list)
        and len(trial.warnings) <= MAX_WARNINGS
        and all(isinstance(one, str) and one == _one_line(one) for one in trial.warnings)
    )


def read_summary(output: str) -> tuple[dict[str, Any], list[TrialRecord]]:
    """The summary of a sweep's folder, and its trials.

    Args:
        output: the folder, behind any fsspec URL.

    Raises:
        UserError: there is no sweep in that folder, or its summary is damaged.
    """
    files, path = filesystem(output)
    try:
        document = json.loads(files.cat_file(f"{path}/summary.json"))
        trials = [TrialRecord(**trial) for trial in document["trials"]]
        if not all(map(_plausible, trials)):
            raise ValueError("a trial of it is none of a sweep's")
    except FileNotFoundError:
        raise UserError(f"no sweep at {output}: give the folder that holds its summary.json") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(f"{output}/summary.json is damaged ({type(error).__name__}: {reason})") from None
    return document, trials
