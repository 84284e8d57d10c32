"""Trials of a sweep that are known before anything runs: points of its space, and what a resumed sweep has left."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.runtime.errors import UserError
from pipeline.sweep.kernel_ranges import used_params
from pipeline.sweep.search_space import SearchSpace
from pipeline.tracking.summary import TERMINAL_STATUSES, TrialRecord

__all__ = ["check_count", "free_names", "grid_points", "initial_points", "plan_trials", "random_points"]

_OUTSIDE = "its parameters are outside the search space that the sweep was resumed with"


def check_count(config: Config, space: SearchSpace) -> None:
    """Refuse more trials than ``sweep.max_trials``, before any of them is made, and a search over nothing.

    Args:
        config: The experiment.
        space: Its search space.

    Raises:
        UserError: There are too many, or no key of the space is part of any point.
    """
    if config.sweep.space and not space:
        raise UserError(f"sweep.space: no trial uses {', '.join(config.sweep.space)}: there is nothing to search")
    sweep, advice = config.sweep, f"raise sweep.max_trials={config.sweep.max_trials} if you want them all"
    if space and sweep.search == "grid":
        count = space.grid_size(sweep.grid_size)
        if count > sweep.max_trials:
            sizes = " x ".join(f"{dimension.grid_size(sweep.grid_size)} of {key}" for key, dimension in space.items())
            raise UserError(
                f"the grid has {count:,} trials (at most {sizes}): lower sweep.grid_size={sweep.grid_size}, narrow "
                f"sweep.space, or {advice}"
            )
    elif sweep.num_trials > sweep.max_trials:
        raise UserError(f"sweep.num_trials={sweep.num_trials}: lower it, or {advice}")


def random_points(space: SearchSpace, count: int, seed: int) -> list[dict[str, Any]]:
    """Return independent draws, the same for the same seed.

    Args:
        space: The search space.
        count: Number of points.
        seed: Seed; with it, a larger count adds to the points of a smaller one.
    """
    random, points = np.random.RandomState(seed), []
    for _ in range(count):
        # Also of keys that the point lacks, so that a condition changes no other draw.
        drawn = {key: dimension.domain.sample(random_state=random) for key, dimension in space.items()}
        points.append(space.compose(drawn.__getitem__))
    return points


def grid_points(space: SearchSpace, size: int) -> list[dict[str, Any]]:
    """Return every combination of the choices, and of ``size`` values in each range, its ends included."""
    return space.combinations({key: dimension.grid(size) for key, dimension in space.items()})


def initial_points(config: Config, space: SearchSpace) -> list[dict[str, Any]]:
    """Return the points that are known before anything has run; none where Optuna proposes them one by one.

    Args:
        config: The experiment.
        space: Its search space; empty for a single run.

    Raises:
        UserError: A trial cannot have the parameters of a point.
    """
    if not space:
        return [{}]
    if config.sweep.search == "optuna":
        return []
    if config.sweep.search == "grid":
        points = grid_points(space, config.sweep.grid_size)
    else:
        points = random_points(space, config.sweep.num_trials, config.seed)
    for point in points:
        if refusal := space.refusal(point):
            raise UserError(f"sweep.space: {refusal}")
    return points


def free_names(records: list[TrialRecord], count: int) -> list[str]:
    """Return the first numbers that no trial has, as names.

    Args:
        records: The trials.
        count: Number of names.

    Example:
        >>> free_names([TrialRecord("000", {}), TrialRecord("002", {})], 2)
        ['001', '003']
    """
    taken = {record.name for record in records}
    names = (name for index in itertools.count() if (name := f"{index:03d}") not in taken)
    return list(itertools.islice(names, max(count, 0)))


def plan_trials(
    config: Config, space: SearchSpace, records: list[TrialRecord]
) -> tuple[list[TrialRecord], tuple[str, ...]]:
    """Plan the trials of a sweep, new or resumed, perhaps with more trials or in another space.

    What has ended is kept. A trial that has not is resumed if it is a point of the space; otherwise it ends as pruned,
    or, where it had not started, a new point replaces it.

    Args:
        config: The experiment.
        space: Its search space.
        records: Trials of the sweep that is resumed; none of a new one.

    Returns:
        All trials in the order of their names, and lines for the user.

    Raises:
        UserError: A trial cannot have the parameters of a new point.
    """
    planned: list[TrialRecord] = []
    ended, replaced = 0, 0
    for record in records:
        # A sweep of an earlier version has settings of other kernels in its trials.
        used = used_params(record.params, config.sampler.name)
        record.params = used if space.holds(used) else record.params
        if record.status not in TERMINAL_STATUSES and space.refusal(record.params) is not None:
            if not (record.mlflow_run_id or record.evaluations or record.seconds):
                replaced += 1
                continue
            ended += 1
            record.status, record.error = "pruned", _OUTSIDE
        planned.append(record)
    points = initial_points(config, space)
    names = free_names(planned, len(points))
    if space and config.sweep.search == "grid":
        done = {json.dumps(record.params, sort_keys=True) for record in planned}
        new = [point for point in points if json.dumps(point, sort_keys=True) not in done]
        trials = [*planned, *map(TrialRecord, names, new)]
    else:
        # The points of the numbers that are free: those of a sweep that is resumed as it was stay what they were.
        trials = [*planned, *(TrialRecord(name, points[int(name)]) for name in names if int(name) < len(points))]
    outside = sum(not space.holds(record.params) for record in planned)
    return sorted(trials, key=lambda trial: int(trial.name)), _resume_notes(outside, ended, replaced)


def _resume_notes(outside: int, ended: int, replaced: int) -> tuple[str, ...]:
    """Return a line on the trials that are outside the space of a resumed sweep; none where all are inside."""
    parts = [f"{outside} earlier trial(s) are kept and not used by the search"] if outside else []
    parts += [f"{ended} of them had not finished and are not resumed"] if ended else []
    parts += [f"{replaced} that had not started are replaced"] if replaced else []
    return (f"outside the search space of this command: {'; '.join(parts)}",) if parts else ()
