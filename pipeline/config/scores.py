"""Names of scores and of their standard errors, and both as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "CLASS_FID",
    "ENDS",
    "FID_INFINITY",
    "NEAREST",
    "REPORT_GROUPS",
    "STANDARD_ERROR",
    "ChainPoint",
    "at_end",
    "chain_points",
    "difference",
    "format_score",
    "plus_minus",
    "standard_error_of",
]

STANDARD_ERROR = "_standard_error"
"""End of the name of a score's standard error."""

ENDS = ("base", "gebm")
"""Ends of the chain, with which the names of scores there end."""

FID_INFINITY = "fid_infinity"
"""Score of ``evaluation.fid_infinity``."""

NEAREST = "nearest"
"""Score of the distances to training images."""

CLASS_FID = "fid_class_"
"""Beginning of the scores of ``evaluation.per_class``; the number of the class follows."""

REPORT_GROUPS = {
    "energy_loss": "train",
    "base_loss": "train",
    "penalty": "train",
    "energy_lr": "train",
    "base_lr": "train",
    "bad_shards": "train",
    "largest_energy_loss": "train",
    "energy_data": "kale",
    "energy_base": "kale",
    "held_out_kale": "kale",
    "train_kale": "kale",
    "energy_spread": "kale",
    "energy_second_moment": "kale",
    "weights_ess": "kale",
    "floor_share": "kale",
    "final_energy_steps_taken": "kale",
    "base_steps_per_second": "rate",
    "images_per_second": "rate",
    "flops_per_second": "rate",
    "fraction_of_peak": "rate",
    "evaluation_seconds": "rate",
}
"""Group of each number of a trial's report that is no score; numbers that are not listed are the sampler's."""

# Points of one chain that a file may have.
_MAX_POINTS = 10_000


class ChainPoint(NamedTuple):
    """Score of the samples at one step of their chain.

    Attributes:
        score: The score.
        standard_error: Its standard error; ``None`` where it has none.
    """

    score: float
    standard_error: float | None = None


def chain_points(chain: Any) -> dict[int, ChainPoint]:
    """Return the scores along a chain, from JSON.

    Args:
        chain: Step of the chain -> score and standard error; in files of earlier versions, the score alone.

    Returns:
        Step -> point; points whose score is missing, since it was not finite, are left out.

    Raises:
        ValueError: It is no such mapping.

    Example:
        >>> chain_points({"0": [5.0, 0.1], "50": [4.0, None], "100": 3.0})[100]
        ChainPoint(score=3.0, standard_error=None)
    """
    if not isinstance(chain, Mapping) or len(chain) > _MAX_POINTS:
        raise ValueError("not the scores along a chain")
    points = {}
    for step, point in chain.items():
        score, error = point if isinstance(point, list | tuple) and len(point) == 2 else (point, None)
        if not str(step).isdecimal() or len(str(step)) > 15:
            raise ValueError("not a step of a chain")
        if (number := _number(score)) is not None:
            points[int(step)] = ChainPoint(number, _number(error))
    return points


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    try:
        return float(value)
    # An integer beyond the largest float.
    except OverflowError:
        raise ValueError("not a number") from None


def standard_error_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """Return the standard error of a score.

    Args:
        metrics: Scores of an evaluation, from this process or from a file.
        name: Name of the score.

    Returns:
        The error; ``None`` where there is none, as in results of earlier versions, or it is no finite number.

    Example:
        >>> standard_error_of({"fid_gebm": 4.5, "fid_gebm_standard_error": 0.1}, "fid_gebm")
        0.1
        >>> standard_error_of({"fid_gebm": 4.5}, "fid_gebm") is None
        True
    """
    error = metrics.get(f"{name}{STANDARD_ERROR}")
    if isinstance(error, bool) or not isinstance(error, int | float) or not math.isfinite(error) or error < 0:
        return None
    return float(error)


def difference(metrics: Mapping[str, Any], base: str, gebm: str) -> ChainPoint | None:
    """Return what an energy and its chain add to a score of the base alone, with the standard error of the difference.

    The error is that of two independent sets of samples. Chains start where the samples of the base do, which can only
    make it smaller.

    Args:
        metrics: Scores of an evaluation, from this process or from a file.
        base: Name of the score of the base.
        gebm: Name of the score of the GEBM.

    Returns:
        The GEBM's score minus the base's; ``None`` where one of them is no finite number.

    Example:
        >>> scores = {"fid_base": 5.0, "fid_base_standard_error": 0.3, "fid_gebm": 4.0, "fid_gebm_standard_error": 0.4}
        >>> difference(scores, "fid_base", "fid_gebm")
        ChainPoint(score=-1.0, standard_error=0.5)
    """
    before, after = metrics.get(base), metrics.get(gebm)
    for value in (before, after):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
    errors = standard_error_of(metrics, base), standard_error_of(metrics, gebm)
    error = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    return ChainPoint(float(after or 0.0) - float(before or 0.0), error)


def at_end(name: str, end: str) -> str:
    """Return the name of a score, or of a score's standard error, at one end of the chain.

    Args:
        name: As the scorer names it.
        end: ``base`` or ``gebm``.

    Example:
        >>> at_end("fid", "gebm"), at_end("fid_standard_error", "gebm")
        ('fid_gebm', 'fid_gebm_standard_error')
    """
    score = name.removesuffix(STANDARD_ERROR)
    return f"{score}_{end}{name[len(score) :]}"


def plus_minus(value: float, error: float | None = None) -> str:
    """Return a number and its standard error, both as exact as two significant digits of the error are.

    Args:
        value: The number.
        error: Its standard error; without one, the number has four significant digits.

    Example:
        >>> plus_minus(4.5173, 0.1234), plus_minus(1234.5, 67.8), plus_minus(0.00123, 0.0000456)
        ('4.52 ± 0.12', '1234 ± 68', '0.001230 ± 0.000046')
        >>> plus_minus(4.5173), plus_minus(4.5173, 0.0), plus_minus(123456.7, 8901.2)
        ('4.517', '4.517', '123457 ± 8901')
        >>> plus_minus(4.5, 0.0996)
        '4.50 ± 0.10'
    """
    if error is None or not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        # A whole number ends in a dot.
        return f"{value:#.4g}".rstrip(".")
    if abs(value) >= 1e15 or error >= 1e15 or error < 1e-12:
        return f"{value:.3g} ± {error:.2g}"
    # Of the rounded error: 0.0996 is 0.10.
    exponent = math.floor(math.log10(float(f"{error:.1e}")))
    digits = max(0, 1 - exponent)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def format_score(metrics: Mapping[str, Any], name: str, missing: str = "") -> str:
    """Return a score with its standard error, where it has one, as every table, chart and line shows it.

    Args:
        metrics: Scores of an evaluation, from this process or from a file.
        name: Name of the score.
        missing: What stands for a score that is missing.

    Example:
        >>> metrics = {"fid_gebm": 4.1702, "fid_gebm_standard_error": 0.083, "fid_base": -123456.7}
        >>> format_score(metrics, "fid_gebm"), format_score(metrics, "fid_base"), format_score(metrics, "kid_gebm", "-")
        ('4.170 ± 0.083', '-1.235e+05', '-')
    """
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return missing
    return plus_minus(float(value), standard_error_of(metrics, name))
