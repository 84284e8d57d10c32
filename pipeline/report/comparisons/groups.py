"""Groups of runs that differ in their seed alone, one for each network and objective of a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config.scores import at_end
from pipeline.report.comparisons.sweeps import NETWORKS, OBJECTIVE, SEED, ComparedSweep
from pipeline.tracking.seed_statistics import Difference, Estimate, mean_and_error, paired_difference
from pipeline.tracking.summary import TrialRecord

__all__ = ["GANS", "Group", "difference", "group_runs"]

GANS = ("gan", "hinge", "wasserstein")
"""Objectives whose model is the base alone: their energy is a discriminator's."""

# Keys of a label; runs that differ in more have the name of their folder.
_MAX_KEYS = 3
_MAX_VALUE = 40


@dataclass
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        data: Name of the data set.
        networks: Family of networks.
        objective: Objective.
        fixed: The other keys that say what a run is, as JSON; see :meth:`ComparedSweep.fixed_keys`.
        runs: Seed -> the trial that is compared.
        sweeps: Sweeps that the runs are from.
        settings: Settings of the searched keys that were tried.
        trials: Trials of these networks and this objective, whatever became of them.
        hours: Hours of a worker that all these trials took.
        extra: Label that distinguishes it from other groups of the same data, networks and objective; empty if none is
            needed.
    """

    data: str
    networks: str
    objective: str
    fixed: Mapping[str, str]
    runs: dict[int, TrialRecord]
    sweeps: list[ComparedSweep]
    settings: int
    trials: list[TrialRecord]
    hours: float
    extra: str = field(default="")

    @property
    def is_gan(self) -> bool:
        """Whether the model is the base alone."""
        return self.objective in GANS

    @property
    def model(self) -> str:
        """What the model is called."""
        return "GAN" if self.is_gan else "GEBM"

    @property
    def variant(self) -> str:
        """Objective, and the label that distinguishes the group from others."""
        return ", ".join(filter(None, [self.objective, self.extra]))

    @property
    def base_score(self) -> str:
        """Name of the score of the base."""
        return at_end(self.sweeps[0].score, "base")

    @property
    def gebm_score(self) -> str:
        """Name of the score with the energy."""
        return at_end(self.sweeps[0].score, "gebm")

    @property
    def own_score(self) -> str:
        """Name of the score of the model: of a GAN, that of its base."""
        return self.base_score if self.is_gan else self.gebm_score

    def values(self, score: str) -> dict[int, float]:
        """Return seed -> score, of the seeds that have it."""
        found = {seed: _finite(trial.best_metrics.get(score)) for seed, trial in sorted(self.runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, score: str) -> Estimate:
        """Return the mean of a score over the seeds, with its standard error."""
        return mean_and_error(self.values(score).values())

    def best(self) -> tuple[int, TrialRecord] | None:
        """Return the seed and the trial with the best score of the model; None where no seed has it."""
        values = self.values(self.own_score)
        if not values:
            return None
        better = min if self.sweeps[0].results.records.mode == "min" else max
        seed = better(values, key=lambda seed: values[seed])
        return seed, self.runs[seed]


def difference(first: Group, score: str, second: Group, other: str) -> Difference:
    """Return by how much a score of one group is larger than one of another, paired by seed.

    Args:
        first: A group.
        score: Name of its score.
        second: Another group, or the same.
        other: Name of the score of that.
    """
    return paired_difference(first.values(score), second.values(other))


def group_runs(sweeps: Sequence[ComparedSweep]) -> list[Group]:
    """Return the groups of several sweeps, in the order in which the sweeps are given.

    Sweeps that differ in their seed alone, as single trainings do, are one group. Where a sweep searches other keys
    than the seed, the networks and the objective, its best setting is compared.

    Args:
        sweeps: Sweeps that can be compared.
    """
    groups: list[Group] = []
    for sweep in sweeps:
        for group in _groups_of(sweep):
            same = next((other for other in groups if _is_same(group, other)), None)
            if same is None:
                groups.append(group)
            else:
                same.runs |= group.runs
                same.sweeps += group.sweeps
                same.trials += group.trials
                same.settings, same.hours = max(same.settings, group.settings), same.hours + group.hours
    _label_alike(groups)
    return groups


def _is_same(group: Group, other: Group) -> bool:
    """Return whether two groups differ in their seeds alone, and have none in common."""
    what = ("data", "networks", "objective", "fixed")
    return all(getattr(group, name) == getattr(other, name) for name in what) and not group.runs.keys() & other.runs


def _groups_of(sweep: ComparedSweep) -> list[Group]:
    cases: dict[tuple[str, str], list[TrialRecord]] = {}
    for trial in sweep.results.records.trials:
        case = str(sweep.value(trial, NETWORKS, "?")), str(sweep.value(trial, OBJECTIVE, "kale_fenchel"))
        cases.setdefault(case, []).append(trial)
    groups = []
    for (networks, objective), trials in cases.items():
        hours = sweep.workers * sum(trial.seconds for trial in trials) / 3600
        group = Group(
            sweep.data, networks, objective, sweep.fixed_keys(), {}, [sweep], len(_by_setting(trials)), trials, hours
        )
        metric = sweep.results.records.metric
        group.runs = _choose(sweep, trials, metric.replace("_gebm", "_base") if group.is_gan else metric)
        groups.append(group)
    return groups


def _choose(sweep: ComparedSweep, trials: Sequence[TrialRecord], score: str) -> dict[int, TrialRecord]:
    """Return seed -> trial of the setting that is the best by a score."""
    records = sweep.results.records
    sign = 1 if records.mode == "min" else -1

    def cost(trial: TrialRecord) -> float:
        value = _finite(trial.best_metrics.get(score))
        return math.inf if value is None else sign * value

    scored = [trial for trial in trials if math.isfinite(cost(trial))]
    if not any(SEED in trial.params for trial in scored):
        # Where first scores were too close, the finalists' second scores decide.
        first = records.best() if score == records.metric else None
        best = first if first in scored else min(scored, key=cost, default=None)
        seed = _seed(sweep.config.get(SEED, 0))
        return {} if best is None or seed is None else {seed: best}
    settings = _by_setting([trial for trial in scored if trial.status == "finished"])
    runs = [
        {seed: trial for trial in of_one if (seed := _seed(trial.params.get(SEED))) is not None} for of_one in settings
    ]

    def mean(of_seed: dict[int, TrialRecord]) -> float:
        found = mean_and_error(map(cost, of_seed.values())).mean
        return found if math.isfinite(found) else math.inf

    # A setting that misses seeds may be the luckiest of all.
    return min(filter(None, runs), key=lambda of_seed: (-len(of_seed), mean(of_seed)), default={})


def _by_setting(trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Return trials that differ in their seed alone, each setting's in a list."""
    settings: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        rest = {key: value for key, value in trial.params.items() if key != SEED}
        settings.setdefault(json.dumps(rest, sort_keys=True), []).append(trial)
    return list(settings.values())


def _label_alike(groups: Sequence[Group]) -> None:
    """Give those that are alike in data, networks and objective a label by what they differ in."""
    alike: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.data, group.networks, group.objective), []).append(group)
    for several in alike.values():
        if len(several) == 1:
            continue
        keys = dict.fromkeys(key for group in several for key in group.fixed)
        differing = [key for key in keys if len({group.fixed.get(key) for group in several}) > 1]
        labels = [", ".join(f"{key}={_shown(group.fixed.get(key))}" for key in differing) for group in several]
        if not 0 < len(differing) <= _MAX_KEYS or len(set(labels)) < len(several):
            labels = _folder_names([group.sweeps[0].folder for group in several])
        for group, label in zip(several, labels, strict=True):
            group.extra = label


def _folder_names(folders: list[str]) -> list[str]:
    """Return the last part of each folder, or all of it where that is not the only one of its name."""
    names = [folder.rpartition("/")[2] for folder in folders]
    return names if len(set(names)) == len(names) else folders


def _shown(value: str | None) -> str:
    text = "none" if value is None else value.strip('"')
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _seed(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _finite(value: object) -> float | None:
    """Return a finite number, and anything else as ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
