"""Comparison of a replayed step with the plain one, within the precision of the networks.

The bound is measured: the step is taken a third time with the networks' weights or inputs off by one rounding of the
precision. A replay that differs from the step by no more than a few such roundings computes the same; one that leaves
something out, or computes with stale numbers, differs by the size of the step itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Agreement", "compare", "rounding"]

# Roundings by which two steps may differ, and the largest part of a step in any case.
_ROUNDINGS, _LARGEST = 8.0, 0.5
# Share of numbers left out, the most different ones: a proposal that is accepted by a hair, or an update of Adam by a
# gradient that is zero but for rounding, may go the other way.
_LEFT_OUT = 0.02
# Of fewer numbers the difference that a rounding makes may be small by chance; then that of all tensors counts as well.
_MANY = 100
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_ROUNDING = {"float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": 2.0**-8}


def rounding(precision: str, dtype: torch.dtype) -> float:
    """Return the relative size of one rounding inside networks.

    Args:
        precision: A name of :data:`gebm.precision.NAMES`.
        dtype: Type of their weights.

    Example:
        >>> rounding("bfloat16", torch.float32), rounding("float32", torch.float64) < 1e-15
        (0.00390625, True)
    """
    return torch.finfo(dtype).eps if precision == "float32" else max(_ROUNDING[precision], torch.finfo(dtype).eps)


class Agreement(NamedTuple):
    """Result of a comparison.

    Attributes:
        agrees: Whether every tensor is within its bound.
        worst: Name of the tensor that is furthest off, by its bound.
        difference: How far that tensor is off, in parts of what the step changes.
        bound: How far it may be off.
    """

    agrees: bool
    worst: str
    difference: float
    bound: float


def compare(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], rounded: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> Agreement:
    """Compare the results of a step that was taken in two ways.

    Args:
        one: Tensors after the step, by name.
        other: The same, of the step that was taken the other way.
        rounded: The same, of the first step with its networks off by a rounding.
        before: Tensors before the step, of those that it changes; another's step is its size.

    Returns:
        Whether they agree. Numbers that are not finite have to be so in both, and whole numbers equal.

    Example:
        >>> before, after = {"x": torch.zeros(4)}, {"x": torch.ones(4)}
        >>> compare(after, {"x": torch.ones(4) + 1e-7}, {"x": torch.ones(4) + 1e-7}, before).agrees
        True
        >>> compare(after, {"x": torch.zeros(4)}, {"x": torch.ones(4) + 1e-7}, before).agrees
        False
    """
    agrees, worst, most = True, ("", 0.0, 0.0), -1.0
    floats = [name for name, tensor in one.items() if tensor.is_floating_point()]
    sizes = {name: _size(one[name] - before[name] if name in before else one[name]) for name in floats}
    roundings = {name: _size(rounded[name] - one[name], trimmed=True) for name in floats}
    shares = sorted(roundings[name] / sizes[name] for name in floats if sizes[name])
    typical = shares[len(shares) // 2] if shares else 0.0
    for name, tensor in one.items():
        few = tensor.numel() < _MANY
        allowed = 0.0 if few or tensor.dtype not in (torch.bool, *_FLOATS) else _LEFT_OUT
        if name not in sizes:
            apart, bound, size = float((tensor != other[name]).double().mean()), allowed, 1.0
        elif (lost := float((tensor.isfinite() != other[name].isfinite()).double().mean())) > allowed:
            apart, bound, size = lost, allowed, 1.0
        else:
            size = sizes[name]
            apart = _size(other[name] - tensor, trimmed=True)
            by_rounding = max(roundings[name], typical * size) if few else roundings[name]
            # Stored numbers are rounded as well.
            stored = 4 * torch.finfo(tensor.dtype).eps * _size(tensor)
            bound = min(_ROUNDINGS * by_rounding, _LARGEST * size) + stored
        agrees = agrees and apart <= bound
        if (part := apart / bound if bound else float(apart > 0)) > most:
            most, worst = part, (name, apart / (size or 1.0), bound / (size or 1.0))
    return Agreement(agrees, *worst)


def _size(tensor: Tensor, *, trimmed: bool = False) -> float:
    """Return the Euclidean norm of the finite numbers, in a comparison without the largest ones."""
    squares = tensor.detach().double().nan_to_num(0.0, 0.0, 0.0).square().flatten()
    if trimmed and len(squares) >= _MANY:
        squares = squares.sort().values[: len(squares) - int(_LEFT_OUT * len(squares))]
    return float(squares.sum().sqrt())
