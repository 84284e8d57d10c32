"""Results of a sweep, from its folder alone: no drawing, no tracker."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.own_choices import is_own
from pipeline.config.sampler_search import samples_only
from pipeline.config.tasks import NAMES, facts_of
from pipeline.config.temperature import BETA
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.untrusted import CONFIG, parse_yaml, read_bytes
from pipeline.tracking.finalists import read_finalists
from pipeline.tracking.summary import SweepSummary, TrialRecord, read_summary
from pipeline.tracking.summary_temperature import sweep_betas, sweep_temperature, trial_beta, trial_temperature
from pipeline.tracking.trial_steps import TrialSteps

__all__ = ["SweepResults", "collect_results", "importances", "load_results"]

# Trials with a score, below which importances mean nothing: of seven keys one of which decides, a forest names that one
# in half of the cases with a trial a key, and in four of five with three. With a few trials a key's luck is all.
_MIN_TRIALS = 8
_MIN_TRIALS_PER_KEY = 3
_SEED = 0


class Cost(NamedTuple):
    """What trials cost by the hour.

    Attributes:
        unit: ``GPU-hours``, or without GPUs ``worker-hours``.
        rate: Such hours of a trial an hour.
    """

    unit: str
    rate: float


@dataclass(frozen=True)
class SweepResults:
    """Results of a sweep.

    Attributes:
        output: Folder of the sweep.
        records: Its trials.
        experiment: Name of the experiment.
        measure: Score that trials are ranked by, in words, such as ``FID by classifier-0ae9f006``.
        settings: ``search``, ``scheduler``, ``space`` and ``num_samples``, as far as the folder has them.
    """

    output: str
    records: SweepSummary
    experiment: str
    measure: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def conf(self) -> str:
        """Name of the experiment's file, which need not be that of the experiment."""
        return str(self.records.facts.get("conf") or self.experiment)

    @property
    def config_dir(self) -> str | None:
        """Folder of the user's own experiments; ``None`` where there was none.

        Hydra runs what a folder of configs names, so one that came with the results, or that another's results name,
        is none.
        """
        if not is_own(self.output):
            return None
        folder = self.records.facts.get("config_dir")
        if not isinstance(folder, str) or not folder.startswith("/") or not folder.isprintable():
            return None
        results = Path(self.output).resolve()
        return None if results in (Path(folder).resolve(), *Path(folder).resolve().parents) else folder

    @property
    def metric(self) -> str:
        """Name of the score that trials are ranked by."""
        return self.records.metric

    def score(self, trial: TrialRecord) -> float:
        """Return a trial's best score; NaN if it has none."""
        return self.records.score(trial)

    @property
    def temperature(self) -> str | None:
        """Temperature of all scores of the GEBM in words; ``None`` where they have none or it is not known."""
        return sweep_temperature(self.records)

    @property
    def differs_in_beta(self) -> bool:
        """Whether the GEBM was sampled at another beta in some trials than in others."""
        return len(sweep_betas(self.records)) > 1

    def trial_beta(self, trial: TrialRecord) -> float | None:
        """Return the beta at which a trial's best score was sampled; ``None`` where it has none or it is not known."""
        return trial_beta(self.records, trial)

    def trial_temperature(self, trial: TrialRecord) -> str | None:
        """Return the temperature of a trial's best score in words; ``None`` where it has none or it is not known."""
        return trial_temperature(self.records, trial)

    @property
    def warned(self) -> list[TrialRecord]:
        """Trials that have warnings, the best first."""
        return [trial for trial in self.records.ranking() if trial.warnings]

    @property
    def scored(self) -> list[TrialRecord]:
        """Trials that have a score, the best first."""
        return [trial for trial in self.records.ranking() if math.isfinite(self.score(trial))]

    @property
    def is_sampler_search(self) -> bool:
        """Whether nothing but the sampler's settings was searched, on a model that was trained before."""
        return self.records.steps.are_of_chains

    @property
    def hours(self) -> float:
        """Running time of all trials together, in hours."""
        return sum(trial.seconds for trial in self.records.trials) / 3600

    @property
    def cost(self) -> Cost | None:
        """What trials cost; ``None`` where an earlier version has not written it down.

        Elastic trials count as if they had always had all their workers.
        """
        workers, gpus = (self.records.facts.get(f"{name}_per_trial") for name in ("workers", "gpus"))
        if isinstance(gpus, int | float) and gpus > 0:
            return Cost("GPU-hours", float(gpus))
        return Cost("worker-hours", float(workers)) if isinstance(workers, int | float) else None

    def count(self, status: str) -> int:
        """Return the number of trials with a status."""
        return sum(trial.status == status for trial in self.records.trials)

    @property
    def numeric(self) -> list[str]:
        """Keys that the search set to numbers in every scored trial that has them, more than one of them."""
        values: dict[str, set[float | None]] = {}
        for trial in self.scored:
            for key, value in trial.params.items():
                values.setdefault(key, set()).add(_number(value))
        return [key for key, numbers in values.items() if len(numbers) > 1 and None not in numbers]

    @property
    def trials_for_importances(self) -> int:
        """Number of trials with a score from which on importances mean something."""
        return max(_MIN_TRIALS, _MIN_TRIALS_PER_KEY * len(self.numeric))

    @functools.cached_property
    def shares(self) -> dict[str, float] | None:
        """Importance of each key, see :func:`importances`; computed at the first use."""
        return importances(self)


