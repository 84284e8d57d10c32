"""Discriminator optimal transport in latent space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from gebm.registry import Limits
from gebm.samplers.base import (
    ChainwisePotential,
    Potential,
    Prior,
    as_latents,
    convert_positive,
    counter,
    evaluate,
    finite_rows,
    number_chains,
    potential_at,
    require_prior,
    value_and_gradient,
)
from gebm.samplers.philox import normal

__all__ = ["DiscriminatorOptimalTransport", "TransportInfo", "TransportState", "estimate_lipschitz"]

# The steepest of that many slopes hardly changes with the draw.
_REFERENCE_LATENTS = 256


class TransportInfo(NamedTuple):
    """Measurements of one step of the descent.

    Attributes:
        potential: Energy (N,) after the step, without the prior's part; not a number where the descent diverged.
        distance: Distance of each latent from its start (N,).
        diverged: Whether position, energy or gradient is not finite (N,), bool.
    """

    potential: Tensor
    distance: Tensor
    diverged: Tensor


class TransportState(NamedTuple):
    """The state of the descent.

    Attributes:
        z: Positions (N, D).
        potential: Energy at ``z`` (N,), without the prior's part.
        gradient: Gradient of that energy at ``z`` (N, D).
        start: Positions at which the latents started (N, D).
        lipschitz: The constant ``K``, 0-dimensional.
        chain: Numbers of the latents (N,), int64.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    gradient: Tensor
    start: Tensor
    lipschitz: Tensor
    chain: Tensor
    step: Tensor


def estimate_lipschitz(z: Tensor, energy: Tensor, energy_before: Tensor | None = None) -> Tensor:
    """Estimate a Lipschitz constant as the steepest slope of an energy between pairs of points.

    The pairs are neighboring rows, first and last included: independent draws make independent pairs. This
    is the estimate of Tanaka, *Discriminator optimal transport*, NeurIPS 2019. It bounds the true constant from below,
    which the method needs: with the true one no latent would move. Pairs with an energy that is not finite have no
    slope.

    Args:
        z: Points (N, D), N at least 2.
        energy: Energy at them (N,).
        energy_before: Energy at the point of the row before, by the function of this row (N,), where rows have other
            functions (default: that of the row before).

    Returns:
        The estimate, 0-dimensional and positive.

    Raises:
        ValueError: If there are fewer than two points, or no pair has a slope.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [3.0]])
        >>> estimate_lipschitz(z, 2 * z.squeeze(1))
        tensor(2.)
    """
    if len(z) < 2:
        raise ValueError(
            "a Lipschitz constant is estimated from at least two latents: give prior or lipschitz, or run more chains"
        )
    tiny = torch.finfo(z.dtype).tiny
    rise = (energy - (energy.roll(1) if energy_before is None else energy_before)).abs()
    slopes = rise / (z - z.roll(1, dims=0)).norm(dim=1).clamp_min(tiny)
    finite = slopes.isfinite()
    if not finite.any():
        raise ValueError(
            f"no Lipschitz constant is estimated from {len(z)} latents whose energies are not finite in pairs: give "
            "lipschitz, or check the energy there"
        )
    slopes = slopes.where(finite, 0.0)
    return slopes.max().clamp_min(tiny)


