"""Metrics of images: what each needs, which scores it gives, and which way is better.

The built-in ones are computed by :mod:`pipeline.evaluation.metrics`, some of them together. A metric of one's own is a
function of N samples and N data, whose score has the metric's name::

    @metrics.register("mean_gap", fewest=2)
    def mean_gap(samples: Tensor, data: Tensor) -> float:
        return float((samples.mean(0) - data.mean(0)).norm())
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm.registry import Part, Registry
from pipeline.config.scores import (
    CLASS_FID,
    ENDS,
    FID_INFINITY,
    NEAREST,
    REPORT_GROUPS,
    STANDARD_ERROR,
    at_end,
)
from pipeline.config.tasks import scores as task_scores
from pipeline.runtime.cpu_seed import cpu_seed
from pipeline.runtime.part_errors import refusing

__all__ = [
    "BUILTIN",
    "FEATURE_SCORES",
    "MAX_SAMPLES",
    "NAMES",
    "Metric",
    "Score",
    "checked",
    "measure",
    "measured_on",
    "metric",
    "names",
    "register",
    "sample_scores",
]


@dataclass(frozen=True)
class Metric:
    """Facts of a metric that are known before anything is measured.

    Args:
        scores: Names of the scores that it gives, by which a sweep can rank its trials.
        fewest: Least number of samples, and of data, that it needs.
        better: ``down`` where less is better, else ``up``.
        of: ``features`` or ``images``, what it is computed from.
        deviations: Names of the deviations that it gives besides, by which nothing is ranked.
    """

    scores: tuple[str, ...]
    fewest: int
    better: str = "down"
    of: str = "features"
    deviations: tuple[str, ...] = ()


MAX_SAMPLES = 10_000
"""Samples, and data, that a metric of one's own is computed from at most."""

BUILTIN = {
    # A covariance.
    "fid": Metric(("fid",), 2),
    # Two subsets of two.
    "kid": Metric(("kid",), 4, deviations=("kid_std",)),
    # One sample a split.
    "is": Metric(("is",), 10, "up", deviations=("is_std",)),
    # A third neighbor.
    "prc": Metric(("precision", "recall"), 4, "up"),
    # A fifth neighbor.
    "dc": Metric(("density", "coverage"), 6, "up"),
}
"""The metrics of this project, and what each needs to be defined."""

FEATURE_SCORES = (
    *(name for each in BUILTIN.values() for name in (*each.scores, *each.deviations)),
    FID_INFINITY,
    NEAREST,
)
"""Names of all scores that this project computes from features, but for those of single classes."""


class _Taken:
    """Names that would be those of other scores, of a score's standard error, or of another number of a report."""

    def __contains__(self, name: object) -> bool:
        text = str(name)
        return (
            text in BUILTIN
            or text in FEATURE_SCORES
            or text.endswith(STANDARD_ERROR)
            or text.startswith((CLASS_FID, "log_partition"))
            or any(text == score or text.startswith(f"{score}_") for score in sample_scores())
            or any(at_end(text, end) in REPORT_GROUPS for end in ENDS)
        )


NAMES: Registry[Callable[..., Any]] = Registry(
    "metric",
    given=("samples", "data"),
    facts={"fewest": 2, "better": "down", "of": "features"},
    choices={"better": ("down", "up"), "of": ("features", "images"), "fewest": range(1, MAX_SAMPLES + 1)},
    taken=_Taken(),
    has_settings=False,
)
"""Metrics of one's own. Their facts: the samples that one needs (``fewest``), whether less is better (``down``) or more
(``up``), and whether it is of the extractor's ``features``, float32 (N, F), or of ``images``, uint8 (N, C, H, W)."""

register = NAMES.register
"""Register a function of ``samples`` and ``data`` that returns a number, or a number and its standard error."""


class Score(NamedTuple):
    """Value of a metric of one's own.

    Attributes:
        value: The value.
        standard_error: Its standard error; ``None`` where it has none.
    """

    value: float
    standard_error: float | None = None


def names() -> tuple[str, ...]:
    """Return the names of all metrics.

    Example:
        >>> names()[:5]
        ('fid', 'kid', 'is', 'prc', 'dc')
    """
    return (*BUILTIN, *NAMES)


def sample_scores() -> tuple[str, ...]:
    """Return the beginnings of the scores that need no feature extractor: those of tasks, such as a likelihood.

    Example:
        >>> sample_scores()
        ('off_support', 'nll', 'distance')
    """
    return tuple(name for name in task_scores() if name not in FEATURE_SCORES)


def metric(name: str) -> Metric:
    """Return the facts of a metric.

    Args:
        name: One of :func:`names`.

    Example:
        >>> metric("prc").scores, metric("prc").better
        (('precision', 'recall'), 'up')
    """
    return BUILTIN[name] if name in BUILTIN else Metric((name,), **NAMES.part(name).facts)


def measured_on(score: str) -> str | None:
    """Return what a score is computed from, ``features`` or ``images``; ``None`` where it is none of a metric's.

    Args:
        score: Name of a score, without the model that it is of.

    Example:
        >>> measured_on("recall"), measured_on("fid_infinity"), measured_on("nll")
        ('features', 'features', None)
    """
    if score in FEATURE_SCORES:
        return "features"
    return metric(score).of if score in NAMES else None


def measure(part: Part, samples: Tensor, data: Tensor) -> Score:
    """Compute a metric of one's own; the same samples have the same score, whatever random numbers it draws.

    Args:
        part: The metric.
        samples: Features or images of the samples (N, ...), on the CPU.
        data: Those of the same number of data.

    Raises:
        UserError: It fails or returns no finite number; the line names its file and line.
    """
    return checked(part, lambda: part.build(samples=samples, data=data), f"of {len(samples)} samples")


def checked(part: Part, compute: Callable[[], Any], of: str) -> Score:
    """Return the score that a part computes; the same one each time, whatever random numbers it draws.

    Args:
        part: The part.
        compute: Returns a number, or a number and its standard error.
        of: What it is computed from, for messages.

    Raises:
        UserError: It fails or returns no finite number; the line names the plugin's file and line.
    """
    with refusing(part), cpu_seed(0), torch.no_grad():
        result = compute()
        value, error = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        score = Score(_as_number(value), None if error is None else _as_number(error))
        if not all(math.isfinite(number) for number in (score.value, score.standard_error or 0.0)):
            raise ValueError(f"{of} it is {value} ± {error}, and both have to be finite")
        if score.standard_error is not None and score.standard_error < 0:
            raise ValueError(f"its standard error is {score.standard_error}, and has to be 0 at least")
    return score


def _as_number(value: Any) -> float:
    """Return a number, a tensor of one or a NumPy scalar as a float."""
    is_scalar = hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,))
    plain = value.item() if is_scalar else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(
            f"it returns {type(value).__name__}{shape}, and has to return a number, or a number and its standard error"
        )
    try:
        return float(plain)
    except OverflowError:
        return math.inf