def collect_results(output: str, records: SweepSummary, settings: dict[str, Any]) -> SweepResults:
    """Collect the results of a sweep in memory.

    Args:
        output: Folder of the sweep.
        records: Its trials.
        settings: Settings of the search; see :class:`SweepResults`.
    """
    facts = records.facts
    return SweepResults(
        output, records, str(facts.get("experiment", "?")), str(facts.get("measure", records.metric)), settings
    )


def load_results(output: str) -> SweepResults:
    """Load the results of the sweep in a folder.

    Args:
        output: Folder of the sweep, behind any fsspec URL.

    Raises:
        UserError: When there is no sweep, or its files are damaged.
    """
    document, trials = read_summary(output)
    metric, mode = document.get("metric"), document.get("mode")
    if not isinstance(metric, str) or mode not in ("min", "max"):
        raise UserError(f"{output}/summary.json is damaged: it lacks the metric or the mode that trials are ranked by")
    prefix = metric.removesuffix("_gebm").removesuffix("_base")
    facts: dict[str, Any] = {
        key: value for key, value in document.items() if isinstance(value, str) or key.endswith("_per_trial")
    }
    settings = _settings(output)
    facts[BETA] = document.get(BETA, settings.pop(BETA, None))
    shown = (f"{prefix}_base", f"{prefix}_gebm")
    finalists = read_finalists(document, trials, output)
    steps = settings.pop("steps", TrialSteps.of_training())
    records = SweepSummary(
        output, metric=metric, mode=mode, shown=shown, facts=facts, trials=trials, finalists=finalists, steps=steps
    )
    return collect_results(output, records, settings)


def importances(results: SweepResults) -> dict[str, float] | None:
    """Return the importance of each key for the score, by the permutation importance of a random forest.

    Args:
        results: Results of the sweep.

    Returns:
        Share of the sum by key; ``None`` where there are too few trials.
    """
    keys, trials = results.numeric, results.scored
    if len(trials) < results.trials_for_importances or not keys:
        return None
    # Takes a second to import, and only reports need it.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    # A key that a trial does not have is a missing value, which trees split on as such.
    rows = [[math.nan if key not in trial.params else float(trial.params[key]) for key in keys] for trial in trials]
    # By rank: a single outlier would otherwise be all that a forest explains.
    ranks = [float(rank) for rank in range(len(trials))]
    forest = RandomForestRegressor(n_estimators=200, min_samples_leaf=2, random_state=_SEED).fit(rows, ranks)
    importance = permutation_importance(forest, rows, ranks, n_repeats=20, random_state=_SEED)
    # scikit-learn declares a dict of several scores as well, which only several scorers return.
    means = importance.importances_mean  # pyright: ignore[reportAttributeAccessIssue]
    total = sum(max(0.0, value) for value in means) or 1.0
    return {key: max(0.0, float(value)) / total for key, value in zip(keys, means, strict=True)}


def _number(value: Any) -> float | None:
    """Return a finite number as it is, and anything else as ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _steps(config: dict[str, Any], space: dict[str, Any]) -> TrialSteps:
    """Return the steps by which the trials of a sweep are followed, from its config as it was read."""
    if samples_only(space):
        return TrialSteps.of_chains(int(config.get("sampler", {}).get("num_steps", 1)))
    return TrialSteps.of_training(int(config.get("train", {}).get("base_steps", 1)))


def _settings(output: str) -> dict[str, Any]:
    """Read the settings of the search, and its steps, from the sweep's config; empty where it cannot be read."""
    files, path = filesystem(output)
    try:
        config = parse_yaml(read_bytes(files, f"{path}/config.yaml", CONFIG), CONFIG)
        sweep, evaluation = config["sweep"], config["evaluation"]
        space = sweep["space"] if isinstance(sweep["space"], dict) else {}
        # Older summaries do not have it, and there were no tasks of plugins then; a likelihood has no temperature.
        task = str(config.get("task", "images"))
        has_beta = task in NAMES and not facts_of(task).likelihood
        beta = config.get("sampler", {}).get("beta") if has_beta else None
        return {
            BETA: beta,
            "search": str(sweep["search"]),
            "scheduler": str(sweep["scheduler"]),
            "space": {str(key): value for key, value in space.items()},
            "num_samples": int(evaluation["num_samples"]),
            "steps": _steps(config, space),
        }
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return {}
