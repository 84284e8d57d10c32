"""Search space of a sweep, as written in YAML, and its points.

A space maps a key of the experiment to one of::

    {log_uniform: [1.0e-4, 1.0e-3]}   {uniform: [0.0, 1.0]}   {int_uniform: [10, 100]}   {choice: [ula, kla]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain, Integer

from pipeline.config import Config, apply
from pipeline.config.fields import keys
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError

__all__ = [
    "grid_points",
    "initial_points",
    "is_sampler_search",
    "is_searchable",
    "parse_space",
    "random_points",
]

# What a trial is made of. A search over how it is measured, or over what it runs on, would compare unlike things.
_SEARCHED = ("model", "train", "sampler", "seed")
_FORM_NAMES = "{log_uniform: [low, high]}, {uniform: [low, high]}, {int_uniform: [low, high]} or {choice: [a, b, ...]}"


def is_sampler_search(config: Config) -> bool:
    """Return whether a search is over the sampler alone, of a model that is trained already.

    Args:
        config: The experiment, with its ``sweep.space``.
    """
    space = config.sweep.space
    return bool(space) and all(key.startswith("sampler.") for key in space)


def is_searchable(key: str) -> bool:
    """Return whether a search may set a key.

    Example:
        >>> is_searchable("train.energy_lr"), is_searchable("tracking.uri"), is_searchable("train")
        (True, False, False)
    """
    return key.split(".")[0] in _SEARCHED and key in {known.name for known in keys(Config)}


def parse_space(config: Config) -> dict[str, Domain]:
    """Return the sweep's search space.

    Args:
        config: The experiment; every key of ``sweep.space`` has to be one of its keys.

    Returns:
        Key to distribution.

    Raises:
        UserError: If a key does not exist, a form is unknown, or a key cannot have a value of its range.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}, "sweep": {"space": {"train.base_lr": {"log_uniform": [1e-4, 1e-3]}}}})
        >>> list(parse_space(config))
        ['train.base_lr']
    """
    space = {}
    for key, form in config.sweep.space.items():
        name, values = _check_form(config, key, form)
        domain, extremes = _FORMS[name](f"sweep.space: {key}: {name}", values)
        for value in extremes:
            try:
                validate(apply(config, {key: value}))
            except UserError as error:
                raise UserError(f"sweep.space: {error}") from None
        space[key] = domain
    return space


def _check_form(config: Config, key: str, form: Any) -> tuple[str, list[Any]]:
    """Return the name of a form and its values, of a key that can be searched."""
    if not isinstance(form, Mapping) or len(form) != 1:
        raise UserError(f"sweep.space: {key} has to be {_FORM_NAMES}, and is {form}")
    if config.task == "density" and key.startswith("sampler."):
        raise UserError(f"sweep.space: {key} changes no likelihood, by which a density is judged: leave it out")
    if not is_searchable(key):
        raise UserError(f"sweep.space: {key} cannot be searched; keys of {', '.join(_SEARCHED)} can")
    [(name, values)] = form.items()
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"sweep.space: {key}: {name} takes a list, and got {values}")
    if name not in _FORMS:
        raise UserError(f"sweep.space: {key}: {name} is unknown; it has to be {_FORM_NAMES}")
    return name, list(values)


# What a form is parsed into: its distribution, and the values that the key has to accept.
_Parsed = tuple[Domain, list[Any]]


def _parse_choice(label: str, values: list[Any]) -> _Parsed:
    return tune.choice(values), values


def _parse_log_uniform(label: str, values: list[Any]) -> _Parsed:
    if not _are_bounds(values) or values[0] <= 0:
        raise UserError(f"{label} takes two positive bounds, the lower first, and got {values}")
    # What is drawn from a continuous range is a float, which a key for whole numbers refuses.
    low, high = map(float, values)
    return tune.loguniform(low, high), [low, high]


def _parse_uniform(label: str, values: list[Any]) -> _Parsed:
    if not _are_bounds(values):
        raise UserError(f"{label} takes two bounds, the lower first, and got {values}")
    low, high = map(float, values)
    return tune.uniform(low, high), [low, high]


def _parse_int_uniform(label: str, values: list[Any]) -> _Parsed:
    if not _are_bounds(values) or any(value != int(value) for value in values):
        raise UserError(f"{label} takes two whole bounds, the lower first, and got {values}")
    low, high = map(int, values)
    return tune.randint(low, high + 1), [low, high]


_FORMS: dict[str, Callable[[str, list[Any]], _Parsed]] = {
    "log_uniform": _parse_log_uniform,
    "uniform": _parse_uniform,
    "int_uniform": _parse_int_uniform,
    "choice": _parse_choice,
}


def _are_bounds(values: list[Any]) -> bool:
    """Return whether values are two finite numbers, the lower first."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(values) == 2 and -math.inf < values[0] < values[1] < math.inf


def random_points(space: dict[str, Domain], count: int, seed: int) -> list[dict[str, Any]]:
    """Return independent draws, the same for the same seed.

    Example:
        >>> random_points({"a": tune.uniform(0, 1)}, 2, seed=0) == random_points({"a": tune.uniform(0, 1)}, 2, seed=0)
        True
    """
    random = np.random.RandomState(seed)
    return [{key: domain.sample(random_state=random) for key, domain in space.items()} for _ in range(count)]


def grid_points(space: dict[str, Domain], points: int) -> list[dict[str, Any]]:
    """Return every combination of the choices, and of ``points`` values in each range, its ends included.

    Example:
        >>> [round(point["a"], 3) for point in grid_points({"a": tune.loguniform(0.01, 1.0)}, 3)]
        [0.01, 0.1, 1.0]
    """

    def values(domain: Any) -> list[Any]:
        if hasattr(domain, "categories"):
            return list(domain.categories)
        fractions = [i / (points - 1) for i in range(points)] if points > 1 else [0.5]
        low, high = domain.lower, domain.upper
        if isinstance(domain, Integer):
            return sorted({round(low + fraction * (high - 1 - low)) for fraction in fractions})
        if type(domain.sampler).__name__ == "_LogUniform":
            return [math.exp(math.log(low) + f * (math.log(high) - math.log(low))) for f in fractions]
        return [low + fraction * (high - low) for fraction in fractions]

    return [
        dict(zip(space, combination, strict=True)) for combination in itertools.product(*map(values, space.values()))
    ]


def initial_points(config: Config, space: dict[str, Domain]) -> list[dict[str, Any]]:
    """Return the points that are known before anything has run; none where Optuna proposes them one by one.

    Args:
        config: The experiment.
        space: Its search space; empty for a single run.
    """
    if not space:
        return [{}]
    if config.sweep.search == "optuna":
        return []
    if config.sweep.search == "grid":
        return grid_points(space, config.sweep.grid_size)
    return random_points(space, config.sweep.num_trials, config.seed)
