"""Standard errors of means, and of distances in one dimension, from the samples that are measured anyway."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["mean_standard_error", "wasserstein_standard_error"]


def mean_standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of independent numbers; not a number where there is only one.

    Args:
        values: The numbers (N,).

    Example:
        >>> mean_standard_error(torch.tensor([1.0, 3.0]))
        1.0
    """
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def wasserstein_standard_error(samples: Tensor, data: Tensor) -> float:
    """Return the standard error of the mean over columns of 1-Wasserstein distances between samples and fixed data.

    A sample's influence on the distance is its Kantorovich potential: the integral of ``sign(F - G)`` from the sample
    on, where ``F`` and ``G`` are the distribution functions of samples and data.

    Args:
        samples: (N, K), independent rows.
        data: (M, K).

    Example:
        >>> x = torch.linspace(0, 1, 101)[:, None]
        >>> round(wasserstein_standard_error(x, x + 5), 4), round(mean_standard_error(x[:, 0]), 4)
        (0.0292, 0.0292)
    """
    merged, order = torch.cat([samples, data]).double().sort(dim=0)
    masses = torch.cat([torch.full((len(samples),), 1 / len(samples)), torch.full((len(data),), -1 / len(data))])
    difference = masses.double()[order].cumsum(0)[:-1]
    # Rounding makes no difference of two equal functions.
    signs = torch.where(difference.abs() > 1e-12, difference.sign(), 0.0)
    beyond = (signs * merged.diff(dim=0)).flip(0).cumsum(0).flip(0)
    potentials = torch.zeros_like(merged).scatter(0, order[:-1], beyond)
    return mean_standard_error(potentials[: len(samples)].mean(1))
