"""Toy data of a known base and a known energy, on a closed curve in three dimensions.

    base:    z ~ N(0, 1),  a = 2 pi Phi(z),  B(z) = (cos a, sin a, sin(2a) / 2)
    energy:  E(x) = 4 x_3, which is 2 sin(2a) on the curve
    model:   Q(dx) = exp(-E(x)) B(dx) / Z,  Z = I_0(2), the modified Bessel function of the first kind

The angle is uniform under the base, and has two modes under the model. The curve has no volume, so there is no density
in space, and a model that spreads over space cannot be right; the density relative to the base is exp(-E(x)) / Z, and
KL(Q || B) = 2 I_1(2) / I_0(2) - log I_0(2) = 0.57 nats.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.data.sources.base import Table, choose

__all__ = ["LATENT_DIM", "NUM_ROWS", "base", "energy", "log_partition", "sample", "table"]

LATENT_DIM = 1
NUM_ROWS = 10_000

# Of all points on the curve.
_LOWEST_ENERGY = -2.0
_SEED = 0


def table(url: str | None, split: str | None) -> Table:
    """Return 10,000 exact samples of the model, the same each time.

    Args:
        url: Ignored: the data are made here.
        split: None: there is one split only.

    Returns:
        The table, with 3 columns.

    Example:
        >>> table(None, None).rows.shape
        (10000, 3)
    """
    return Table("toy", None, choose(split, (), "toy"), sample(NUM_ROWS, _SEED).numpy())


def base(latents: torch.Tensor) -> torch.Tensor:
    """Map standard normal latents to the curve, which is the base.

    Args:
        latents: Shape (N, 1).

    Returns:
        Points on the curve (N, 3).

    Example:
        >>> base(torch.zeros(1, 1)).round(decimals=4).abs()
        tensor([[1., 0., 0.]])
    """
    angles = 2 * math.pi * torch.special.ndtr(latents[:, 0])
    return torch.stack([angles.cos(), angles.sin(), (2 * angles).sin() / 2], 1)


def energy(x: torch.Tensor) -> torch.Tensor:
    """Return the energy of points in space.

    Args:
        x: Shape (N, 3).

    Returns:
        Energies (N,).

    Example:
        >>> energy(torch.tensor([[0.7, 0.7, 0.5]]))
        tensor([2.])
    """
    return 4 * x[:, 2]


def log_partition() -> float:
    """Return the log-partition ``log E_B[exp(-E)] = log I_0(2)``, exact to rounding.

    Example:
        >>> round(log_partition(), 4)
        0.824
    """
    return float(torch.special.i0(torch.tensor(2.0, dtype=torch.float64)).log())


def sample(num_samples: int, seed: int) -> torch.Tensor:
    """Draw exact samples of the model by rejection: a sample of the base has probability ``exp(min E - E)``.

    Args:
        num_samples: Number of samples, N.
        seed: Seed, from 0 up. It determines the samples in every version of NumPy.

    Returns:
        Samples, float32 (N, 3).
    """
    # NumPy keeps the stream of ``RandomState``; those of torch and of ``Generator`` may change with a version.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    accepted, missing = [torch.empty(0, 3, dtype=torch.float64)], num_samples
    while missing > 0:
        x = base(torch.from_numpy(random.standard_normal((4096, LATENT_DIM))))
        probability = (_LOWEST_ENERGY - energy(x)).exp()
        accepted.append(x[torch.from_numpy(random.random_sample(len(x))) < probability])
        missing -= len(accepted[-1])
    return torch.cat(accepted)[:num_samples].float()
