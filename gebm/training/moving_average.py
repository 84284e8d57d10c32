"""Exponential moving average of a base's weights: a second copy, which follows the trained one smoothly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["average_of", "average_weight", "update_average"]


def average_of(base: nn.Module) -> nn.Module:
    """Return a copy of a base that averages it: in evaluation mode, and trained by no optimizer.

    Example:
        >>> any(parameter.requires_grad for parameter in average_of(nn.Linear(2, 1)).parameters())
        False
    """
    return copy.deepcopy(base).eval().requires_grad_(False)


def average_weight(base_step: int, decay: float | None) -> float:
    """Return by what share the average moves towards the base in a base step.

    The average's window grows over the first steps, since the random initial weights must not stay in it.

    Args:
        base_step: Number of base steps before this one.
        decay: Decay per base step in (0, 1) once the window has grown; ``None`` lets it grow for ever.

    Example:
        >>> [round(average_weight(step, 0.99), 2) for step in (0, 10, 10_000)]
        [0.9, 0.45, 0.01]
    """
    growing = (1 + base_step) / (10 + base_step)
    return 1 - min(growing if decay is None else decay, growing)


@torch.no_grad()
def update_average(average: nn.Module, base: nn.Module, weight: float | Tensor) -> None:
    """Move the average's parameters and running statistics towards the base's, in place; counters are copied.

    Args:
        average: Result of :func:`average_of`.
        base: The base, after its step.
        weight: The share of the way, see :func:`average_weight`.

    Example:
        >>> base = nn.Linear(1, 1, bias=False)
        >>> average = average_of(base)
        >>> _ = nn.init.ones_(base.weight), nn.init.zeros_(average.weight)
        >>> update_average(average, base, 0.25)
        >>> average.weight.item()
        0.25
    """
    # state_dict's tensors share the modules' storage and come in the same order.
    for averaged, current in zip(average.state_dict().values(), base.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, weight)
        else:
            averaged.copy_(current)
