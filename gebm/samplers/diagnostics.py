"""Diagnostics of Markov chains: acceptance, energy error, divergences, effective sample size, R-hat.

The statistics are arviz-stats' own; this module says which of them to look at, and lays out the tensors.
A step that diverged is counted, and never averaged in: potentials and energy errors that are not finite are left out of
means, and chains with positions that are not finite out of the statistics over chains.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gebm.samplers.base import Info

try:
    from arviz_stats.base.array import array_stats
except ImportError as error:
    raise ImportError("gebm.samplers.diagnostics needs the package arviz-stats: pip install arviz-stats") from error

__all__ = [
    "acceptance_rate",
    "divergences",
    "effective_sample_size",
    "energy_error",
    "mean_potential",
    "r_hat",
    "summary",
    "swap_acceptance",
]


def acceptance_rate(infos: Info) -> float | None:
    """Return the share of proposals that were accepted.

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


def mean_potential(infos: Info) -> float:
    """Return the mean potential over all steps and chains but those that diverged.

    Args:
        infos: Infos of a run, with entries (T, N).

    Returns:
        The mean, in nats; not a number if every step diverged.

    Example:
        >>> from gebm import samplers
        >>> cliff = lambda z: z.square().sum(1) / torch.where(z[:, 0] > 1, 0, 2)  # infinite beyond 1
        >>> chain = samplers.run(samplers.UnadjustedLangevin(0.5), cliff, torch.zeros(100, 2), 10)
        >>> mean_potential(chain.infos) < 2, divergences(chain.infos) > 0
        (True, True)
    """
    return _finite_mean(infos.potential)


def divergences(infos: Info) -> int:
    """Count the steps of all chains that met a position, a potential or a gradient that is not finite.

    Args:
        infos: Infos of a run, with entries (T, N).

    Returns:
        Their number, of T * N.
    """
    return int(infos.diverged.sum())


def energy_error(infos: Info) -> float | None:
    """Return the mean absolute energy error of the proposals, those that diverged left out.

    For HMC and MALA it is what the integrator gains or loses in total energy: near 0 the step size is too small, and
    far above 1 most proposals are rejected.

    Args:
        infos: Infos of a run, with entries (T, N).

    Returns:
        The mean, in nats; None for a kernel that accepts or rejects nothing.

    Example:
        >>> from gebm import samplers
        >>> kernel = samplers.HMC(step_size=1e-2, num_leapfrog_steps=2)
        >>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10)
        >>> 0 <= energy_error(chain.infos) < 1e-3
        True
    """
    error = getattr(infos, "energy_error", None)
    return None if error is None else _finite_mean(error.abs())


def swap_acceptance(infos: Info) -> Tensor | None:
    """Return the mean acceptance probability of the exchanges between neighboring levels of parallel tempering.

    Args:
        infos: Infos of a run, with ``swap_acceptance`` (T, N, L - 1).

    Returns:
        A rate for each pair of levels (L - 1,), float64; not a number where a pair never had its turn. None for a
        kernel without levels.

    Example:
        >>> from gebm import samplers
        >>> from gebm.priors import StandardNormal
        >>> kernel = samplers.ParallelTempering(samplers.MALA(0.1), StandardNormal(2), betas=(1.0, 0.5, 0.0))
        >>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10)
        >>> [round(rate, 3) for rate in swap_acceptance(chain.infos).tolist()]  # no energy: all levels sample the same
        [1.0, 1.0]
    """
    swaps = getattr(infos, "swap_acceptance", None)
    return None if swaps is None else swaps.double().flatten(0, 1).nanmean(0)


