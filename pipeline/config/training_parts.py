"""Objective and penalty of an experiment, built with their settings."""

from __future__ import annotations

from typing import Any

from gebm import objectives, penalties, samplers
from pipeline.config.schema import Train

__all__ = ["make_objective", "make_penalty"]


def make_objective(train: Train) -> objectives.Objective:
    """Return the objective of a training.

    Args:
        train: ``objective``, ``objective_settings`` and ``negatives``.

    Raises:
        ValueError: It has no such setting, or one is out of range.
    """
    return objectives.make(
        train.objective,
        kernel=samplers.make(train.negatives.sampler, step_size=train.negatives.step_size),
        num_steps=train.negatives.num_steps,
        **_as_arguments(train.objective_settings),
    )


def make_penalty(train: Train, weight: float | None) -> penalties.Penalty:
    """Return the penalty of a training.

    Args:
        train: ``penalty_kind``, ``penalty_settings`` and ``penalty_every``.
        weight: Its weight; ``None`` for its own default.

    Raises:
        ValueError: It has no such setting, or one is out of range.
    """
    settings = _as_arguments(train.penalty_settings)
    return penalties.make(train.penalty_kind, weight, every=train.penalty_every, **settings)


def _as_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
