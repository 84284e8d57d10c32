"""Kernel that a warm-up has found: written down where it was scored, and used again without another warm-up."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.schema import Sampler

__all__ = ["FOUND_KERNEL", "found_kernel", "with_found"]

FOUND_KERNEL = "found_kernel"
"""Key of a report: what :func:`found_kernel` returns."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Found(BaseModel):
    """What a warm-up sets; it may come from an untrusted file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    step_size: _Positive
    inverse_mass: Annotated[list[_Positive], Field(max_length=2**20)] | None = None


def found_kernel(value: Any) -> dict[str, Any]:
    """Return what a warm-up has found, as a report or a summary has it.

    Args:
        value: ``step_size`` and, of kernels that have masses, ``inverse_mass``; empty or ``None`` without a warm-up.

    Raises:
        ValueError: No warm-up can have found it.

    Example:
        >>> found_kernel({"step_size": 0.1}), found_kernel(None)
        ({'step_size': 0.1}, {})
    """
    return _Found.model_validate(value).model_dump(exclude_none=True) if value else {}


def with_found(sampler: Sampler, found: dict[str, Any]) -> Sampler:
    """Return settings of a sampler without a warm-up, but with what it has found.

    Args:
        sampler: The settings.
        found: Of :func:`found_kernel`; where it is empty, the settings stay as they are.

    Example:
        >>> sampler = Sampler(name="mala", warm_up_steps=100)
        >>> warm = with_found(sampler, {"step_size": 0.1, "inverse_mass": [1.0, 2.0]})
        >>> warm.step_size, warm.warm_up_steps, warm.settings
        (0.1, 0, {'inverse_mass': [1.0, 2.0]})
    """
    if not found:
        return sampler
    masses = {key: value for key, value in found.items() if key != "step_size"}
    settings = {**sampler.settings, **masses}
    return dataclasses.replace(sampler, step_size=found["step_size"], warm_up_steps=0, settings=settings)
