"""Diagnostics of Markov chains: acceptance rate, effective sample size, R-hat.

The statistics are arviz-stats' own; this module says which of them to look at, and lays out the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gebm.samplers.kernel import Info

try:
    from arviz_stats.base import array_stats
except ImportError as error:
    raise ImportError("gebm.diagnostics needs the package arviz-stats: pip install arviz-stats") from error

__all__ = ["acceptance_rate", "effective_sample_size", "r_hat", "summary"]


def acceptance_rate(infos: Info) -> float | None:
    """Gives the share of proposals that were accepted.

    Args:
        infos: Infos of a run, with entries (T, N).

    Returns:
        The rate over all steps and chains; None for a kernel that accepts or rejects nothing.

    Example:
        >>> from gebm import samplers
        >>> kernel = samplers.HMC(step_size=1e-3, num_leapfrog_steps=2)
        >>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10)
        >>> round(acceptance_rate(chain.infos), 2)
        1.0
    """
    accepted = getattr(infos, "accepted", None)
    return None if accepted is None else float(accepted.double().mean())


def effective_sample_size(positions: Tensor, method: str = "bulk") -> Tensor:
    """Gives the effective sample size of each coordinate over parallel chains.

    Rank-normalised split ESS of Vehtari, Gelman, Simpson, Carpenter and Burkner, Bayesian Analysis 2021.

    Args:
        positions: Positions of the chains (T, N, D), T at least 4.
        method: "bulk", for estimates of a location, or "tail", the smaller of the 5 % and the 95 % quantiles'.

    Returns:
        Effective number of independent draws among the T * N, per coordinate (D,), float64.

    Raises:
        ValueError: If the positions have another shape or the method is unknown.

    Example:
        >>> draws = torch.randn(500, 4, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((effective_sample_size(draws) > 1500).all())
        True
    """
    if method not in ("bulk", "tail"):
        raise ValueError(f"method must be 'bulk' or 'tail', not {method!r}")
    prob = (0.05, 0.95) if method == "tail" else None
    ess = array_stats.ess(_draws(positions), chain_axis=1, draw_axis=0, method=method, prob=prob)
    return torch.as_tensor(ess, dtype=torch.float64)


def r_hat(positions: Tensor) -> Tensor:
    """Gives the potential scale reduction factor of each coordinate over parallel chains.

    Rank-normalised split R-hat of Vehtari et al., Bayesian Analysis 2021; chains that have mixed are below 1.01.

    Args:
        positions: Positions of the chains (T, N, D), T at least 4, N at least 2.

    Returns:
        R-hat per coordinate (D,), float64.

    Raises:
        ValueError: If the positions have another shape.

    Example:
        >>> draws = torch.randn(500, 4, 2, generator=torch.Generator().manual_seed(0))
        >>> bool((r_hat(draws) < 1.01).all())
        True
    """
    if positions.ndim == 3 and positions.shape[1] < 2:
        raise ValueError("R-hat compares chains: run at least two")
    return torch.as_tensor(array_stats.rhat(_draws(positions), chain_axis=1, draw_axis=0), dtype=torch.float64)


def summary(positions: Tensor, infos: Info, *, gradients_per_step: int | None = None) -> dict[str, float]:
    """Sums up a run of parallel chains in a few numbers, those of the worst coordinate where there is a choice.

    Args:
        positions: Positions along the chains (T, N, D), T at least 4; steps may be left out.
        infos: Infos of all the steps that led there, with entries (num_steps, N).
        gradients_per_step: The kernel's `gradients_per_step`; None leaves out the ESS per gradient.

    Returns:
        `mean_potential`; `ess_bulk` and `ess_tail`, the smallest over coordinates; with two chains or more `r_hat`, the
        largest; `acceptance_rate` if the kernel has one; `ess_per_gradient`, the bulk ESS over the number of gradients
        all the chains took together, if there were any.

    Raises:
        ValueError: If the positions have another shape.

    Example:
        >>> from gebm import samplers
        >>> kernel, seen = samplers.MALA(step_size=0.5), []
        >>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.randn(4, 2), 50, every=1,
        ...                      callback=lambda step, state: seen.append(state.z))
        >>> sorted(summary(torch.stack(seen), chain.infos, gradients_per_step=kernel.gradients_per_step))
        ['acceptance_rate', 'ess_bulk', 'ess_per_gradient', 'ess_tail', 'mean_potential', 'r_hat']
    """
    result = {
        "mean_potential": float(infos.potential.double().mean()),
        "ess_bulk": float(effective_sample_size(positions, "bulk").min()),
        "ess_tail": float(effective_sample_size(positions, "tail").min()),
    }
    if positions.shape[1] > 1:
        result["r_hat"] = float(r_hat(positions).max())
    rate = acceptance_rate(infos)
    if rate is not None:
        result["acceptance_rate"] = rate
    if gradients_per_step:
        result["ess_per_gradient"] = result["ess_bulk"] / (infos.potential.numel() * gradients_per_step)
    return result


def _draws(positions: Tensor) -> Any:  # a numpy array: this package does not import numpy
    if positions.ndim != 3 or len(positions) < 4:
        raise ValueError(f"positions must be of shape (T, N, D) with T at least 4, not {tuple(positions.shape)}")
    return positions.detach().to("cpu", torch.float64).numpy()
