"""Search algorithms and schedulers: which trial is next, and which trials are pruned."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pipeline.config import Config
from pipeline.sweep.dimension import Choice
from pipeline.sweep.points import free_names
from pipeline.sweep.search_space import SearchSpace
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import TERMINAL_STATUSES, TrialRecord

__all__ = [
    "ResumableSearcher",
    "make_scheduler",
    "make_searcher",
    "pbt_config",
]


log = logging.getLogger(__name__)

# Proposals of one trial that may be refused in a row.
_MAX_REFUSALS = 100


class ResumableSearcher(Searcher):
    """Searcher that gives Tune the trials that are left, by name: planned ones, then those that Optuna proposes.

    Args:
        planned: Names and parameters of trials to run, in order.
        names: Names for trials that are still to be proposed.
        space: Search space, which every proposal has to be a point of.
        proposer: Optuna's searcher, with the trials that have ended; None where everything is planned.
    """

    def __init__(
        self,
        planned: list[tuple[str, dict[str, Any]]],
        names: list[str],
        space: SearchSpace,
        proposer: OptunaSearch | None = None,
    ) -> None:
        super().__init__(metric=proposer.metric if proposer else None, mode=proposer.mode if proposer else None)
        self._planned, self._names, self._space, self._proposer = list(planned), list(names), space, proposer
        # Tune's id of a trial to the proposer's.
        self._proposed: dict[str, str] = {}

    # Ray's annotation leaves out FINISHED, a string, which its own searchers return as well.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the next trial's parameters."""
        if self._planned:
            name, params = self._planned.pop(0)
            return {TRIAL_NAME_KEY: name, **params}
        if self._proposer is None or not self._names:
            return Searcher.FINISHED
        refusal = None
        for attempt in range(_MAX_REFUSALS):
            proposal = f"{trial_id}-{attempt}"
            params = self._proposer.suggest(proposal)
            if params is None:
                return None
            if (refusal := self._space.refusal(params)) is None:
                self._proposed[trial_id] = proposal
                return {TRIAL_NAME_KEY: self._names.pop(0), **params}
            self._proposer.on_trial_complete(proposal, None, error=True)
        log.warning(f"no more trials: {_MAX_REFUSALS} proposals in a row were refused; the last: {refusal}")
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a trial's result to the proposer."""
        if self._proposer is not None and trial_id in self._proposed:
            scored = result if result and self._proposer.metric in result else None
            self._proposer.on_trial_complete(self._proposed[trial_id], scored, error=error or scored is None)

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
    proposed = config.sweep.search == "optuna"
    names = free_names(records, config.sweep.num_trials - len(records)) if proposed else []
    proposer = None
    if names:
        proposer = OptunaSearch(
            space.domains, metric=config.sweep.metric, mode=config.sweep.mode, seed=config.seed + len(records)
        )
        for record in records:
            scored = config.sweep.metric in record.metrics and record.status in TERMINAL_STATUSES
            if scored and space.holds(record.params):
                # Optuna refuses a value that is beyond a bound by rounding.
                proposer.add_evaluated_point(space.nearest(record.params), record.metrics[config.sweep.metric])
    return ResumableSearcher(unfinished, names, space, proposer), len(unfinished) + len(names)


def pbt_config(space: SearchSpace, records: list[TrialRecord]) -> dict[str, Any]:
    """Return the trials that are left in Tune's form for population-based training, which takes no searcher.

    Args:
        space: The sweep's search space.
        records: All trials; those that have ended stay ended.

    Returns:
        Tune's ``config``: one trial for each name, with its own parameters.
    """
    params = {record.name: record.params for record in records if record.status not in TERMINAL_STATUSES}

    def sample(key: str) -> Any:
        def value(spec: Any) -> Any:
            return params[spec.config[TRIAL_NAME_KEY]][key]

        return tune.sample_from(value)

    return {TRIAL_NAME_KEY: tune.grid_search(list(params)), **{key: sample(key) for key in space}}


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
        # Named after the trial that is exploited, since these are its parameters, perturbed.
        name = params[TRIAL_NAME_KEY]
        point = space.nearest(params)
        return {TRIAL_NAME_KEY: name, **(planned[name] if space.refusal(point) else point)}

    # Tune multiplies a value of a distribution, and takes the next one of a list.
    mutations: dict[str, Any] = {
        key: one.extremes if isinstance(one, Choice) else one.domain for key, one in space.items()
    }
    return _PopulationBasedTraining(
        config.train.base_steps,
        time_attr="base_step",
        metric=config.sweep.metric,
        mode=config.sweep.mode,
        perturbation_interval=config.sweep.perturbation_steps or max(1, config.train.base_steps // 10),
        hyperparam_mutations=mutations,
        custom_explore_fn=explore,
        require_attrs=False,
        log_config=False,
    )


class _PopulationBasedTraining(PopulationBasedTraining):
    """Population-based training in which a trial that has taken its last step exploits nothing more.

    Args:
        base_steps: Length of a trial, which is not searched.
        **options: Those of Tune's scheduler.
    """

    def __init__(self, base_steps: int, **options: Any) -> None:
        super().__init__(**options)
        self._base_steps = base_steps

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide what a trial does after a report."""
        if result.get("base_step", 0) >= self._base_steps:
            return self.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)


def _make_asha(config: Config, space: SearchSpace, records: list[TrialRecord]) -> AsyncHyperBandScheduler:
    """Return the scheduler of successive halving, with the evaluations of trials that have ended."""
    # A trial is stopped at the longest length, which is no pruning; shorter ones end by themselves.
    lengths = space["train.base_steps"].extremes if "train.base_steps" in space else [config.train.base_steps]
    total = max(1, *lengths)
    asha = AsyncHyperBandScheduler(
        time_attr="base_step",
        metric=config.sweep.metric,
        mode=config.sweep.mode,
        max_t=total,
        grace_period=min(config.sweep.grace_steps or max(1, total // 4), total),
        reduction_factor=config.sweep.reduction_factor,
    )
    for record in records:
        # Successive halving reads nothing but the identity of a trial.
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{record.name}")
        controller: Any = None
        asha.on_trial_add(controller, earlier)
        # The others will report for themselves.
        if record.status in TERMINAL_STATUSES and space.holds(record.params):
            for evaluation in record.evaluations:
                asha.on_trial_result(controller, earlier, evaluation)
    return asha
