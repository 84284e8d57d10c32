"""Comparison of a replayed step with the plain one, within what rounding changes of it.

How far two correct ways to take a step may be apart is measured in the run itself. The plain step is taken a few times
more with the result of each of its operators off by one rounding at random (:mod:`gebm.replay.roundings`), and the root
mean square of what that changes in a tensor, ``r``, is the scale of its bound:

    off by no more than ``8 r``, and half of what the step changes, and four roundings of the stored numbers.

*Why 8, and four such steps.* What rounding changes of a number is a sum of many small contributions of random sign,
hence about normal, and ``r`` is the root mean square of four such sums, of one unit in each operator. True roundings
are uniform up to half a unit: two ways that round differently everywhere differ by 0.41 units in the root mean square.
So 2.4 times their ratio is distributed as Student's t with four degrees of freedom, and the ratio is above 8 once in
25,000 numbers. With one step alone it would be once in 31, and a training step has dozens of such numbers. Of tensors
of many numbers the ratio is below one. The room up to 8 is for operators that sum in a less careful
order.

*Why half of the step.* What leaves something out, or computes with stale numbers, differs by about the size of the
step. Where rounding makes a large part of a step, as in bfloat16, it still may not differ by as much.

*What says nothing.* The gradient of a bias in front of a batch normalization is zero but for rounding. Adam divides it
by its own size, so the whole step of that bias is random, in each way another. Such tensors have the bound ``8 r``
alone, as long as all of them together are no more than a fiftieth of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DRAWS", "Agreement", "compare", "spread"]

DRAWS = 4
"""Number of steps off by random roundings that the spread is measured by."""

# Roundings by which two steps may differ, and the largest part of a step.
_ROUNDINGS, _LARGEST = 8.0, 0.5
# Share of numbers left out, the most different ones: a proposal that is accepted by a hair, or an update of Adam by a
# gradient that is zero but for rounding, may go the other way. Also the share of numbers in tensors that say nothing.
_LEFT_OUT = 0.02
# Of fewer numbers the difference that a rounding makes may be small by chance; then that of all tensors counts as well.
_MANY = 100
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def spread(one: Mapping[str, Tensor], rounded: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return how far a step's results are from those of the same step with random roundings.

    Args:
        one: Tensors after the step, by name.
        rounded: The same after each step with random roundings. One of them is held at a time.

    Returns:
        Of each floating-point tensor, the root mean square of the Euclidean distances, the largest differences left
        out.

    Example:
        >>> {k: round(v, 3) for k, v in spread({"x": torch.zeros(4)}, [{"x": torch.ones(4)}] * 2).items()}
        {'x': 2.0}
    """
    squares: dict[str, list[float]] = {name: [] for name, tensor in one.items() if tensor.is_floating_point()}
    for other in rounded:
        for name, found in squares.items():
            found.append(_size(other[name] - one[name], trimmed=True) ** 2)
    return {name: math.sqrt(sum(found) / max(len(found), 1)) for name, found in squares.items()}


def compare(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], spread: Mapping[str, float], before: Mapping[str, Tensor]
) -> Agreement:
    """Compare the results of a step that was taken in two ways; see the top of this module for the bound.

    Args:
        one: Tensors after the step, by name.
        other: The same, of the step that was taken the other way.
        spread: How far rounding alone moves them, from :func:`spread`.
        before: Tensors before the step, of those that it changes; another's step is its size.

    Returns:
        Whether they agree. Numbers that are not finite have to be so in both, and whole numbers equal.

    Example:
        >>> before, after = {"x": torch.zeros(4)}, {"x": torch.ones(4)}
        >>> compare(after, {"x": torch.ones(4) + 1e-7}, {"x": 2e-7}, before).agrees
        True
        >>> compare(after, {"x": torch.zeros(4)}, {"x": 2e-7}, before).agrees
        False
    """
    agrees, worst, most = True, ("", 0.0, 0.0), -1.0
    sizes = {name: _size(one[name] - before[name] if name in before else one[name]) for name in spread}
    bounds = _bounds(one, spread, sizes)
    for name, tensor in one.items():
        few = tensor.numel() < _MANY
        allowed = 0.0 if few or tensor.dtype not in (torch.bool, *_FLOATS) else _LEFT_OUT
        if name not in sizes:
            apart, bound, size = float((tensor != other[name]).double().mean()), allowed, 1.0
        elif (lost := float((tensor.isfinite() != other[name].isfinite()).double().mean())) > allowed:
            apart, bound, size = lost, allowed, 1.0
        else:
            apart, bound, size = _size(other[name] - tensor, trimmed=True), bounds[name], sizes[name]
        agrees = agrees and apart <= bound
        if (part := apart / bound if bound else float(apart > 0)) > most:
            most, worst = part, (name, apart / (size or 1.0), bound / (size or 1.0))
    return Agreement(agrees, *worst)


def _bounds(one: Mapping[str, Tensor], spread: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Return how far each floating-point tensor may be off."""
    shares = sorted(spread[name] / size for name, size in sizes.items() if size)
    typical = shares[len(shares) // 2] if shares else 0.0
    bounds = {
        name: _ROUNDINGS * (max(spread[name], typical * size) if one[name].numel() < _MANY else spread[name])
        for name, size in sizes.items()
    }
    # Those of the largest part of rounding first: they say least.
    noisy = sorted(
        (name for name, size in sizes.items() if bounds[name] > _LARGEST * size),
        key=lambda name: sizes[name] / bounds[name],
    )
    left = _LEFT_OUT * sum(one[name].numel() for name in sizes)
    for name in noisy:
        left -= one[name].numel()
        if left < 0:
            bounds[name] = _LARGEST * sizes[name]
    # Stored numbers are rounded as well.
    return {name: bound + 4 * torch.finfo(one[name].dtype).eps * _size(one[name]) for name, bound in bounds.items()}


def _size(tensor: Tensor, *, trimmed: bool = False) -> float:
    """Return the Euclidean norm of the finite numbers, in a comparison without the largest ones."""
    squares = tensor.detach().double().nan_to_num(0.0, 0.0, 0.0).square().flatten()
    if trimmed and len(squares) >= _MANY:
        squares = squares.sort().values[: len(squares) - int(_LEFT_OUT * len(squares))]
    return float(squares.sum().sqrt())
