"""Estimators of the log-partition function ``log Z = log E_B[exp(-E)]``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gebm.model import GEBM, frozen

__all__ = ["log_partition_monte_carlo"]


@torch.no_grad()
def log_partition_monte_carlo(
    gebm: GEBM, num_samples: int, generator: torch.Generator | None = None, batch_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Estimate ``log Z`` by the mean of ``exp(-E)`` over the base.

    The estimate is consistent and, by Jensen's inequality, too low on average. Its standard error is that of the mean
    weight divided by the mean weight (delta method); believe it only where it is well below one.

    Args:
        gebm: The model.
        num_samples: How many base samples, at least 2.
        generator: Source of every random number.
        batch_size: How many go through the networks at once.

    Returns:
        The estimate and its standard error, two scalars in nats, float64.

    Raises:
        ValueError: If there are fewer than two samples.

    Example:
        >>> from torch import nn
        >>> from gebm.model import StandardNormal
        >>> class Constant(nn.Module):
        ...     def forward(self, x):
        ...         return torch.full((len(x),), 2.0)
        >>> log_partition_monte_carlo(GEBM(nn.Identity(), Constant(), StandardNormal(2)), 10)
        (tensor(-2., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    if num_samples < 2:
        raise ValueError(f"asked for {num_samples} samples: a standard error needs at least 2")
    with frozen(gebm.base, gebm.energy):
        log_weights = torch.cat(
            [
                -gebm.energy(gebm.sample_base(min(batch_size, num_samples - start), generator))
                for start in range(0, num_samples, batch_size)
            ]
        ).double()
    estimate = log_weights.logsumexp(0) - math.log(num_samples)
    relative_weights = (log_weights - estimate).exp()
    return estimate, relative_weights.std() / math.sqrt(num_samples)
