"""Summary of a sweep's trials, in ``summary.json`` while the sweep runs.

The same file is the result that others read and the state from which an interrupted sweep is resumed, so the two cannot
disagree. A checkpoint that lies below the sweep's folder is written relative to it, so that the folder can be moved or
copied; in memory it is a URL. It is JSON, parsed by strict models: resuming from an untrusted folder runs no code of
its author.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError

from pipeline.config.own_choices import kept_choices
from pipeline.config.sampler_search import samples_only
from pipeline.config.scores import STANDARD_ERROR, ChainPoint, standard_error_of
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import filesystem, write_file
from pipeline.runtime.printable import printable
from pipeline.runtime.untrusted import SUMMARY, parse_json, read_bytes
from pipeline.tracking.finalists import FINALISTS, Finalist, decided
from pipeline.tracking.finite_json import drop_nonfinite, one_line_json
from pipeline.tracking.locations import absolute_folder, is_imported_start, own_checkpoint, relative_place
from pipeline.tracking.seed_statistics import mean_and_error
from pipeline.tracking.summary_types import (
    TERMINAL_STATUSES,
    ChainScores,
    Evaluation,
    FoundKernel,
    Head,
    Metrics,
    Params,
    Seconds,
    Status,
    TrialName,
    Warning,
    name_infinities,
    one_line_text,
)
from pipeline.tracking.trial_steps import TrialSteps

__all__ = [
    "MAX_WARNINGS",
    "TERMINAL_STATUSES",
    "SeedMean",
    "SweepSummary",
    "TrialRecord",
    "read_summary",
    "sweep_seconds",
]

_T = TypeVar("_T")

MAX_WARNINGS = 20
"""Number of warnings in a trial's record: the first of them."""


