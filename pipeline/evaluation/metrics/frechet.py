"""Frechet distance between Gaussians that are fitted to features, computed where the data's statistics are."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.evaluation.metrics.reference_statistics import Reference

__all__ = ["frechet_distance", "moments"]

# Rows in float64 at a time.
_BATCH_SIZE = 4096


def frechet_distance(difference: Tensor, sigma: Tensor, reference: Reference) -> float:
    """Return ``|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2))``, Heusel et al., NeurIPS 2017.

    The product has the eigenvalues of the symmetric ``S'^(1/2) S S'^(1/2)``, whatever the ranks of the two.

    Args:
        difference: (F,) float64, ``mu - mu'``: mean of the samples minus mean of the data.
        sigma: (F, F) float64, covariance ``S`` of the samples.
        reference: Of the data, on the same device.

    Returns:
        The distance, at least zero but for rounding.

    Example:
        >>> one = torch.eye(2).double()
        >>> frechet_distance(torch.tensor([3.0, 4.0]).double(), 4 * one, Reference("any", 9, one[0], one, one))
        27.0
    """
    variances = torch.linalg.eigvalsh(reference.sigma_root @ sigma @ reference.sigma_root)
    roots = variances.clamp(min=0.0).sqrt().sum()
    return float(difference.square().sum() + sigma.trace() + reference.sigma.trace() - 2.0 * roots)


def moments(embedding: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean (F,) and covariance (F, F), with divisor N - 1, of features (N, F), in float64.

    Args:
        embedding: The features, on any device.
        device: Device of the result.

    Example:
        >>> moments(torch.tensor([[1.0], [3.0]]), torch.device("cpu"))
        (tensor([2.], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """
    count, dim = embedding.shape
    total = torch.zeros(dim, dtype=torch.float64, device=device)
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    for part in embedding.split(_BATCH_SIZE):
        total += part.to(device, torch.float64).sum(0)
    mean = total / count
    for part in embedding.split(_BATCH_SIZE):
        centered = part.to(device, torch.float64) - mean
        scatter += centered.T @ centered
    return mean, scatter / (count - 1)
