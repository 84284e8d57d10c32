"""Search algorithms and schedulers: which trial is next, and which trials are pruned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain, Float, Integer

from pipeline.config import Config
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import TERMINAL_STATUSES, TrialRecord

__all__ = [
    "ResumableSearcher",
    "make_scheduler",
    "make_searcher",
    "pbt_config",
]


class ResumableSearcher(Searcher):
    """Searcher that gives Tune the trials that are left, by name: planned ones, then those that Optuna proposes.

    Args:
        planned: Names and parameters of trials to run, in order.
        names: Names for trials that are still to be proposed.
        proposer: Optuna's searcher, with the trials that have ended; None where everything is planned.
    """

    def __init__(
        self, planned: list[tuple[str, dict[str, Any]]], names: list[str], proposer: OptunaSearch | None = None
    ) -> None:
        super().__init__(metric=proposer.metric if proposer else None, mode=proposer.mode if proposer else None)
        self._planned, self._names, self._proposer = list(planned), list(names), proposer
        self._proposed: set[str] = set()

    # Ray's annotation leaves out FINISHED, a string, which its own searchers return as well.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the next trial's parameters."""
        if self._planned:
            name, params = self._planned.pop(0)
            return {TRIAL_NAME_KEY: name, **params}
        if self._proposer is None or not self._names:
            return Searcher.FINISHED
        params = self._proposer.suggest(trial_id)
        if params is None:
            return None
        self._proposed.add(trial_id)
        return {TRIAL_NAME_KEY: self._names.pop(0), **params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a trial's result to the proposer."""
        if self._proposer is not None and trial_id in self._proposed:
            scored = result if result and self._proposer.metric in result else None
            self._proposer.on_trial_complete(trial_id, scored, error=error or scored is None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from ``summary.json``."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from ``summary.json``."""


def make_searcher(
    config: Config, space: dict[str, Domain], records: list[TrialRecord]
) -> tuple[ResumableSearcher, int]:
    """Return a searcher of the trials that are left to run.

    Args:
        config: The experiment.
        space: Its search space.
        records: The trials of ``summary.json`` where a sweep is resumed; those that have ended stay ended.

    Returns:
        The searcher, and the number of trials that it has to give.
    """
    unfinished = [(record.name, record.params) for record in records if record.status not in TERMINAL_STATUSES]
    proposed = config.sweep.search == "optuna"
    names = [f"{index:03d}" for index in range(len(records), config.sweep.num_trials)] if proposed else []
    proposer = None
    if names:
        proposer = OptunaSearch(
            space, metric=config.sweep.metric, mode=config.sweep.mode, seed=config.seed + len(records)
        )
        for record in records:
            if config.sweep.metric in record.metrics and record.status in TERMINAL_STATUSES:
                proposer.add_evaluated_point(record.params, record.metrics[config.sweep.metric])
    return ResumableSearcher(unfinished, names, proposer), len(unfinished) + len(names)


def pbt_config(space: dict[str, Domain], records: list[TrialRecord]) -> dict[str, Any]:
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


def _clip_to_space(space: dict[str, Domain], params: dict[str, Any]) -> dict[str, Any]:
    """Return perturbed parameters, back between the bounds of the space."""

    def clip(key: str, value: Any) -> Any:
        match space.get(key):
            case Integer(lower=low, upper=high):
                return min(max(value, low), high - 1)
            case Float(lower=low, upper=high):
                return min(max(value, low), high)
        return value

    return {key: clip(key, value) for key, value in params.items()}


def make_scheduler(config: Config, space: dict[str, Domain], records: list[TrialRecord]) -> TrialScheduler:
    """Return the scheduler that prunes trials, or has them exploit better ones.

    Args:
        config: The experiment.
        space: Its search space.
        records: Earlier trials, whose results count towards the cut-offs of a resumed sweep.
    """
    if config.sweep.scheduler == "asha":
        return _make_asha(config, records)
    if config.sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="base_step",
            metric=config.sweep.metric,
            mode=config.sweep.mode,
            perturbation_interval=config.sweep.perturbation_steps or max(1, config.train.base_steps // 10),
            hyperparam_mutations=dict(space),
            custom_explore_fn=lambda params: _clip_to_space(space, params),
            require_attrs=False,
            log_config=False,
        )
    return FIFOScheduler()


def _make_asha(config: Config, records: list[TrialRecord]) -> AsyncHyperBandScheduler:
    """Return the scheduler of successive halving, with the evaluations of trials that have ended."""
    total = max(1, config.train.base_steps)
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
        if record.status in TERMINAL_STATUSES:
            for evaluation in record.evaluations:
                asha.on_trial_result(controller, earlier, evaluation)
    return asha
