"""Standard errors of scores, from the samples that are scored anyway: nothing is sampled again.

They are errors of the samples' draw; the data that samples are compared with are fixed. A score of independent samples
is, to first order in their number, the mean of its influence function over them (Hampel, 1974), so that its standard
error is the influence function's standard deviation over ``N^(1/2)``: the infinitesimal jackknife. It is about the
estimate's own mean at that N, and has nothing of its bias: of the FID, that is the larger of the two where N is small.

Where the samples' distribution is the data's, the first order vanishes; what is left of it is the estimate's second
order, and the error is too large there, by a factor of up to about 1.6, and never too small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.evaluation.metrics.reference_statistics import Reference
from pipeline.evaluation.metrics.subsets import evenly_spaced
from pipeline.evaluation.standard_error import mean_standard_error

__all__ = ["fid_influence", "fid_standard_error", "kid_standard_error"]

# Rows in float64 at a time.
_BATCH_SIZE = 4096
# Samples, and data, that the kernel means of KID's influence function are taken over.
_PARTNERS = 2_000


def fid_standard_error(embedding: Tensor, mu: Tensor, sigma: Tensor, reference: Reference) -> float:
    """Return the standard error of a Frechet distance.

    Args:
        embedding: (N, F) features of the samples.
        mu: (F,) float64, their mean.
        sigma: (F, F) float64, their covariance.
        reference: Of the data, by the same extractor, on their device.

    Example:
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> data = Reference("any", 1000, x.mean(0), x.T.cov(), x)
        >>> round(fid_standard_error(x + 2.0, x.mean(0) + 2.0, x.T.cov(), data), 2), round(4 * (3 / 1000) ** 0.5, 2)
        (0.22, 0.22)
    """
    return mean_standard_error(fid_influence(embedding, mu, sigma, reference))


def fid_influence(embedding: Tensor, mu: Tensor, sigma: Tensor, reference: Reference) -> Tensor:
    """Return the influence of each sample on a Frechet distance, but for a constant: (N,), in float64.

    The influence of a sample ``x`` is ``2 (mu - mu').(x - mu) + (x - mu)'(I - T)(x - mu) - tr((I - T) S)``, where ``T =
    S'^(1/2) (S'^(1/2) S S'^(1/2))^(-1/2) S'^(1/2)`` transports the one Gaussian to the other.

    Args:
        embedding: (N, F) features of the samples.
        mu: (F,) float64, their mean.
        sigma: (F, F) float64, their covariance.
        reference: Of the data, by the same extractor, on their device.
    """
    root = reference.sigma_root
    variances, axes = torch.linalg.eigh(root @ sigma @ root)
    # With fewer samples than features some are zero, but for rounding.
    floor = variances[-1].clamp(min=0.0) * len(variances) * torch.finfo(variances.dtype).eps
    inverse = torch.where(variances > floor, variances.clamp(min=1e-300).rsqrt(), 0.0)
    curvature = torch.eye(len(mu), dtype=mu.dtype, device=mu.device) - root @ (axes * inverse) @ axes.T @ root
    slope = 2.0 * (mu - reference.mu)
    influences = []
    for part in embedding.split(_BATCH_SIZE):
        centered = part.to(mu) - mu
        influences.append((centered @ slope + ((centered @ curvature) * centered).sum(1)).cpu())
    return torch.cat(influences)


def kid_standard_error(embedding: Tensor, reference: Reference, deviation: float, subsets: int) -> float:
    """Return the standard error of a KID that is the mean over random subsets.

    The influence of a sample ``x`` is twice the difference of the kernel's means ``E k(x, X) - E k(x, Y)`` over samples
    ``X`` and data ``Y``. The choice of the subsets adds its own variance.

    Args:
        embedding: (N, F) features of the samples.
        reference: Of the data, by the same extractor.
        deviation: Standard deviation over the subsets.
        subsets: Number of subsets.
    """
    rows = evenly_spaced(torch.arange(len(embedding)), _PARTNERS)
    samples, data = embedding[rows].double(), evenly_spaced(reference.features, _PARTNERS).double()
    sums = torch.cat([_kernel(part.double(), samples).sum(1) for part in embedding.split(_BATCH_SIZE)])
    counts = torch.full_like(sums, len(rows))
    # No sample is its own partner.
    sums[rows] -= ((samples * samples).mean(1) + 1.0) ** 3
    counts[rows] -= 1
    to_data = torch.cat([_kernel(part.double(), data).mean(1) for part in embedding.split(_BATCH_SIZE)])
    # The deviation has the divisor of a population.
    choice = deviation / math.sqrt(max(subsets - 1, 1))
    return math.hypot(mean_standard_error(2.0 * (sums / counts - to_data)), choice)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the polynomial kernel of KID (N, M), of degree three."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3
