"""FID of infinitely many samples, extrapolated from those that there are (Chong and Forsyth, CVPR 2020).

The bias of the FID is, to first order, proportional to one over the number of samples, by a factor that depends on the
model: a ranking of models by their FID of N samples is partly one by that factor. The intercept of a line through
FIDs of different numbers of samples has no such term.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.config.validation import FEWEST_FOR_FID_INFINITY
from pipeline.evaluation.metrics.frechet import frechet_distance, moments
from pipeline.evaluation.metrics.influence import fid_influence
from pipeline.evaluation.metrics.reference_statistics import Reference
from pipeline.runtime.errors import UserError

__all__ = ["fid_infinity", "require_samples"]

# Subsets on the line, of sizes from a tenth of the samples to all of them.
_SUBSETS = 15
_SEED = 0


def fid_infinity(embedding: Tensor, reference: Reference) -> tuple[float, float]:
    """Return the intercept of the line through FIDs of subsets over one over their sizes, and its standard error.

    Subsets are seeded, so the same samples have the same intercept. They share samples: the error weighs the influence
    of each sample on the intercept by how much of which subsets it is.

    Args:
        embedding: (N, F) features of the samples, in any order.
        reference: Of the data, by the same extractor.

    Raises:
        UserError: Too few samples.

    Example:
        >>> x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
        >>> data = Reference("any", 4000, torch.zeros(3).double(), torch.eye(3).double(), x)
        >>> value, error = fid_infinity(x + 1.0, data)
        >>> abs(value - 3.0) < 3 * error, error < 0.2
        (True, True)
    """
    count, dim = embedding.shape
    require_samples(count, dim)
    smallest = max(count // 10, dim + 1)
    sizes = torch.linspace(smallest, count, _SUBSETS).round().long().tolist()
    generator = torch.Generator().manual_seed(_SEED)
    weights, shares, values = _intercept_weights(sizes), torch.zeros(count, dtype=torch.float64), []
    for size, weight in zip(sizes, weights, strict=True):
        rows = torch.randperm(count, generator=generator)[:size]
        mu, sigma = moments(embedding[rows], reference.mu.device)
        values.append(frechet_distance(mu - reference.mu, sigma, reference))
        shares[rows] += weight / size
    influences = fid_influence(embedding, *moments(embedding, reference.mu.device), reference)
    error = float(influences.std()) * float(shares.square().sum().sqrt())
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True)), error


def require_samples(count: int, dim: int) -> None:
    """Refuse too few samples to extrapolate from.

    With no more samples than features a covariance is singular, and the bias another than that of the line.

    Args:
        count: Number of samples.
        dim: Number of features.

    Raises:
        UserError: There are too few.
    """
    least = max(FEWEST_FOR_FID_INFINITY, 2 * (dim + 1))
    if count < least:
        raise UserError(
            f"evaluation.fid_infinity needs {least} samples of {dim} features, and there are {count}: raise "
            "evaluation.num_samples and evaluation.final_samples, or leave it out"
        )


def _intercept_weights(sizes: list[int]) -> list[float]:
    """Return what each FID counts in the intercept at 1 / N = 0 of the least-squares line; they sum to one."""
    x = 1.0 / torch.tensor(sizes, dtype=torch.float64)
    centered = x - x.mean()
    return (1.0 / len(sizes) - x.mean() * centered / centered.square().sum()).tolist()
