"""Search space of a sweep, as written in YAML: which points it holds, and which of them can run.

A space maps a key of the experiment to one of::

    {log_uniform: [1.0e-4, 1.0e-3]}   {uniform: [0.0, 1.0]}   {int_uniform: [10, 100]}   {choice: [ula, kla]}

A setting that each kernel has of its own, such as ``sampler.step_size``, may have one of these by kernel; see
:mod:`pipeline.sweep.kernel_ranges`.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ray.tune.search.sample import Domain

from pipeline.config import Config, apply
from pipeline.config.compose import format_overrides
from pipeline.config.fields import keys
from pipeline.config.validation import required_multiple, validate, validate_rules
from pipeline.runtime.errors import UserError
from pipeline.sweep.dimension import Choice, Dimension, Interval, WholeNumbers
from pipeline.sweep.kernel_ranges import by_kernel, unused_keys

__all__ = ["SearchSpace", "is_sampler_search", "is_searchable", "parse_space"]

# What a trial is made of. A search over how it is measured, or over what it runs on, would compare unlike things.
_SEARCHED = ("model", "train", "sampler", "seed")
_FORM_NAMES = "{log_uniform: [low, high]}, {uniform: [low, high]}, {int_uniform: [low, high]} or {choice: [a, b, ...]}"
# Combinations of extremes that are tried together, and members of a range that are tried between its ends.
_MAX_CORNERS, _MAX_BUILT_CORNERS, _NUM_BETWEEN = 256, 16, 16
# What cannot change while a trial trains on, by what it would change.
_FIXED_IN_TRAINING = {
    "model.": "the networks",
    "seed": "the data's order and what the trial is",
    "train.objective": "what the energy is trained for",
    "train.train_base": "what is trained",
    "train.base_steps": "the length of the training",
}


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


@dataclass(frozen=True)
class SearchSpace(Mapping[str, Dimension]):
    """Search space: key of the experiment to the values that it may have.

    Args:
        config: The experiment, whose other keys decide which points can run.
        dimensions: Key to its values.
    """

    config: Config
    dimensions: Mapping[str, Dimension]

    def __getitem__(self, key: str) -> Dimension:
        return self.dimensions[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.dimensions)

    def __len__(self) -> int:
        return len(self.dimensions)

    @property
    def domains(self) -> dict[str, Domain]:
        """The values as Ray Tune and Optuna draw them."""
        return {key: dimension.domain for key, dimension in self.items()}

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return whether parameters are a point of the space: its keys, each with one of its values."""
        return params.keys() == self.keys() and all(params[key] in dimension for key, dimension in self.items())

    def refusal(self, params: Mapping[str, Any]) -> str | None:
        """Return why a trial cannot have these parameters, in one line; ``None`` where it can.

        Args:
            params: Parameters of a trial.
        """
        if not self.holds(params):
            return f"{' '.join(format_overrides(params))} is outside sweep.space"
        try:
            validate_rules(_replaced(self.config, params))
        except UserError as error:
            return str(error)
        return None

    def nearest(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the point that is nearest to parameters with the space's keys."""
        return {key: dimension.nearest(params[key]) for key, dimension in self.items()}

    def grid_size(self, size: int) -> int:
        """Return the number of points in a grid with ``size`` values a range, at once."""
        fixed = ({"sampler.name", *unused} for _, unused in self.unused_by_kernel())
        return sum(math.prod(one.grid_size(size) for key, one in self.items() if key not in keys) for keys in fixed)

    def unused_by_kernel(self) -> list[tuple[str, list[str]]]:
        """Return each kernel that a trial may have, and the keys that such a trial does not use."""
        name = self.config.sampler.name
        kernels = self["sampler.name"].extremes if "sampler.name" in self else [name]
        return [(kernel, unused_keys(dict.fromkeys(self) | {"sampler.name": kernel}, name)) for kernel in kernels]

    def corners(self, prefix: str = "", limit: int = _MAX_CORNERS) -> list[dict[str, Any]]:
        """Return combinations of the extremes of the keys that begin with a prefix: all of them, or ``limit``."""
        extremes = {key: dimension.extremes for key, dimension in self.items() if key.startswith(prefix)}
        if math.prod(map(len, extremes.values())) <= limit:
            return [dict(zip(extremes, values, strict=True)) for values in itertools.product(*extremes.values())]
        draw = random.Random(0)
        return [{key: draw.choice(values) for key, values in extremes.items()} for _ in range(limit)]


def _replaced(config: Config, params: Mapping[str, Any]) -> Config:
    """Return a config with keys replaced, whose values have the right types; a thousand times as fast as ``apply``."""
    config = copy.copy(config)
    copied: dict[str, Any] = {"": config}
    for key, value in params.items():
        *groups, name = key.split(".")
        for depth, group in enumerate(groups):
            above, path = ".".join(groups[:depth]), ".".join(groups[: depth + 1])
            if path not in copied:
                copied[path] = copy.copy(getattr(copied[above], group))
                setattr(copied[above], group, copied[path])
        setattr(copied[".".join(groups)], name, value)
    return config


def parse_space(config: Config) -> SearchSpace:
    """Return the sweep's search space.

    Args:
        config: The experiment; every key of ``sweep.space`` has to be one of its keys.

    Returns:
        Key to its values, of which every combination of extremes that was tried can run.

    Raises:
        UserError: If a key does not exist, a form is unknown, or a trial cannot have a value of its range, alone or
            together with those of other keys.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}, "sweep": {"space": {"train.base_lr": {"log_uniform": [1e-4, 1e-3]}}}})
        >>> parse_space(config)["train.base_lr"]
        Interval(low=0.0001, high=0.001, log=True)
    """
    forms = by_kernel(config)
    parsed = SearchSpace(config, {key: _parse_dimension(config, key, form) for key, form in forms.items()})
    _check_together(parsed)
    return parsed


def _parse_dimension(config: Config, key: str, form: Any) -> Dimension:
    name, values = _check_form(config, key, form)
    dimension = _FORMS[name](config, key, values)
    typed = []
    try:
        for value in dimension.extremes:
            single = apply(config, {key: value})
            validate(single)
            # A number may be written as text.
            typed.append(attrgetter(key)(single) if isinstance(value, str) else value)
        if isinstance(dimension, Choice):
            dimension = Choice(tuple(typed))
        for value in dimension.grid(_NUM_BETWEEN):
            validate_rules(_replaced(config, {key: value}))
    except UserError as error:
        raise UserError(f"sweep.space: {error}") from None
    if config.sweep.scheduler == "pbt":
        _check_changeable(key, dimension)
    return dimension


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


def _check_changeable(key: str, dimension: Dimension) -> None:
    """Refuse a key that population-based training cannot change: a trial resumes from another's weights with it."""
    reasons = [reason for prefix, reason in _FIXED_IN_TRAINING.items() if key.startswith(prefix)]
    if key == "train.ema_decay" and None in dimension.extremes:
        reasons.append("whether there is an average of the base")
    if reasons:
        raise UserError(
            f"sweep.space: {key} changes {reasons[0]}, and with sweep.scheduler=pbt a trial resumes from another's "
            f"weights: leave it out, or use sweep.scheduler=asha or none"
        )


def _check_together(space: SearchSpace) -> None:
    """Refuse combinations of values each of which can be had alone."""
    checks = [(validate_rules, point) for point in space.corners()]
    if sum(key.startswith("model.") for key in space) > 1:
        checks += [(validate, point) for point in space.corners("model.", _MAX_BUILT_CORNERS)]
    for check, point in checks:
        try:
            check(_replaced(space.config, point))
        except UserError as error:
            raise UserError(f"sweep.space: {' '.join(format_overrides(point))} cannot go together: {error}") from None


def _parse_choice(config: Config, key: str, values: list[Any]) -> Dimension:
    return Choice(tuple(values))


def _parse_log_uniform(config: Config, key: str, values: list[Any]) -> Dimension:
    if not _are_bounds(values) or values[0] <= 0:
        raise UserError(f"sweep.space: {key}: log_uniform takes two positive bounds, the lower first, and got {values}")
    # What is drawn from a continuous range is a float, which a key for whole numbers refuses.
    low, high = map(float, values)
    return Interval(low, high, log=True)


def _parse_uniform(config: Config, key: str, values: list[Any]) -> Dimension:
    if not _are_bounds(values):
        raise UserError(f"sweep.space: {key}: uniform takes two bounds, the lower first, and got {values}")
    low, high = map(float, values)
    return Interval(low, high)


def _parse_int_uniform(config: Config, key: str, values: list[Any]) -> Dimension:
    if not _are_bounds(values) or any(value != int(value) for value in values):
        raise UserError(f"sweep.space: {key}: int_uniform takes two whole bounds, the lower first, and got {values}")
    low, high = map(int, values)
    multiple = required_multiple(config, key)
    if high // multiple * multiple < low:
        raise UserError(f"sweep.space: {key} has to be a multiple of {multiple}, and int_uniform {values} has none")
    return WholeNumbers(low, high, multiple)


_FORMS: dict[str, Callable[[Config, str, list[Any]], Dimension]] = {
    "log_uniform": _parse_log_uniform,
    "uniform": _parse_uniform,
    "int_uniform": _parse_int_uniform,
    "choice": _parse_choice,
}


def _are_bounds(values: list[Any]) -> bool:
    """Return whether values are two finite numbers, the lower first."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(values) == 2 and -math.inf < values[0] < values[1] < math.inf
