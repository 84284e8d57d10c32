"""What a sweep tries: search spaces written in YAML, the points they give, and who is pruned.

A space maps a key of the experiment to one of::

    {log_uniform: [1.0e-4, 1.0e-3]}   {uniform: [0.0, 1.0]}   {int_uniform: [10, 100]}   {choice: [ula, kla]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from pipeline.checks import validate
from pipeline.config import Config, apply
from pipeline.errors import UserError
from pipeline.records import ENDED, TrialRecord
from pipeline.tuning import TRIAL

__all__ = [
    "Planned",
    "first_points",
    "grid_points",
    "make_scheduler",
    "make_searcher",
    "parse_space",
    "population",
    "random_points",
    "searches_samplers",
]

_RANGES = {
    "log_uniform": (tune.loguniform, "two positive bounds, the lower first"),
    "uniform": (tune.uniform, "two bounds, the lower first"),
    "int_uniform": (lambda low, high: tune.randint(low, high + 1), "two whole bounds, the lower first"),
}
# What a trial is made of. A search over how it is measured, or over what it runs on, would compare unlike things.
_SEARCHED = ("model", "train", "sampler", "seed")
_FORMS = "{log_uniform: [low, high]}, {uniform: [low, high]}, {int_uniform: [low, high]} or {choice: [a, b, ...]}"


def searches_samplers(config: Config) -> bool:
    """Whether a search is over the sampler alone, of a model that is trained already.

    Args:
        config: ``sweep.space``.
    """
    space = config.sweep.space
    return bool(space) and all(key.startswith("sampler.") for key in space)


def parse_space(config: Config) -> dict[str, Domain]:
    """The sweep's search space.

    Args:
        config: the experiment; every key of ``sweep.space`` has to be one of its keys.

    Returns:
        Key to distribution.

    Raises:
        UserError: a key does not exist, a form is unknown, or a bound is not one the key can take.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}, "sweep": {"space": {"train.base_lr": {"log_uniform": [1e-4, 1e-3]}}}})
        >>> list(parse_space(config))
        ['train.base_lr']
    """
    space = {}
    for key, form in config.sweep.space.items():
        if not isinstance(form, Mapping) or len(form) != 1:
            raise UserError(f"sweep.space: {key} has to be {_FORMS}, and is {form}")
        if config.task == "density" and key.startswith("sampler."):
            raise UserError(f"sweep.space: {key} changes no likelihood, by which a density is judged: leave it out")
        if key.split(".")[0] not in _SEARCHED:
            raise UserError(f"sweep.space: {key} cannot be searched; keys of {', '.join(_SEARCHED)} can")
        [(name, values)] = form.items()
        if not isinstance(values, list | tuple) or not values:
            raise UserError(f"sweep.space: {key}: {name} takes a list, and got {values}")
        if name == "choice":
            space[key] = tune.choice(list(values))
            extremes = list(values)
        elif name in _RANGES:
            make, wants = _RANGES[name]
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
            ordered = numbers and len(values) == 2 and -math.inf < values[0] < values[1] < math.inf
            whole = numbers and all(value == int(value) for value in values if math.isfinite(value))
            if not ordered or (name == "log_uniform" and values[0] <= 0) or (name == "int_uniform" and not whole):
                raise UserError(f"sweep.space: {key}: {name} takes {wants}, and got {list(values)}")
            # What is drawn from a continuous range is a float, which a key for whole numbers refuses.
            extremes = [int(value) if name == "int_uniform" else float(value) for value in values]
            space[key] = make(*extremes)
        else:
            raise UserError(f"sweep.space: {key}: {name} is unknown; it has to be {_FORMS}")
        for value in extremes:
            try:
                validate(apply(config, {key: value}))
            except UserError as error:
                raise UserError(f"sweep.space: {error}") from None
    return space


def random_points(space: dict[str, Domain], count: int, seed: int) -> list[dict[str, Any]]:
    """Independent draws, the same for the same seed.

    Example:
        >>> random_points({"a": tune.uniform(0, 1)}, 2, seed=0) == random_points({"a": tune.uniform(0, 1)}, 2, seed=0)
        True
    """
    random = np.random.RandomState(seed)
    return [{key: domain.sample(random_state=random) for key, domain in space.items()} for _ in range(count)]


def grid_points(space: dict[str, Domain], points: int) -> list[dict[str, Any]]:
    """Every combination of the choices, and of ``points`` values in each range, its ends included.

    Example:
        >>> [round(point["a"], 3) for point in grid_points({"a": tune.loguniform(0.01, 1.0)}, 3)]
        [0.01, 0.1, 1.0]
    """

    def values(domain: Any) -> list[Any]:
        if hasattr(domain, "categories"):
            return list(domain.categories)
        fractions = [i / (points - 1) for i in range(points)] if points > 1 else [0.5]
        low, high = domain.lower, domain.upper
        if isinstance(domain, tune.search.sample.Integer):
            return sorted({round(low + fraction * (high - 1 - low)) for fraction in fractions})
        if type(domain.sampler).__name__ == "_LogUniform":
            return [math.exp(math.log(low) + f * (math.log(high) - math.log(low))) for f in fractions]
        return [low + fraction * (high - low) for fraction in fractions]

    return [
        dict(zip(space, combination, strict=True)) for combination in itertools.product(*map(values, space.values()))
    ]


def first_points(config: Config, space: dict[str, Domain]) -> list[dict[str, Any]]:
    """The points that are known before anything has run; none where Optuna proposes them one by one.

    Args:
        config: the experiment.
        space: its search space; empty for a single run.
    """
    if not space:
        return [{}]
    if config.sweep.search == "optuna":
        return []
    if config.sweep.search == "grid":
        return grid_points(space, config.sweep.points)
    return random_points(space, config.sweep.num_trials, config.seed)


class Planned(Searcher):
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
            return {TRIAL: name, **params}
        if self._proposer is None or not self._names:
            return Searcher.FINISHED
        params = self._proposer.suggest(trial_id)
        self._proposed.add(trial_id)
        return {TRIAL: self._names.pop(0), **params}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let the proposer learn."""
        if self._proposer is not None and trial_id in self._proposed:
            known = result if result and self._proposer.metric in result else None
            self._proposer.on_trial_complete(trial_id, known, error=error or known is None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: ``summary.json`` is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: ``summary.json`` is what a sweep resumes from."""


def make_searcher(config: Config, space: dict[str, Domain], records: list[TrialRecord]) -> tuple[Planned, int]:
    """The trials that are left to run.

    Args:
        config: the experiment.
        space: its search space.
        records: the trials of ``summary.json`` where a sweep is resumed; those that have ended stay ended.

    Returns:
        The searcher, and how many trials it has to give.
    """
    unfinished = [(record.name, record.params) for record in records if record.status not in ENDED]
    proposed = config.sweep.search == "optuna"
    names = [f"{index:03d}" for index in range(len(records), config.sweep.num_trials)] if proposed else []
    proposer = None
    if names:
        proposer = OptunaSearch(
            space, metric=config.sweep.metric, mode=config.sweep.mode, seed=config.seed + len(records)
        )
        for record in records:
            if config.sweep.metric in record.metrics and record.status in ENDED:
                proposer.add_evaluated_point(record.params, record.metrics[config.sweep.metric])
    return Planned(unfinished, names, proposer), len(unfinished) + len(names)


def population(space: dict[str, Domain], records: list[TrialRecord]) -> dict[str, Any]:
    """The trials that are left, as Tune wants them of population-based training, which takes no searcher.

    Args:
        space: the sweep's search space.
        records: all trials; those that have ended stay ended.

    Returns:
        Tune's ``config``: one trial for each name, with its own parameters.
    """
    params = {record.name: record.params for record in records if record.status not in ENDED}

    def own(key: str) -> Any:
        return tune.sample_from(lambda spec: params[spec.config[TRIAL]][key])

    return {TRIAL: tune.grid_search(list(params)), **{key: own(key) for key in space}}


def _within(space: dict[str, Domain], params: dict[str, Any]) -> dict[str, Any]:
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
            if record.status in ENDED:  # the others will report for themselves
                for evaluation in record.evaluations:
                    asha.on_trial_result(None, earlier, evaluation)
        return asha
    if config.sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="base_step",
            perturbation_interval=config.sweep.perturbation_steps or max(1, total // 10),
            hyperparam_mutations=space,
            custom_explore_fn=lambda params: _within(space, params),
            require_attrs=False,
            log_config=False,
            **objective,
        )
    return FIFOScheduler()
