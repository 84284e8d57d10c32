"""Search algorithms and schedulers: which trial is next, and which trials are pruned."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from pipeline.config import Config
from pipeline.config.sampler_search import is_sampler_search
from pipeline.runtime.errors import one_line
from pipeline.sweep.dimension import Choice, Dimension
from pipeline.sweep.display.eta import Rung
from pipeline.sweep.points import free_names
from pipeline.sweep.proposals import Proposer
from pipeline.sweep.search_space import SearchSpace
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import TERMINAL_STATUSES, TrialRecord
from pipeline.tracking.trial_reports import CHAIN_SCORE, CHAIN_STEP, missed_reports

__all__ = [
    "ResumableSearcher",
    "count_trials_left",
    "make_scheduler",
    "make_searcher",
    "pbt_config",
    "scheduled_rungs",
]


log = logging.getLogger(__name__)

# Proposals of one trial that may be refused in a row.
_MAX_REFUSALS = 100
# Ray's defaults in population-based training: how often a value is drawn anew, and what others are multiplied by.
_RESAMPLE_PROBABILITY, _FACTORS = 0.25, (1.2, 0.8)


class ResumableSearcher(Searcher):
    """Searcher that gives Tune the trials that are left, by name: planned ones, then those that Optuna proposes.

    Args:
        planned: Names and parameters of trials to run, in order.
        names: Names for trials that are still to be proposed.
        space: Search space, which every proposal has to be a point of.
        metric: Score that the proposer learns from.
        proposer: Optuna, with the trials that have ended; None where everything is planned.
    """

    def __init__(
        self,
        planned: list[tuple[str, dict[str, Any]]],
        names: list[str],
        space: SearchSpace,
        metric: str,
        proposer: Proposer | None = None,
    ) -> None:
        super().__init__()
        self._planned, self._names, self._space, self._proposer = list(planned), list(names), space, proposer
        self._score = metric
        # Tune's id of a trial to the proposer's trial.
        self._proposed: dict[str, optuna.Trial] = {}

    # Ray's annotation leaves out FINISHED, a string, which its own searchers return as well.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the next trial's parameters."""
        if self._planned:
            name, params = self._planned.pop(0)
            return {TRIAL_NAME_KEY: name, **params}
        if self._proposer is None or not self._names:
            return Searcher.FINISHED
        refusal = None
        for _ in range(_MAX_REFUSALS):
            proposed, params = self._proposer.propose()
            if (refusal := self._space.refusal(params)) is None:
                self._proposed[trial_id] = proposed
                return {TRIAL_NAME_KEY: self._names.pop(0), **params}
            self._proposer.end(proposed, None)
        log.warning(f"no more trials: {_MAX_REFUSALS} proposals in a row were refused; the last: {refusal}")
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a trial's result to the proposer."""
        if self._proposer is not None and (proposed := self._proposed.pop(trial_id, None)) is not None:
            self._proposer.end(proposed, _score_of(result, self._score) if result else None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from ``summary.json``."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from ``summary.json``."""


def make_searcher(config: Config, space: SearchSpace, records: list[TrialRecord]) -> tuple[ResumableSearcher, int]:
    """Return a searcher of the trials that are left to run.

    Args:
        config: The experiment.
        space: Its search space.
        records: The trials of ``summary.json`` where a sweep is resumed; those that have ended stay ended, and the
            proposer learns from those of them that are points of the space.

    Returns:
        The searcher, and the number of trials that it has to give.
    """
    unfinished = [(record.name, record.params) for record in records if record.status not in TERMINAL_STATUSES]
    names = free_names(records, count_trials_left(config, records) - len(unfinished))
    proposer = None
    if names:
        proposer = Proposer(space, config.sweep.mode, config.seed + len(records))
        for record in records:
            score = _score_of(record.metrics, config.sweep.metric)
            if score is not None and record.status in TERMINAL_STATUSES and space.holds(record.params):
                proposer.learn(record.params, score)
    searcher = ResumableSearcher(unfinished, names, space, config.sweep.metric, proposer)
    return searcher, len(unfinished) + len(names)


def count_trials_left(config: Config, records: list[TrialRecord]) -> int:
    """Return the number of trials that are left to run: those that have not ended, and those still to be proposed.

    Args:
        config: The experiment.
        records: The trials that are planned, or have run before.
    """
    unfinished = sum(record.status not in TERMINAL_STATUSES for record in records)
    proposed = config.sweep.num_trials - len(records) if config.sweep.search == "optuna" else 0
    return unfinished + max(0, proposed)


def _score_of(result: dict[str, Any], metric: str) -> float | None:
    """Return the score of a trial: its evaluation's, or that of the last point along the chain before it was pruned."""
    return result.get(metric, result.get(CHAIN_SCORE))


def pbt_config(records: list[TrialRecord]) -> dict[str, Any]:
    """Return the trials that are left in Tune's form for population-based training, which takes no searcher.

    Args:
        records: All trials; those that have ended stay ended.

    Returns:
        Tune's ``config``: one trial for each name, whose parameters the scheduler adds.
    """
    return {TRIAL_NAME_KEY: tune.grid_search([r.name for r in records if r.status not in TERMINAL_STATUSES])}


def make_scheduler(config: Config, space: SearchSpace, records: list[TrialRecord]) -> TrialScheduler:
    """Return the scheduler that prunes trials, or has them exploit better ones.

    Args:
        config: The experiment.
        space: Its search space.
        records: Planned and earlier trials. Results of those that have ended count towards the cut-offs of a resumed
            sweep, where they are points of the space.
    """
    if config.sweep.scheduler == "asha":
        return _make_asha(config, space, records)
    if config.sweep.scheduler == "pbt":
        return _make_pbt(config, space, records)
    return FIFOScheduler()


def _make_pbt(config: Config, space: SearchSpace, records: list[TrialRecord]) -> PopulationBasedTraining:
    """Return the scheduler of population-based training, whose trials stay in the space."""
    planned = {record.name: record.params for record in records}

    def explore(params: dict[str, Any]) -> dict[str, Any]:
        # Named after the trial that is exploited, since these are its parameters, perturbed by Tune where they have no
        # condition. A key whose condition holds now and did not before is drawn.
        def value(key: str) -> Any:
            if key not in params:
                return space[key].nearest(space[key].domain.sample())
            return space[key].nearest(_perturb(space[key], params[key]) if key in space.conditions else params[key])

        name = params[TRIAL_NAME_KEY]
        point = space.compose(value)
        return {TRIAL_NAME_KEY: name, **(planned[name] if space.refusal(point) else point)}

    # Tune multiplies a value of a distribution, and takes the next one of a list.
    mutations: dict[str, Any] = {
        key: one.extremes if isinstance(one, Choice) else one.domain
        for key, one in space.items()
        if key not in space.conditions
    }
    return _PopulationBasedTraining(
        config.train.base_steps,
        planned,
        time_attr="base_step",
        metric=config.sweep.metric,
        mode=config.sweep.mode,
        perturbation_interval=config.sweep.perturbation_steps or max(1, config.train.base_steps // 10),
        hyperparam_mutations=mutations,
        resample_probability=_RESAMPLE_PROBABILITY,
        perturbation_factors=_FACTORS,
        custom_explore_fn=explore,
        require_attrs=False,
        log_config=False,
    )


def _perturb(dimension: Dimension, value: Any) -> Any:
    """Return another value, as Tune perturbs the keys that every point has."""
    if random.random() < _RESAMPLE_PROBABILITY or value not in dimension:
        return dimension.domain.sample()
    if isinstance(dimension, Choice):
        values = dimension.extremes
        return values[min(max(values.index(value) + random.choice((-1, 1)), 0), len(values) - 1)]
    return value * random.choice(_FACTORS)


class _PopulationBasedTraining(PopulationBasedTraining):
    """Population-based training in which a trial that has taken its last step exploits nothing more.

    Args:
        base_steps: Length of a trial, which is not searched.
        planned: Name of each trial to its parameters.
        **options: Those of Tune's scheduler.
    """

    def __init__(self, base_steps: int, planned: dict[str, dict[str, Any]], **options: Any) -> None:
        super().__init__(**options)
        self._base_steps, self._planned = base_steps, planned

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give a trial its planned parameters; Tune itself would draw those that are missing."""
        # One that restarts on another machine has its own.
        if trial.config.keys() == {TRIAL_NAME_KEY}:
            trial.config.update(self._planned[trial.config[TRIAL_NAME_KEY]])
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide what a trial does after a report."""
        if result.get("base_step", 0) >= self._base_steps:
            return self.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)


def scheduled_rungs(config: Config, space: SearchSpace) -> list[Rung]:
    """Return where a sweep's scheduler prunes trials; empty where it prunes none.

    Args:
        config: The experiment.
        space: Its search space.
    """
    if config.sweep.scheduler != "asha":
        return []
    total, factor = _longest_trial(config, space), config.sweep.reduction_factor
    # Trials are judged where they are evaluated: at the first evaluation of a training that has come to the rung.
    every = 1 if is_sampler_search(config) else config.evaluation.every
    rungs, step = [], _grace_period(config, total)
    while (judged := -(-step // every) * every) < total:
        rungs.append(Rung(judged / total, factor))
        step *= factor
    # Rungs that are judged at the same evaluation are one.
    return list(dict.fromkeys(rungs))


def _longest_trial(config: Config, space: SearchSpace) -> int:
    """Return the steps of the longest trial, which is stopped there: no pruning, and shorter ones end by themselves."""
    key, lengths = "train.base_steps", [config.train.base_steps]
    if is_sampler_search(config):
        key, lengths = "sampler.num_steps", [config.sampler.num_steps]
    if key in space:
        lengths = [*space[key].extremes, *(lengths if key in space.conditions else [])]
    return max(1, *lengths)


def _grace_period(config: Config, total: int) -> int:
    """Return the steps before which no trial is pruned."""
    return min(config.sweep.grace_steps or max(1, total // 4), total)


def _make_asha(config: Config, space: SearchSpace, records: list[TrialRecord]) -> AsyncHyperBandScheduler:
    """Return the scheduler of successive halving, with the evaluations of trials that have ended."""
    samples, total = is_sampler_search(config), _longest_trial(config, space)
    asha = AsyncHyperBandScheduler(
        time_attr=CHAIN_STEP if samples else "base_step",
        metric=CHAIN_SCORE if samples else config.sweep.metric,
        mode=config.sweep.mode,
        max_t=total,
        grace_period=_grace_period(config, total),
        reduction_factor=config.sweep.reduction_factor,
    )
    for record in records:
        # Successive halving reads nothing but the identity of a trial.
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{record.name}")
        controller: Any = None
        asha.on_trial_add(controller, earlier)
        # The others will report for themselves.
        if record.status in TERMINAL_STATUSES and space.holds(record.params):
            for result in _points_along_chain(config, record) if samples else record.evaluations:
                asha.on_trial_result(controller, earlier, result)
    return asha


def _points_along_chain(config: Config, record: TrialRecord) -> list[dict[str, Any]]:
    """Return the reports of an earlier trial along its chains, which are in its folder."""
    try:
        reports = missed_reports(f"{config.output}/trials/{record.name}", after=0)
    # Each file system has exceptions of its own; without them, the cut-offs are those of the trials to come.
    except Exception as error:
        log.warning(f"trial {record.name}: cannot read its reports ({one_line(error)})")
        return []
    points = [report for _, report in reports]
    return [
        point for point in points if all(isinstance(point.get(key), int | float) for key in (CHAIN_STEP, CHAIN_SCORE))
    ]
