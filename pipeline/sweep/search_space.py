"""Search space of a sweep, as written in YAML: which points it holds, and which of them can run.

A space maps a key of the experiment to one of::

    {log_uniform: [1.0e-4, 1.0e-3]}   {uniform: [0.0, 1.0]}   {choice: [ula, kla]}
    {int_log_uniform: [10, 10_000]}   {int_uniform: [10, 100]}

A form may have a condition, ``{..., when: {sampler.name: kla}}``; see :mod:`pipeline.sweep.conditions`. A setting that
each kernel has of its own, such as ``sampler.step_size``, may have a form by kernel; see
:mod:`pipeline.sweep.kernel_ranges`.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config, apply, part_settings
from pipeline.config.compose import format_overrides
from pipeline.config.tasks import facts_of
from pipeline.config.validation import validate, validate_rules
from pipeline.config.worker_rules import required_multiple
from pipeline.runtime.errors import UserError
from pipeline.sweep.conditions import Condition, by_depth, resolve_conditions
from pipeline.sweep.dimension import Choice, Dimension, Interval, WholeNumbers
from pipeline.sweep.kernel_ranges import by_kernel, implied_conditions

__all__ = ["SearchSpace", "is_searchable", "parse_space"]

# What a trial is made of. A search over how it is measured, or over what it runs on, would compare unlike things.
_SEARCHED = ("model", "train", "sampler", "seed")
_FORM_NAMES = (
    "{log_uniform: [low, high]}, {uniform: [low, high]}, {int_log_uniform: [low, high]}, {int_uniform: [low, high]} or "
    "{choice: [a, b, ...]}, perhaps with when: {key: value}"
)
# Combinations of extremes that are tried together, and members of a range that are tried between its ends.
_MAX_CORNERS, _MAX_BUILT_CORNERS, _NUM_BETWEEN = 256, 16, 16
# Combinations of the values that conditions name, which are looked through to count points.
_MAX_COMBINATIONS = 10_000
# What cannot change while a trial trains on, by what it would change.
_FIXED_IN_TRAINING = {
    "model.": "the networks",
    "seed": "the data's order and what the trial is",
    "train.objective": "what the energy is trained for",
    "train.train_base": "what is trained",
    "train.base_steps": "the length of the training",
}


def is_searchable(key: str) -> bool:
    """Return whether a search may set a key.

    Example:
        >>> is_searchable("train.energy_lr"), is_searchable("tracking.uri"), is_searchable("train")
        (True, False, False)
    """
    known = part_settings.find_key(key)
    # A group of settings is no key to search; those in it are.
    return key.split(".")[0] in _SEARCHED and known is not None and key not in part_settings.GROUPS


@dataclass(frozen=True)
class SearchSpace(Mapping[str, Dimension]):
    """Search space: key of the experiment to the values that it may have.

    A point has each key without a condition, and of the others exactly those whose condition it fulfills.

    Args:
        config: The experiment, whose other keys decide which points can run.
        dimensions: Key to its values.
        conditions: Key to its condition, of those that not every point has.
        notes: Lines for the user, on keys that no point has.
    """

    config: Config
    dimensions: Mapping[str, Dimension]
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Dimension:
        return self.dimensions[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.dimensions)

    def __len__(self) -> int:
        return len(self.dimensions)

    @functools.cached_property
    def order(self) -> list[str]:
        """The keys, each after those that its condition names."""
        return by_depth({key: self.condition(key).allowed for key in self})

    def condition(self, key: str) -> Condition:
        """Return the condition of a key; one that always holds where it has none."""
        return self.conditions.get(key, Condition())

    def compose(self, value: Callable[[str], Any]) -> dict[str, Any]:
        """Return a point whose values are those of a function, called for each key that the point has.

        Args:
            value: Function from a key to its value; keys that conditions name come first.
        """
        point: dict[str, Any] = {}
        for key in self.order:
            if self.condition(key).holds(point):
                point[key] = value(key)
        return self._sorted(point)

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return whether parameters are a point of the space: exactly its keys, each with one of its values."""
        if not params.keys() <= self.keys():
            return False
        return all((key in params) == self.condition(key).holds(params) for key in self) and all(
            value in self[key] for key, value in params.items()
        )

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
        """Return the point that is nearest to parameters with a point's keys."""
        return self.compose(lambda key: self[key].nearest(params[key]))

    def combinations(self, values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        """Return every point with one of these values of each of its keys.

        Args:
            values: Key to its values.
        """
        points: list[dict[str, Any]] = [{}]
        for key in self.order:
            own, holds = [{key: value} for value in values[key]], self.condition(key).holds
            points = [{**point, **more} for point in points for more in (own if holds(point) else [{}])]
        return [self._sorted(point) for point in points]

    def count(self, sizes: Mapping[str, float]) -> float:
        """Return the number of :meth:`combinations`, without making them.

        Args:
            sizes: Key to its number of values; keys that conditions name have all of theirs.

        Raises:
            UserError: The conditions are too many to look through.
        """
        names = {name: index for index, key in enumerate(self.order) for name in self.condition(key).allowed}
        # The values of keys that conditions still name, to the number of points with them.
        counts = Counter[tuple[tuple[str, Any], ...]]({(): 1})
        for index, key in enumerate(self.order):
            following = Counter[tuple[tuple[str, Any], ...]]()
            for values, count in counts.items():
                live = tuple((name, value) for name, value in values if names[name] > index)
                if not self.condition(key).holds(dict(values)):
                    following[live] += count
                elif key not in names:
                    # Infinite for an interval, where all its values are counted.
                    following[live] += count * sizes[key]  # pyright: ignore[reportArgumentType]
                else:
                    for value in self[key].extremes:
                        following[(*live, (key, value))] += count
            if len(following) > _MAX_COMBINATIONS:
                raise UserError(
                    f"sweep.space: the keys that conditions name have more than {_MAX_COMBINATIONS:,} combinations of "
                    f"values: use fewer conditions"
                )
            counts = following
        return sum(counts.values())

    def grid_size(self, size: float) -> float:
        """Return the number of points in a grid with ``size`` values a range, at once; with ``math.inf``, of all."""
        return self.count({key: dimension.grid_size(size) for key, dimension in self.items()})

    def corners(self, prefix: str = "", limit: int = _MAX_CORNERS) -> list[dict[str, Any]]:
        """Return combinations of the extremes of the keys that begin with a prefix: all of them, or ``limit``.

        Keys that their conditions name are part of a combination, too.
        """
        chosen = {key for key in self if key.startswith(prefix)}
        for key in reversed(self.order):
            chosen |= self.condition(key).allowed.keys() if key in chosen else set()
        part = SearchSpace(self.config, {key: one for key, one in self.items() if key in chosen}, self.conditions)
        extremes = {key: dimension.extremes for key, dimension in part.items()}
        if part.count({key: len(values) for key, values in extremes.items()}) <= limit:
            return part.combinations(extremes)
        draw = random.Random(0)
        return [part.compose(lambda key: draw.choice(extremes[key])) for _ in range(limit)]

    def _sorted(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point with its keys in the space's order."""
        return {key: point[key] for key in self if key in point}


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
        group = copied[".".join(groups)]
        if isinstance(group, dict):
            group[name] = value
        else:
            setattr(group, name, value)
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
    resolved = resolve_conditions(config, forms, implied_conditions(forms))
    # A key with a condition is checked where it holds.
    configs = {key: _replaced(config, _fulfilling(resolved.conditions, key)) for key in resolved.forms}
    dimensions = {key: _parse_dimension(configs[key], key, form) for key, form in resolved.forms.items()}
    parsed = SearchSpace(config, dimensions, resolved.conditions, resolved.notes)
    _check_together(parsed)
    return parsed


def _fulfilling(conditions: Mapping[str, Condition], key: str) -> dict[str, Any]:
    """Return values with which a key is part of a point."""
    params: dict[str, Any] = {}
    for name, values in conditions.get(key, Condition()).allowed.items():
        params |= {**_fulfilling(conditions, name), name: values[0]}
    return params


def _parse_dimension(config: Config, key: str, form: Any) -> Dimension:
    name, values = _check_form(config, key, form)
    dimension = _FORMS[name](config, key, values)
    typed = []
    try:
        for value in dimension.extremes:
            single = apply(config, {key: value})
            validate(single)
            # A number may be written as text.
            typed.append(part_settings.read(single, key) if isinstance(value, str) else value)
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
    if facts_of(config.task).likelihood and key.startswith("sampler."):
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
    if any(isinstance(value, Mapping | list | tuple) for value in values):
        raise UserError(f"sweep.space: {key}: choice takes numbers and names, and got {values}")
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
    return _parse_whole_numbers(config, key, values, "int_uniform", "whole")


def _parse_int_log_uniform(config: Config, key: str, values: list[Any]) -> Dimension:
    return _parse_whole_numbers(config, key, values, "int_log_uniform", "positive whole")


def _parse_whole_numbers(config: Config, key: str, values: list[Any], form: str, kind: str) -> Dimension:
    log = form == "int_log_uniform"
    if not _are_bounds(values) or any(value != int(value) for value in values) or (log and values[0] <= 0):
        raise UserError(f"sweep.space: {key}: {form} takes two {kind} bounds, the lower first, and got {values}")
    low, high = map(int, values)
    multiple = required_multiple(config, key)
    if high // multiple * multiple < low:
        raise UserError(f"sweep.space: {key} has to be a multiple of {multiple}, and {form} {values} has none")
    return WholeNumbers(low, high, multiple, log)


_FORMS: dict[str, Callable[[Config, str, list[Any]], Dimension]] = {
    "log_uniform": _parse_log_uniform,
    "uniform": _parse_uniform,
    "int_log_uniform": _parse_int_log_uniform,
    "int_uniform": _parse_int_uniform,
    "choice": _parse_choice,
}


def _are_bounds(values: list[Any]) -> bool:
    """Return whether values are two finite numbers, the lower first."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(values) == 2 and -math.inf < values[0] < values[1] < math.inf
