"""How a space is searched: who proposes the next trial, and who is pruned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

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
    """Hands Tune the trials that are left, by name: those that were planned, then those that Optuna proposes.

    Args:
        planned: names and parameters of trials to run, in order.
        names: names for trials that are still to be proposed.
        proposer: Optuna's searcher, told of what is known already; None where everything is planned.
    """

    def __init__(
        self, planned: list[tuple[str, dict[str, Any]]], names: list[str], proposer: OptunaSearch | None = None
    ) -> None:
        super().__init__(metric=proposer.metric if proposer else None, mode=proposer.mode if proposer else None)
        self._planned, self._names, self._proposer = list(planned), list(names), proposer
        self._proposed: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's parameters."""
        if self._planned:
            name, params = self._planned.pop(0)
            return {TRIAL_NAME_KEY: name, **params}
        if self._proposer is None or not self._names:
            return Searcher.FINISHED
        params = self._proposer.suggest(trial_id)
        self._proposed.add(trial_id)
        return {TRIAL_NAME_KEY: self._names.pop(0), **params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let the proposer learn."""
        if self._proposer is not None and trial_id in self._proposed:
            known = result if result and self._proposer.metric in result else None
            self._proposer.on_trial_complete(trial_id, known, error=error or known is None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: ``summary.json`` is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: ``summary.json`` is what a sweep resumes from."""


def make_searcher(
    config: Config, space: dict[str, Domain], records: list[TrialRecord]
) -> tuple[ResumableSearcher, int]:
    """The trials that are left to run.

    Args:
        config: the experiment.
        space: its search space.
        records: the trials of ``summary.json`` where a sweep is resumed; those that have ended stay ended.

    Returns:
        The searcher, and how many trials it has to give.
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
    """The trials that are left, as Tune wants them of population-based training, which takes no searcher.

    Args:
        space: the sweep's search space.
        records: all trials; those that have ended stay ended.

    Returns:
        Tune's ``config``: one trial for each name, with its own parameters.
    """
    params = {record.name: record.params for record in records if record.status not in TERMINAL_STATUSES}

    def own(key: str) -> Any:
        return tune.sample_from(lambda spec: params[spec.config[TRIAL_NAME_KEY]][key])

    return {TRIAL_NAME_KEY: tune.grid_search(list(params)), **{key: own(key) for key in space}}


def _clip_to_space(space: dict[str, Domain], params: dict[str, Any]) -> dict[str, Any]:
    """What population-based training has perturbed, back between the bounds of the space."""

    def clamped(key: str, value: Any) -> Any:
        domain = space.get(key)
        if not hasattr(domain, "lower"):
            return value
        whole = isinstance(domain, tune.search.sample.Integer)
        return min(max(value, domain.lower), domain.upper - 1 if whole else domain.upper)

    return {key: clamped(key, value) for key, value in params.items()}


def make_scheduler(config: Config, space: dict[str, Domain], records: list[TrialRecord]) -> TrialScheduler:
    """Who is pruned, and who takes over whose weights.

    Args:
        config: the experiment.
        space: its search space.
        records: earlier trials, whose results count towards the cut-offs of a resumed sweep.
    """
    objective = {"metric": config.sweep.metric, "mode": config.sweep.mode}
    total = max(1, config.train.base_steps)
    if config.sweep.scheduler == "asha":
        asha = AsyncHyperBandScheduler(
            time_attr="base_step",
            max_t=total,
            grace_period=min(config.sweep.grace_steps or max(1, total // 4), total),
            reduction_factor=config.sweep.reduction_factor,
            **objective,
        )
        for record in records:
            earlier = SimpleNamespace(trial_id=f"earlier-{record.name}")
            asha.on_trial_add(None, earlier)
            if record.status in TERMINAL_STATUSES:  # the others will report for themselves
                for evaluation in record.evaluations:
                    asha.on_trial_result(None, earlier, evaluation)
        return asha
    if config.sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="base_step",
            perturbation_interval=config.sweep.perturbation_steps or max(1, total // 10),
            hyperparam_mutations=space,
            custom_explore_fn=lambda params: _clip_to_space(space, params),
            require_attrs=False,
            log_config=False,
            **objective,
        )
    return FIFOScheduler()