def effective_sample_size(positions: Tensor, method: str = "bulk") -> Tensor:
    """Return the effective sample size of each coordinate over parallel chains.

    Rank-normalized split ESS of Vehtari, Gelman, Simpson, Carpenter and Burkner, Bayesian Analysis 2021.

    Args:
        positions: Positions of the chains (T, N, D), T at least 4.
        method: "bulk", for estimates of a location, or "tail", the smaller of the 5 % and the 95 % quantiles'.

    Returns:
        Effective number of independent draws among the T * N, per coordinate (D,), float64; not a number where all
        draws are the same, as of one chain that never moved.

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
    draws = _draws(positions)
    ess = torch.as_tensor(array_stats.ess(draws, chain_axis=1, draw_axis=0, method=method, prob=prob))
    # Of draws that are the same to this resolution arviz takes all for independent.
    is_constant = torch.as_tensor(draws.max((0, 1)) - draws.min((0, 1))) < torch.finfo(torch.float64).resolution
    return ess.double().masked_fill(is_constant, math.nan)


def r_hat(positions: Tensor) -> Tensor:
    """Return the potential scale reduction factor of each coordinate over parallel chains.

    Rank-normalized split R-hat of Vehtari et al., Bayesian Analysis 2021; chains that have mixed are below 1.01.

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


def summary(
    positions: Tensor, infos: Info, *, gradients_per_step: int | None = None, seconds: float | None = None
) -> dict[str, float]:
    """Sum up a run of parallel chains in a few numbers, those of the worst coordinate where there is a choice.

    Args:
        positions: Positions along the chains (T, N, D), T at least 4; steps may be left out. Chains that are not finite
            somewhere are left out of the statistics over positions.
        infos: Infos of all the steps that led there, with entries (num_steps, N).
        gradients_per_step: The kernel's ``gradients_per_step``; None leaves out the ESS per gradient.
        seconds: How long all the chains took for these steps together; None leaves out the ESS per second.

    Returns:
        ``mean_potential``; ``divergences``, the number of steps that diverged; ``ess_bulk`` and ``ess_tail``, the
        smallest over coordinates, zero where no chain is finite or all draws of a coordinate are the same; with two
        chains or more ``r_hat``, the largest; of a kernel that accepts and rejects ``acceptance_rate`` and
        ``energy_error``, the mean absolute one; of tempering ``swap_acceptance``, of the pair of levels that exchanges
        least; ``ess_per_gradient``, the bulk ESS over the number of gradients all the chains took together, if there
        were any; ``ess_per_second``.

    Raises:
        ValueError: If the positions have another shape, or ``seconds`` is not positive.

    Example:
        >>> from gebm import samplers
        >>> kernel, seen = samplers.MALA(step_size=0.5), []
        >>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.randn(4, 2), 50, every=1,
        ...                      callback=lambda step, state: seen.append(state.z))
        >>> for name in summary(torch.stack(seen), chain.infos, gradients_per_step=1, seconds=0.1):
        ...     print(name)
        mean_potential
        divergences
        ess_bulk
        ess_tail
        r_hat
        acceptance_rate
        energy_error
        ess_per_gradient
        ess_per_second
    """
    _require_positions(positions)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, not {seconds}")
    result = {"mean_potential": mean_potential(infos), "divergences": float(divergences(infos))}
    positions = positions[:, positions.isfinite().all(2).all(0)]
    for method in ("bulk", "tail"):
        sizes = effective_sample_size(positions, method) if positions.shape[1] else torch.zeros(1)
        result[f"ess_{method}"] = float(sizes.nan_to_num(nan=0.0).min())
    if positions.shape[1] > 1:
        result["r_hat"] = float(r_hat(positions).max())
    swaps = swap_acceptance(infos)
    optional = {
        "acceptance_rate": acceptance_rate(infos),
        "energy_error": energy_error(infos),
        "swap_acceptance": None if swaps is None else float(swaps[swaps.isfinite()].min()),
    }
    result |= {name: value for name, value in optional.items() if value is not None}
    if gradients_per_step:
        result["ess_per_gradient"] = result["ess_bulk"] / (infos.potential.numel() * gradients_per_step)
    if seconds is not None:
        result["ess_per_second"] = result["ess_bulk"] / seconds
    return result


def _finite_mean(values: Tensor) -> float:
    finite = values[values.isfinite()].double()
    return float(finite.mean())


def _require_positions(positions: Tensor) -> None:
    if positions.ndim != 3 or len(positions) < 4:
        raise ValueError(f"positions must be of shape (T, N, D) with T at least 4, not {tuple(positions.shape)}")


def _draws(positions: Tensor) -> Any:
    """Return positions as a numpy array, whose type is not named here: this package does not import numpy."""
    _require_positions(positions)
    return positions.detach().to("cpu", torch.float64).numpy()
