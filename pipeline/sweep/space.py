"""Search spaces written in YAML, and the points they give.

A space maps a key of the experiment to one of::

    {log_uniform: [1.0e-4, 1.0e-3]}   {uniform: [0.0, 1.0]}   {int_uniform: [10, 100]}   {choice: [ula, kla]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from pipeline.config import Config, apply
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError

__all__ = [
    "grid_points",
    "initial_points",
    "is_sampler_search",
    "parse_space",
    "random_points",
]

_RANGES = {
    "log_uniform": (tune.loguniform, "two positive bounds, the lower first"),
    "uniform": (tune.uniform, "two bounds, the lower first"),
    "int_uniform": (lambda low, high: tune.randint(low, high + 1), "two whole bounds, the lower first"),
}
# What a trial is made of. A search over how it is measured, or over what it runs on, would compare unlike things.
_SEARCHED = ("model", "train", "sampler", "seed")
_FORMS = "{log_uniform: [low, high]}, {uniform: [low, high]}, {int_uniform: [low, high]} or {choice: [a, b, ...]}"


def is_sampler_search(config: Config) -> bool:
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


def initial_points(config: Config, space: dict[str, Domain]) -> list[dict[str, Any]]:
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
        return grid_points(space, config.sweep.grid_size)
    return random_points(space, config.sweep.num_trials, config.seed)