@dataclass(frozen=True)
class DiscriminatorOptimalTransport:
    """DOT in latent space: gradient descent of ``E(B(z)) / K + ||z - z_prior||`` from a draw ``z_prior`` of the prior.

    Tanaka, *Discriminator optimal transport*, NeurIPS 2019. ``K`` is a Lipschitz constant of ``z -> E(B(z))``. It moves
    each latent downhill as long as the energy gains more than the way costs; it is no Markov chain with a stationary
    law. At ``z = z_prior``, where the norm has no gradient, its part is zero. One gradient a step, no randomness.

    DOT descends the energy alone. Which potential it expects is therefore settled by ``prior``:

    - with ``prior``, the same potential as all other kernels, ``U(z) = -log eta(z) + beta E(B(z))``; the prior's part
      is taken off again, and what is descended is ``beta E(B(z))``;
    - without, the energy itself, ``z -> beta E(B(z))``.

    Where ``K`` is estimated, ``beta`` cancels. With ``prior`` it is estimated from latents of the prior that are the
    same in every run, so that it belongs to the model: a chain goes the same way alone as among others. Without
    ``prior`` there are only the latents that the run starts at, two at least, and ``K`` depends on which they are.
    Where chains keep classes, ``K`` is the steepest slope within a class.

    Args:
        step_size: Length scale of a step, in units of ``z``.
        lipschitz: The constant ``K`` of ``beta E(B(z))``; ``None`` has ``init`` estimate it.
        prior: The latent prior whose log-density the potential contains; ``None`` if it contains none.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import samplers
        >>> kernel = DiscriminatorOptimalTransport(step_size=0.1, lipschitz=0.5)
        >>> samplers.run(kernel, lambda z: z.sum(1), torch.zeros(1, 1), 1).z  # -0.1 * 1 / 0.5
        tensor([[-0.2000]])
    """

    step_size: float
    lipschitz: Annotated[float | None, Limits(gt=0)] = None
    prior: Prior | None = None

    def __post_init__(self) -> None:
        convert_positive(self, "step_size")
        if self.lipschitz is not None:
            convert_positive(self, "lipschitz")
        if self.prior is not None:
            require_prior(self.prior)

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def init(self, z: Tensor, potential: Potential) -> TransportState:
        """Build the state of latents that start at ``z`` (N, D), draws of the prior."""
        z = as_latents(z)
        energy, gradient = value_and_gradient(self._energy(potential), z)
        if self.lipschitz is not None:
            lipschitz = torch.full((), self.lipschitz, dtype=z.dtype, device=z.device)
        elif self.prior is not None:
            lipschitz = self._lipschitz_under(self.prior, z, potential)
        else:
            lipschitz = estimate_lipschitz(z, energy, self._energies_before(potential, z, len(z)))
        return TransportState(z, energy, gradient, z, lipschitz, number_chains(z), counter())

    def restart(self, state: TransportState, z: Tensor) -> TransportState:
        """Return the state of latents that restart at ``z`` (N, D), with the constant as it is."""
        infinite = torch.full_like(state.potential, math.inf)
        return state._replace(z=z, potential=infinite, gradient=torch.zeros_like(z), start=z)

    @torch.no_grad()
    def step(
        self, state: TransportState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[TransportState, TransportInfo]:
        """Take one step downhill; the generator is not used."""
        displacement = state.z - state.start
        length = displacement.norm(dim=1, keepdim=True)
        pull = torch.where(length > 0, displacement / length, 0.0)
        z = state.z - self.step_size * (state.gradient / state.lipschitz + pull)
        energy, gradient = value_and_gradient(self._energy(potential), z)
        diverged = ~finite_rows(z, energy, gradient)
        info = TransportInfo(energy.masked_fill(diverged, math.nan), (z - state.start).norm(dim=1), diverged)
        return TransportState(z, energy, gradient, state.start, state.lipschitz, state.chain, state.step + 1), info

    def _lipschitz_under(self, prior: Prior, z: Tensor, potential: Potential) -> Tensor:
        # No randomness of the chain's: like the nodes of a quadrature, these latents are a fixed part of the method.
        fixed = torch.zeros((), dtype=torch.int64, device=z.device)
        chain = torch.arange(_REFERENCE_LATENTS, device=z.device)
        noise = normal(fixed, chain, z.shape[1], dtype=z.dtype)
        latents = as_latents(prior.from_noise(noise)).to(z.dtype)
        if isinstance(potential, ChainwisePotential):
            potential = potential.independent(len(latents))
        # As many at once as there are chains, which the device has room for.
        energies = self._energies(potential, latents, len(z))
        return estimate_lipschitz(latents, energies, self._energies_before(potential, latents, len(z)))

    def _energies_before(self, potential: Potential, z: Tensor, batch_size: int) -> Tensor | None:
        """Return the energies at the latents of the rows before, or ``None`` where all rows have one function.

        With classes a neighbor's own energy would be that of another class, and the difference no slope of either.
        """
        if not isinstance(potential, ChainwisePotential) or not potential.differs:
            return None
        return self._energies(potential, z.roll(1, dims=0), batch_size)

    def _energies(self, potential: Potential, z: Tensor, batch_size: int) -> Tensor:
        rows = torch.arange(len(z), device=z.device).split(batch_size)
        return torch.cat([evaluate(self._energy(potential_at(potential, part)), z[part]) for part in rows])

    def _energy(self, potential: Potential) -> Potential:
        prior = self.prior
        if prior is None:
            return potential
        return lambda z: potential(z) + prior.log_prob(z)
