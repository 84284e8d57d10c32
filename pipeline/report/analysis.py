"""What a sweep has found, from its folder alone: no drawing, no tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.config.temperature import BETA
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem
from pipeline.tracking.summary import SweepSummary, TrialRecord, read_summary
from pipeline.tracking.trial_temperature import sweep_betas, sweep_temperature, trial_beta, trial_temperature

__all__ = ["SweepResults", "collect_results", "importances", "load_results"]

_FEWEST = 8  # trials with a score, below which importances say nothing
_SEED = 0


@dataclass(frozen=True)
class SweepResults:
    """What there is to report.

    Attributes:
        output: the sweep's folder.
        records: its trials.
        experiment: its name.
        measure: what trials are ranked by, in words, such as ``FID by classifier-0ae9f006``.
        settings: ``search``, ``scheduler``, ``space`` and ``num_samples``, as far as the folder says.
    """

    output: str
    records: SweepSummary
    experiment: str
    measure: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The score that trials are ranked by."""
        return self.records.metric

    def score(self, trial: TrialRecord) -> float:
        """A trial's best score; NaN if it has none."""
        value = trial.best_metrics.get(self.metric, math.nan)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan

    @property
    def temperature(self) -> str | None:
        """Temperature of all scores of the GEBM in words; ``None`` where they have none or it is not known."""
        return sweep_temperature(self.records)

    @property
    def differs_in_beta(self) -> bool:
        """Whether the GEBM was sampled at another beta in some trials than in others."""
        return len(sweep_betas(self.records)) > 1

    def trial_beta(self, trial: TrialRecord) -> float | None:
        """Beta at which a trial's best score was sampled; ``None`` where it has none or it is not known."""
        return trial_beta(self.records, trial)

    def trial_temperature(self, trial: TrialRecord) -> str | None:
        """Temperature of a trial's best score in words; ``None`` where it has none or it is not known."""
        return trial_temperature(self.records, trial)

    @property
    def warned(self) -> list[TrialRecord]:
        """Trials that have warnings, the best first."""
        return [trial for trial in self.records.ranking() if trial.warnings]

    @property
    def scored(self) -> list[TrialRecord]:
        """The trials that have a score, the best first."""
        return [trial for trial in self.records.ranking() if math.isfinite(self.score(trial))]

    @property
    def is_sampler_search(self) -> bool:
        """Whether nothing but the sampler's settings was searched, on a model that was trained before."""
        keys = {key for trial in self.records.trials for key in trial.params}
        return bool(keys) and all(key.startswith("sampler.") for key in keys)

    @property
    def hours(self) -> float:
        """Hours that the trials have run, one after the other."""
        return sum(trial.seconds for trial in self.records.trials) / 3600

    def count(self, status: str) -> int:
        """How many trials have a status."""
        return sum(trial.status == status for trial in self.records.trials)

    @property
    def numeric(self) -> list[str]:
        """Keys that the search set to numbers in every scored trial, more than one of them."""
        trials = self.scored
        values = {key: {_number(trial.params.get(key)) for trial in trials} for trial in trials for key in trial.params}
        return [key for key, found in values.items() if len(found) > 1 and None not in found]


def collect_results(output: str, records: SweepSummary, settings: dict[str, Any]) -> SweepResults:
    """What a sweep that is at hand has found.

    Args:
        output: its folder.
        records: its trials.
        settings: see :class:`SweepResults`.
    """
    facts = records.facts
    return SweepResults(
        output, records, str(facts.get("experiment", "?")), str(facts.get("measure", records.metric)), settings
    )


def load_results(output: str) -> SweepResults:
    """What the sweep in a folder has found.

    Args:
        output: the folder, behind any fsspec URL.

    Raises:
        UserError: there is no sweep, or its files are damaged.
    """
    document, trials = read_summary(output)
    metric, mode = document.get("metric"), document.get("mode")
    if not isinstance(metric, str) or mode not in ("min", "max"):
        raise UserError(f"{output}/summary.json is damaged: it does not say by what trials are ranked")
    prefix = metric.removesuffix("_gebm").removesuffix("_base")
    facts: dict[str, Any] = {key: value for key, value in document.items() if isinstance(value, str)}
    settings = _settings(output)
    facts[BETA] = document.get(BETA, settings.pop(BETA, None))
    shown = (f"{prefix}_base", f"{prefix}_gebm")
    records = SweepSummary(output, metric=metric, mode=mode, shown=shown, facts=facts, trials=trials)
    return collect_results(output, records, settings)


def importances(found: SweepResults) -> dict[str, float] | None:
    """How much of the score each key decides, by the permutation importance of a random forest.

    Args:
        found: the sweep.

    Returns:
        Key to a share of their sum; None where the trials are too few to tell.
    """
    keys, trials = found.numeric, found.scored
    if len(trials) < _FEWEST or not keys:
        return None
    from sklearn.ensemble import RandomForestRegressor  # a second to import, and only reports want it
    from sklearn.inspection import permutation_importance

    rows = [[_number(trial.params.get(key)) or 0.0 for key in keys] for trial in trials]
    # By rank: one trial that went astray would otherwise be all that a forest explains.
    ranks = [float(rank) for rank in range(len(trials))]
    forest = RandomForestRegressor(n_estimators=200, min_samples_leaf=2, random_state=_SEED).fit(rows, ranks)
    means = permutation_importance(forest, rows, ranks, n_repeats=20, random_state=_SEED).importances_mean
    total = sum(max(0.0, value) for value in means) or 1.0
    return {key: max(0.0, float(value)) / total for key, value in zip(keys, means, strict=True)}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _settings(output: str) -> dict[str, Any]:
    """What the sweep's config says of the search; nothing where it cannot be read, for the report stands without."""
    files, path = filesystem(output)
    try:
        config = yaml.safe_load(files.cat_file(f"{path}/config.yaml"))
        sweep, evaluation = config["sweep"], config["evaluation"]
        space = sweep["space"] if isinstance(sweep["space"], dict) else {}
        # Of a summary from before it said so; a likelihood has no temperature.
        beta = None if config.get("task") == "density" else config.get("sampler", {}).get("beta")
        return {
            BETA: beta,
            "search": str(sweep["search"]),
            "scheduler": str(sweep["scheduler"]),
            "space": {str(key): value for key, value in space.items()},
            "num_samples": int(evaluation["num_samples"]),
        }
    except (FileNotFoundError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return {}