@dataclass
class TrialRecord:
    """One trial.

    The annotations hold where a record is read from ``summary.json``; see :func:`read_summary`.

    Attributes:
        name: Number of the trial, and its folder under ``trials/``.
        params: Keys that the search set.
        status: ``pending``, ``running``, ``finished``, ``pruned`` or ``failed``.
        metrics: Newest value of each metric: ``fid_base``, ``fid_gebm`` and others.
        checkpoint: URL of the newest checkpoint.
        best_checkpoint: URL of the checkpoint with the best score.
        best_metrics: Metrics of that checkpoint.
        best_chain: Step of the chain -> score there with its standard error, of that checkpoint.
        best_kernel: Settings that the warm-up of its chains found; empty without a warm-up.
        evaluations: Base step, score and standard error of every evaluation, for schedulers and curves; and its time:
            ``trial_seconds`` that the trial had run and ``sweep_seconds`` that the sweep had run.
        mlflow_run_id: Id of its run in the tracker.
        seconds: Time it has run, over all its starts.
        error: Reason of its failure.
        reports: Number of the last report that was taken into the record; see
            :mod:`pipeline.tracking.trial_reports`.
        warnings: Lines on the health of its training, each once, in the order in which they came; see
            :meth:`SweepSummary.add_warnings`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: TrialName
    params: Params
    status: Status = "pending"
    metrics: Metrics = field(default_factory=dict)
    checkpoint: str | None = None
    best_checkpoint: str | None = None
    best_metrics: Metrics = field(default_factory=dict)
    best_chain: ChainScores = field(default_factory=dict)
    best_kernel: FoundKernel = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    mlflow_run_id: str | None = None
    seconds: Seconds = 0.0
    error: str | None = None
    reports: Annotated[int, Strict(), Field(ge=0)] = 0
    warnings: Annotated[list[Warning], Field(max_length=MAX_WARNINGS)] = field(default_factory=list)


_TRIALS = TypeAdapter(list[TrialRecord])
# Fields that name a checkpoint.
_CHECKPOINTS = ("checkpoint", "best_checkpoint")
_HEAD = TypeAdapter(Head)
_TRAINING = TrialSteps.of_training()


@dataclass(frozen=True)
class SeedMean:
    """Mean scores of trials that differ in their seed alone.

    Attributes:
        params: Params that they share.
        trials: Number of trials that have a score.
        mean: Mean of each monitored score, at each trial's best checkpoint.
        standard_error: Standard error of each mean; empty for a single trial.
    """

    params: dict[str, Any]
    trials: int
    mean: dict[str, float]
    standard_error: dict[str, float]


class SweepSummary:
    """All trials of a sweep.

    Args:
        output: Folder of the sweep, behind any fsspec URL.
        metric: Score that trials are ranked by.
        mode: ``min`` or ``max``.
        shown: Scores that the terminal monitors, such as ``fid_base`` and ``fid_gebm``.
        facts: Other fields of the summary: the experiment's name, the feature extractor, the tracker.
        trials: Earlier trials of a resumed sweep.
        steps: Steps by which its trials are followed (default: those of a training).
        finalists: Its finalists, see :mod:`pipeline.tracking.finalists`.
        verify: Called before anything is written; raises where this process may not write there any more.
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
        finalists: list[Finalist] | None = None,
        steps: TrialSteps = _TRAINING,
        verify: Callable[[], None] = lambda: None,
    ) -> None:
        self.verify, self.steps = verify, steps
        self.output, self.metric, self.mode, self.shown, self.facts = output, metric, mode, shown, facts
        self.trials, self.finalists = list(trials or []), list(finalists or [])

    def get(self, name: str) -> TrialRecord | None:
        """Return the trial of this name, or ``None``."""
        return next((trial for trial in self.trials if trial.name == name), None)

    def add(self, name: str, params: dict[str, Any]) -> TrialRecord:
        """Add a trial that the search suggests."""
        record = TrialRecord(name, params)
        self.trials.append(record)
        return record

    def better(self, score: float, than: float | None) -> bool:
        """Return whether a score beats another; one that is not finite beats none."""
        if not math.isfinite(score):
            return False
        return than is None or not math.isfinite(than) or (score < than if self.mode == "min" else score > than)

    def evaluated(
        self,
        record: TrialRecord,
        metrics: dict[str, Any],
        checkpoint: str | None,
        chain: Mapping[int, ChainPoint] | None = None,
        kernel: Mapping[str, Any] | None = None,
        sweep_seconds: float | None = None,
    ) -> bool:
        """Add an evaluation to a trial's record.

        Args:
            record: The trial.
            metrics: Metrics of the evaluation, including ``base_step`` and the sweep's metric.
            checkpoint: URL of the model that was evaluated; ``None`` if it could not be written.
            chain: Scores along its chain (default: none).
            kernel: Settings that its warm-up found (default: it had no warm-up).
            sweep_seconds: Time that the sweep has run (default: not known).

        Returns:
            Whether the trial's best evaluation is this one now.
        """
        record.metrics.update(metrics)
        record.checkpoint = checkpoint or record.checkpoint
        times = {} if sweep_seconds is None else {"trial_seconds": record.seconds, "sweep_seconds": sweep_seconds}
        record.evaluations.append(self.evaluation(metrics) | times)
        # A model that is not on disk is not the best.
        if checkpoint is None:
            return False
        # A trial that exploits another's weights goes back in steps and overwrites its checkpoints and their scores.
        rewritten = checkpoint == record.best_checkpoint
        is_best = rewritten or self.better(metrics[self.metric], record.best_metrics.get(self.metric))
        if is_best:
            record.best_metrics, record.best_checkpoint = dict(metrics), checkpoint
            record.best_chain, record.best_kernel = dict(chain or {}), dict(kernel or {})
        return is_best

    def add_warnings(self, record: TrialRecord, lines: Any) -> list[str]:
        r"""Add warnings to a trial's record, each once and at most :data:`MAX_WARNINGS` of them.

        Args:
            record: The trial.
            lines: Field ``warnings`` of a report. Anything but a list of texts is ignored, since a report may come from
                an untrusted checkpoint.

        Returns:
            The new ones, as they are in the record: on one line, without control characters, and cut where they are
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
            text = one_line_text(line) if isinstance(line, str) else ""
            if text and text not in record.warnings and len(record.warnings) < MAX_WARNINGS:
                record.warnings.append(text)
                new.append(text)
        return new

    def is_newest(self, record: TrialRecord, metrics: dict[str, Any]) -> bool:
        """Return whether an evaluation is the newest that a trial's record has."""
        return bool(record.evaluations) and self.evaluation(metrics).items() <= record.evaluations[-1].items()

    def seconds(self) -> float:
        """Return the time that the sweep had run at its last evaluation; 0 where it is not known."""
        return sweep_seconds(self.trials)

    def evaluation(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return the point of an evaluation on the trial's curve: base step, score, and its standard error if any."""
        error = standard_error_of(metrics, self.metric)
        errors = {} if error is None else {f"{self.metric}{STANDARD_ERROR}": error}
        return {"base_step": metrics["base_step"], self.metric: metrics[self.metric], **errors}

    def score(self, record: TrialRecord) -> float:
        """Return a trial's best score; NaN where it has none that is a finite number."""
        value = record.best_metrics.get(self.metric)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan

    def ranking(self) -> list[TrialRecord]:
        """Return the trials, the best first and those without a score last."""

        def key(record: TrialRecord) -> tuple[bool, float]:
            score = self.score(record)
            return math.isnan(score), score if self.mode == "min" else -score

        return sorted(self.trials, key=key)

    def best(self) -> TrialRecord | None:
        """Return the trial with the best score, or ``None``; where there are finals, they decide."""
        finals, ranked = self.finals(), self.ranking()
        if finals:
            return self.get(finals[0].name)
        return ranked[0] if ranked and math.isfinite(self.score(ranked[0])) else None

    def finals(self) -> list[Finalist]:
        """Return the finalists with their second scores, the best first; empty where these decide nothing."""
        return decided(self.finalists, self.ranking(), self.mode) if self.finalists else []

    def final_metrics(self, record: TrialRecord) -> dict[str, Any]:
        """Return the scores of a trial's best checkpoint: of the finals where it was in them."""
        second = self._final(record)
        return record.best_metrics if second is None else {**record.best_metrics, **second.metrics}

    def final_samples(self, record: TrialRecord) -> int | None:
        """Return the number of samples of a trial's score in the finals; ``None`` where it was in none."""
        second = self._final(record)
        return None if second is None else second.num_samples

    def _final(self, record: TrialRecord) -> Finalist | None:
        return next((finalist for finalist in self.finals() if finalist.name == record.name), None)

    def mean_over_seeds(self) -> list[SeedMean]:
        """Return the means over the seeds, the best first; empty if there are no seeds to average over.

        Only trials that finished count, each at its best checkpoint by the sweep's metric.
        """
        groups: dict[str, dict[str, TrialRecord]] = {}
        for record in self.trials:
            if "seed" in record.params and math.isfinite(self.score(record)) and record.status == "finished":
                shared = {key: value for key, value in record.params.items() if key != "seed"}
                # A seed that a search drew twice is one seed.
                groups.setdefault(json.dumps(shared, sort_keys=True), {})[json.dumps(record.params["seed"])] = record
        if all(len(group) == 1 for group in groups.values()):
            return []
        means_over_seeds = []
        for shared, group in groups.items():
            means, errors = {}, {}
            for name in dict.fromkeys([*self.shown, self.metric]):
                values = [record.best_metrics.get(name) for record in group.values()]
                values = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
                estimate = mean_and_error(values)
                if math.isfinite(estimate.mean):
                    means[name] = estimate.mean
                if math.isfinite(estimate.error):
                    errors[name] = estimate.error
            means_over_seeds.append(SeedMean(json.loads(shared), len(group), means, errors))
        sign = 1 if self.mode == "min" else -1
        # Scores whose sum is beyond the largest float have no mean.
        return sorted(means_over_seeds, key=lambda group: sign * group.mean.get(self.metric, sign * math.inf))

    def write(self) -> None:
        """Write ``summary.json``.

        Raises:
            LockLost: Another process has taken over the folder.
        """
        self.verify()
        best = self.best()
        document = {
            "metric": self.metric,
            "mode": self.mode,
            **self.facts,
            "best": drop_nonfinite(self._written(self._at_its_best(best))) if best else None,
            "over_seeds": [drop_nonfinite(self._written(asdict(group))) for group in self.mean_over_seeds()],
            "finalists": [drop_nonfinite(self._written(asdict(finalist))) for finalist in self.finalists],
        }
        # One line per trial: json indents in Python, which is ten times slower, and there may be a thousand of them.
        trials = ",\n  ".join(one_line_json(self._written(vars(trial))) for trial in self.trials)
        head = json.dumps(document, indent=1).removesuffix("\n}")
        write_file(f"{self.output}/summary.json", f'{head},\n "trials": [\n  {trials}\n ]\n}}\n'.encode())

    def _at_its_best(self, record: TrialRecord) -> dict[str, Any]:
        """Return a trial with the checkpoint and the metrics of its best score, which need not be its newest."""
        return {**asdict(record), "checkpoint": record.best_checkpoint, "metrics": self.final_metrics(record)}

    def _written(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a trial, of a finalist or of a mean as the summary has them.

        Checkpoints are relative to the sweep's folder, and parameters that are infinite have a name.
        """
        folder = absolute_folder(self.output)
        places = {key: relative_place(folder, values[key]) for key in _CHECKPOINTS if values.get(key) is not None}
        params = {"params": name_infinities(values["params"])} if "params" in values else {}
        return {**values, **places, **params}


def read_summary(output: str, start: str | None = None) -> tuple[dict[str, Any], list[TrialRecord]]:
    """Read the summary of a sweep's folder, and its trials.

    Args:
        output: Folder of the sweep, behind any fsspec URL.
        start: Model that the user says the sweep was started from (default: what was kept when it was started here).

    Raises:
        UserError: When there is no sweep in that folder, or its summary is damaged.
    """
    files, path = filesystem(output)
    try:
        document = parse_json(read_bytes(files, f"{path}/summary.json", SUMMARY), SUMMARY)
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        trials = _validate(_TRIALS, document["trials"], "trials")
        _validate(_HEAD, document)
        _require_one_each(trials)
        _locate_checkpoints(output, trials, start or kept_choices(output).get("checkpoint"))
        _validate(FINALISTS, document.get("finalists", []), "finalists")
    except FileNotFoundError:
        raise UserError(f"no sweep at {output}: give the folder that holds its summary.json") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(f"{output}/summary.json is damaged ({type(error).__name__}: {reason})") from None
    return document, trials


def sweep_seconds(trials: Iterable[TrialRecord]) -> float:
    """Return the time that a sweep had run at its last evaluation, in seconds; 0 where it is not known.

    Args:
        trials: Its trials.
    """
    times = (evaluation.get("sweep_seconds") for trial in trials for evaluation in trial.evaluations)
    return max((float(time) for time in times if isinstance(time, int | float)), default=0.0)


def _require_one_each(trials: list[TrialRecord]) -> None:
    """Raise ``ValueError`` where two trials have one name, and so one folder, as in summaries that were merged."""
    for name, count in Counter(trial.name for trial in trials).items():
        if count > 1:
            raise ValueError(f"{count} trials are called {name}")


def _locate_checkpoints(output: str, trials: list[TrialRecord], start: str | None) -> None:
    """Make every checkpoint one below the sweep's folder, or the model that the user has started the sweep from.

    Raises:
        ValueError: A trial has another one.
    """
    for trial in trials:
        # Such a trial sampled the model to start from, and another's folder does not say which one to read.
        is_sample = samples_only(trial.params)
        for name in _CHECKPOINTS:
            url = getattr(trial, name)
            if url is None or url == start:
                continue
            # A checkpoint below the sweep's own folder is a trial's that trained, or the imported model.
            is_start = is_sample and not (url.startswith("trials/") or is_imported_start(url))
            setattr(trial, name, start if is_start else own_checkpoint(output, trial.name, url))


def _validate(model: TypeAdapter[_T], document: Any, *prefix: str) -> _T:
    """Check a part of a summary; raise ``ValueError`` where a sweep cannot have written it."""
    try:
        return model.validate_python(document)
    except ValidationError as error:
        location = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        raise ValueError(f"invalid record at {printable('.'.join(map(str, (*prefix, *location))))[:200]}") from None
