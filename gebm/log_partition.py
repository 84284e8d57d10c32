"""Estimators of the log-partition function ``A = log Z = log E_B[exp(-E)]``.

Monte Carlo over the base is enough where base and model overlap; annealed importance sampling goes from one to the
other in steps. Both are means of weights: unbiased for ``Z``, and by Jensen's inequality too low for ``A`` on average.
They are computed in float32 even inside an autocast region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gebm import samplers
from gebm.classes import ChainPotential
from gebm.freezing import frozen
from gebm.inputs import as_count, require_generator
from gebm.model import GEBM
from gebm.precision import arithmetic

__all__ = [
    "PartitionEstimate",
    "annealing_schedule",
    "initialize_log_partition",
    "log_partition_annealed",
    "log_partition_monte_carlo",
]


class PartitionEstimate(NamedTuple):
    """An estimate of the log-partition, and its uncertainty.

    Attributes:
        log_partition: The estimate, a scalar in nats, float64.
        standard_error: Its standard error, a scalar in nats, float64: that of the mean weight divided by the mean
            weight (delta method). Believe it only where it is well below one and the effective sample size is not
            small: weights that were never drawn are missing from both.
        effective_sample_size: As how many equal weights the weights count, ``(sum w)^2 / sum w^2`` (Kong 1992), a
            scalar from 1 to the number of samples, float64.
    """

    log_partition: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor

    @classmethod
    def of(cls, log_weights: Tensor) -> PartitionEstimate:
        """Return the log of the mean weight, and its uncertainty.

        Args:
            log_weights: Log-weights (N,), at least 2; of draws from the base these are minus their energies.

        Example:
            >>> PartitionEstimate.of(torch.full((4,), -2.0)).log_partition
            tensor(-2., dtype=torch.float64)
        """
        log_weights, n = log_weights.double(), len(log_weights)
        log_partition = log_weights.logsumexp(0) - math.log(n)
        weights = (log_weights - log_partition).exp()
        return cls(log_partition, weights.std() / math.sqrt(n), n**2 / weights.square().sum())


@arithmetic("float32")
@torch.no_grad()
def log_partition_monte_carlo(
    gebm: GEBM, num_samples: int, generator: torch.Generator | None = None, batch_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Estimate ``log Z`` by the mean of ``exp(-E)`` over the base.

    The estimate is consistent and, by Jensen's inequality, too low on average. Its standard error is that of the mean
    weight divided by the mean weight (delta method); believe it only where it is well below one.

    Args:
        gebm: The model.
        num_samples: Number of base samples, at least 2.
        generator: Source of every random number.
        batch_size: Number of samples that go through the networks at once.

    Returns:
        The estimate and its standard error, two scalars in nats, float64.

    Raises:
        ValueError: If there are fewer than two samples.

    Example:
        >>> from torch import nn
        >>> from gebm.priors import StandardNormal
        >>> class Constant(nn.Module):
        ...     def forward(self, x):
        ...         return torch.full((len(x),), 2.0)
        >>> log_partition_monte_carlo(GEBM(nn.Identity(), Constant(), StandardNormal(2)), 10)
        (tensor(-2., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    num_samples, batch_size = as_count("num_samples", num_samples, minimum=2), as_count("batch_size", batch_size)
    require_generator(generator)
    with frozen(gebm.base, gebm.energy), torch.autocast(gebm.log_partition.device.type, enabled=False):
        log_weights = torch.cat(
            [
                -gebm.energy(gebm.sample_base(min(batch_size, num_samples - start), generator))
                for start in range(0, num_samples, batch_size)
            ]
        ).double()
    estimate = PartitionEstimate.of(log_weights)
    return estimate.log_partition, estimate.standard_error


@torch.no_grad()
def initialize_log_partition(gebm: GEBM, num_samples: int, generator: torch.Generator | None = None) -> None:
    """Set ``c`` by Monte Carlo over the base, before training or after it with an objective that does not train ``c``.

    Args:
        gebm: The model, changed in place.
        num_samples: Number of base samples.
        generator: Source of every random number.

    Example:
        >>> from torch import nn
        >>> from gebm import StandardNormal
        >>> model = GEBM(nn.Identity(), nn.Linear(2, 1), StandardNormal(2))
        >>> _ = nn.init.zeros_(model.energy.network.weight), nn.init.ones_(model.energy.network.bias)
        >>> initialize_log_partition(model, 16)
        >>> model.log_partition.item()
        -1.0
    """
    estimate, _ = log_partition_monte_carlo(gebm, num_samples, generator)
    gebm.log_partition.copy_(estimate)


def annealing_schedule(num_temperatures: int, power: float = 2.0) -> list[float]:
    """Return inverse temperatures from the prior to the model, ``(k / K)^power`` for ``k = 1, ..., K``.

    Closer together near the prior, where energies vary most from draw to draw.

    Args:
        num_temperatures: ``K``.
        power: 1 spaces them evenly.

    Returns:
        Inverse temperatures, the last one 1.

    Raises:
        ValueError: If there is no temperature or the power is not positive.

    Example:
        >>> annealing_schedule(4)
        [0.0625, 0.25, 0.5625, 1.0]
    """
    if num_temperatures < 1 or not power > 0:
        raise ValueError(f"{num_temperatures} temperatures, power {power}: choose at least 1, and a positive power")
    return [((k + 1) / num_temperatures) ** power for k in range(num_temperatures)]


@arithmetic("float32")
@torch.no_grad()
def log_partition_annealed(
    gebm: GEBM,
    num_samples: int,
    kernel: samplers.Kernel,
    betas: Sequence[float] | None = None,
    num_steps: int = 1,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
) -> PartitionEstimate:
    """Estimate ``log Z`` by annealed importance sampling in latent space (Neal, Statistics and Computing 2001).

    Latents are drawn from the prior and moved through the distributions ``exp(-U_beta)``, ``U_beta(z) = -log eta(z) +
    beta E(B(z))``, from ``beta = 0``, whose constant is known, to ``beta = 1``, the model. A latent's weight is
    ``exp(-sum_k (beta_k - beta_{k-1}) E(B(z_{k-1})))``. The kernel has to leave each of them invariant, as
    :class:`~gebm.samplers.MALA`, :class:`~gebm.samplers.HMC` and other Metropolis kernels do, or the estimate is
    biased; it need not mix well, for then only the standard error grows. One temperature is plain Monte Carlo. A latent
    of infinite energy has a weight of zero.

    Tempering is refused: all its levels would start at a latent that is of the coldest level's distribution alone, and
    what they exchange with it is of none.

    Args:
        gebm: The model.
        num_samples: Number of latents, at least 2.
        kernel: An exact kernel of :mod:`gebm.samplers`.
        betas: Inverse temperatures, increasing, from above 0 to 1 (default: ``annealing_schedule(100)``).
        num_steps: Steps of the kernel at each temperature but the last.
        generator: Source of every random number.
        batch_size: Number of samples that go through the networks at once.

    Returns:
        The estimate, its standard error and the effective sample size.

    Raises:
        ValueError: If there are fewer than two samples, the temperatures do not lead from 0 to 1, or the kernel is
            :class:`~gebm.samplers.ParallelTempering`.

    Example:
        >>> from gebm import StandardNormal, networks
        >>> base, energy = networks.make("gaussian", resolution=0, channels=2, latent_dim=2, offset=0.5)
        >>> model = GEBM(base, energy, StandardNormal(2))
        >>> estimate = log_partition_annealed(model, 10, samplers.MALA(0.1), betas=[0.5, 1.0])
        >>> round(estimate.log_partition.item(), 3), round(estimate.effective_sample_size.item(), 3)
        (-0.5, 10.0)
    """
    num_samples, batch_size = as_count("num_samples", num_samples, minimum=2), as_count("batch_size", batch_size)
    require_generator(generator)
    num_steps = as_count("num_steps", num_steps)
    if isinstance(kernel, samplers.ParallelTempering):
        raise ValueError(
            "annealed importance sampling is biased with tempering, whose levels all start at one latent: give the "
            f"kernel of a level, {type(kernel.kernel).__name__}"
        )
    betas = [0.0, *(annealing_schedule(100) if betas is None else betas)]
    if betas[-1] != 1 or not all(colder > warmer for warmer, colder in pairwise(betas)):
        raise ValueError(f"inverse temperatures {betas[1:]}: they must increase from above 0 to 1")
    log_weights = []
    with frozen(gebm.base, gebm.energy), torch.autocast(gebm.log_partition.device.type, enabled=False):
        for start in range(0, num_samples, batch_size):
            z_ND = gebm.sample_latents(min(batch_size, num_samples - start), generator)
            z_ND = z_ND.to(samplers.wide(z_ND.dtype))
            log_weight_N = z_ND.new_zeros(len(z_ND), dtype=torch.float64)
            for warmer, colder in pairwise(betas):
                log_weight_N -= (colder - warmer) * gebm.energy(gebm.decode(z_ND)).double()
                # No weight depends on the positions after the last temperature.
                # A latent of infinite energy keeps its weight of zero wherever it goes, and no chain can start there.
                if colder < 1 and (moving := log_weight_N != -math.inf).any():
                    potential = ChainPotential(gebm, z_ND[moving], colder)
                    chain = samplers.run(kernel, potential, potential.z, num_steps, generator=generator)
                    z_ND[moving] = potential.join(chain.z)
            log_weights.append(log_weight_N)
    return PartitionEstimate.of(torch.cat(log_weights))
