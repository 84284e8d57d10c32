"""Temperature at which a GEBM's scores are sampled, and its wording.

``sampler.beta`` is an inverse temperature: chains sample ``b(x) exp(-beta E(x))``, which is the model at ``beta = 1``
alone. A score of samples at another beta is a score of another distribution, so every place that shows one says its
beta, by the functions of this module.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.config.schema import Config
from pipeline.config.tasks import facts_of

__all__ = [
    "BETA",
    "SEARCHED_BETA",
    "describe_temperature",
    "describe_temperatures",
    "plausible_beta",
    "sampling_beta",
]

BETA = "beta"
"""Key of a trial's metrics and of the summary, and the tag in the tracker."""

SEARCHED_BETA = "sampler.beta"


def describe_temperature(beta: float) -> str:
    """Describe an inverse temperature in words.

    Args:
        beta: Inverse temperature, at least 0.

    Example:
        >>> describe_temperature(1.0), describe_temperature(10.0)
        ('beta 1: the model itself', 'beta 10: colder than the model')
        >>> describe_temperature(6.380556)
        'beta 6.381: colder than the model'
        >>> describe_temperature(0.5), describe_temperature(0.0)
        ('beta 0.5: hotter than the model', 'beta 0: the base alone')
    """
    if beta == 1:
        return "beta 1: the model itself"
    if beta == 0:
        return "beta 0: the base alone"
    # Repr where the short form would round to 1, which is another statement.
    number = f"{beta:.4g}" if f"{beta:.4g}" != "1" else repr(float(beta))
    return f"beta {number}: {'colder' if beta > 1 else 'hotter'} than the model"


def describe_temperatures(betas: list[float]) -> str:
    """Describe the inverse temperatures of several scores that are shown together.

    Args:
        betas: Inverse temperatures, at least one.

    Example:
        >>> describe_temperatures([4.0, 0.5, 1.0])
        'beta 0.5 to 4, by trial; 1 is the model itself, larger is colder'
        >>> describe_temperatures([10.0, 10.0])
        'beta 10: colder than the model'
    """
    low, high = min(betas), max(betas)
    if low == high:
        return describe_temperature(low)
    return f"beta {low:.4g} to {high:.4g}, by trial; 1 is the model itself, larger is colder"


def sampling_beta(config: Config, params: dict[str, Any] | None = None) -> float | None:
    """Return the inverse temperature at which the GEBM is scored.

    Args:
        config: The experiment.
        params: Keys that the search has set for a trial (default: the sweep as a whole).

    Returns:
        The beta of the chains whose samples are scored; ``None`` for a likelihood, which is the model's own whatever
        the sampler does, and for a sweep that searches beta, where each trial has its own.
    """
    if facts_of(config.task).likelihood:
        return None
    if params is None:
        return None if SEARCHED_BETA in config.sweep.space else float(config.sampler.beta)
    return plausible_beta(params.get(SEARCHED_BETA, config.sampler.beta))


def plausible_beta(value: Any) -> float | None:
    """Return a plausible inverse temperature; a summary may be untrusted."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
