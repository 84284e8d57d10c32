"""Density and coverage (Naeem, Oh, Uh, Choi and Yoo, ICML 2020), precision and recall that one outlier cannot turn.

With data ``x_1 .. x_N``, samples ``y_1 .. y_M``, and the open ball ``B_i`` around ``x_i`` whose radius is the distance
to the ``k``-th nearest other datum,

    density  = 1 / (k M) sum_j sum_i 1[y_j in B_i]
    coverage = 1 / N sum_i 1[some y_j is in B_i]

Precision asks whether a sample is in any ball, and a datum far from all others has a ball that holds many; density
counts the balls. Recall asks which data are in the samples' balls, which outliers among the samples enlarge; coverage
has balls of the data alone. Samples from the distribution of the data have a density of one in expectation, which can
be more, and a coverage near ``1 - (N / (N + M))^k``, the largest that can be expected.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.standard_error import mean_standard_error

__all__ = ["NEIGHBORS", "DensityCoverage", "density_coverage"]

NEIGHBORS = 5
"""The k of the paper."""

# Data whose balls are compared with all samples at a time: 10,000 samples and as many data make 160 MB of distances.
_BATCH_SIZE = 1000
# Of a squared distance in float64, relative to the squared norms that it is a difference of.
_ROUNDING = 1e-13


class DensityCoverage(NamedTuple):
    """Scores of samples, with their standard errors.

    Args:
        density: The density, at least zero.
        coverage: The coverage, from zero to one.
        density_standard_error: Standard error of the density.
        coverage_standard_error: Standard error of the coverage.
    """

    density: float
    coverage: float
    density_standard_error: float
    coverage_standard_error: float


def density_coverage(samples: Tensor, data: Tensor, neighbors: int = NEIGHBORS) -> DensityCoverage:
    """Return density and coverage.

    The standard errors are of the samples' draw, with the data as they are. The density is a mean over the samples. The
    coverage is none, and the infinitesimal jackknife misses most of its variance, so its error is the jackknife's: the
    deviation of what leaving out a sample changes, which is the number of balls that it is alone in. In expectation it
    is not too small (Efron and Stein, 1981).

    Args:
        samples: (M, F) features of the samples.
        data: (N, F) features of the data, N above ``neighbors``.
        neighbors: The k-th nearest datum is on the surface of a ball.

    Example:
        >>> data = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
        >>> scores = density_coverage(torch.tensor([[0.5], [1.5]]), data, neighbors=1)
        >>> scores.density, scores.coverage
        (2.0, 0.75)
    """
    # Relative to their mean: far from it, small distances are lost to rounding.
    mean = data.double().mean(0)
    data, samples = data.double() - mean, samples.double() - mean
    of_data, of_samples = data.square().sum(1), samples.square().sum(1)
    balls, alone, covered = torch.zeros(len(samples)), torch.zeros(len(samples)), 0
    for centers, norms in zip(data.split(_BATCH_SIZE), of_data.split(_BATCH_SIZE), strict=True):
        radii = _squared_distances(centers, norms, data, of_data).kthvalue(neighbors + 1, dim=1).values
        # A sample on the surface is outside, also where rounding has moved it.
        slack = _ROUNDING * (norms[:, None] + of_samples)
        inside = _squared_distances(centers, norms, samples, of_samples) < radii[:, None] - slack
        counts = inside.sum(1)
        balls += inside.sum(0)
        alone += inside[counts == 1].sum(0)
        covered += int((counts > 0).sum())
    lost, count = alone.double() / len(data), len(samples)
    spread = float((lost - lost.mean()).square().sum()) * (count - 1) / count
    per_sample = balls.double() / neighbors
    return DensityCoverage(
        density=float(per_sample.mean()),
        coverage=covered / len(data),
        density_standard_error=mean_standard_error(per_sample),
        coverage_standard_error=math.sqrt(spread) if count > 1 else math.nan,
    )


def _squared_distances(x: Tensor, x_norms: Tensor, y: Tensor, y_norms: Tensor) -> Tensor:
    """Return the squared distances (N, M) of rows whose squared norms are known."""
    return torch.addmm(x_norms[:, None] + y_norms, x, y.T, alpha=-2.0)
