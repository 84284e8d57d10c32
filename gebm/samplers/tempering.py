"""Parallel tempering between the prior and the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from gebm.precision import arithmetic
from gebm.samplers.base import (
    GradientState,
    Kernel,
    Potential,
    Prior,
    as_latents,
    constants,
    counter,
    evaluate,
    number_chains,
    potential_at,
    require_prior,
    value_and_gradient,
)
from gebm.samplers.hamiltonian import HMC
from gebm.samplers.langevin import MALA
from gebm.samplers.metropolis import MetropolisInfo, MetropolisState, RandomWalkMetropolis, accept
from gebm.samplers.philox import SWAP, draw_key, uniform

__all__ = ["ParallelTempering", "TemperingInfo", "TemperingState"]

_LADDER = (1.0, 0.5, 0.25, 0.1, 0.0)


class TemperingInfo(NamedTuple):
    """Measurements of one step; all but the last two of the coldest level.

    Attributes:
        potential: Potential after the step (N,).
        accepted: Whether the inner kernel's proposal was taken (N,), bool.
        acceptance_probability: Probability of taking it (N,).
        energy_error: Minus the log of the proposal's Metropolis-Hastings ratio (N,).
        diverged: Whether a level's proposal is not finite (N,), bool; it was rejected.
        swap_acceptance: Probability of exchanging the positions of levels l and l + 1 (N, L - 1); not a number for
            the pairs whose turn it was not.
    """

    potential: Tensor
    accepted: Tensor
    acceptance_probability: Tensor
    energy_error: Tensor
    diverged: Tensor
    swap_acceptance: Tensor


class TemperingState(NamedTuple):
    """The state of a ladder of chains.

    Prior and potential are remembered apart, since a position that changes its level is weighed anew.

    Attributes:
        z: Positions of the coldest level (N, D).
        potential: Potential at ``z`` (N,).
        positions: Positions of all levels (N, L, D).
        potentials: Potential ``U`` at all positions (N, L), not tempered.
        log_priors: Log-density of the prior at all positions (N, L).
        potential_gradients: Gradients of ``U`` (N, L, D); of ``U``'s and the prior's (N, L, 0) if the inner kernel
            needs none.
        prior_gradients: Gradients of minus the prior's log-density (N, L, D).
        chain: Numbers of the chains (N,), int64.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    positions: Tensor
    potentials: Tensor
    log_priors: Tensor
    potential_gradients: Tensor
    prior_gradients: Tensor
    chain: Tensor
    step: Tensor


@dataclass(frozen=True)
class ParallelTempering:
    """Parallel tempering: chains of several temperatures that exchange their positions, so that modes are left.

    Level ``b`` samples ``eta^(1 - b) exp(-b U)``, which for ``U = -log eta + beta E(B(z))`` is ``eta exp(-b beta
    E(B(z)))``: only the energy is tempered, and at ``b = 0`` nothing but the prior is left, where ``U`` is finite.
    After a step of the inner kernel on all levels, neighbors are offered to exchange their positions, in turn those of
    even and of odd levels; the exchange is accepted with probability ``min(1, exp((b - b') (E - E')))``. Geyer, *Markov
    chain Monte Carlo maximum likelihood*, 1991; even and odd in turn after Syed, Bouchard-Cote, Deligiannidis and
    Doucet, JRSS B 2022. Exact on every level.

    The potential is called on all levels together, (N L, D), and as often as the inner kernel calls it. A step takes
    two keys of the generator, the inner kernel's and one for the exchanges.

    Args:
        kernel: Kernel that moves a level: ``MALA``, ``HMC`` or ``RandomWalkMetropolis``, the same for all.
        prior: The latent prior ``eta``.
        betas: The ladder, from 1, the target, downwards; the last may be 0, the prior.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import samplers
        >>> from gebm.priors import StandardNormal
        >>> kernel = ParallelTempering(samplers.MALA(0.1), StandardNormal(2), betas=(1.0, 0.3, 0.0))
        >>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10)
        >>> chain.z.shape, chain.state.positions.shape, chain.infos.swap_acceptance.shape
        (torch.Size([4, 2]), torch.Size([4, 3, 2]), torch.Size([10, 4, 2]))
    """

    kernel: MALA | HMC | RandomWalkMetropolis
    prior: Prior
    betas: tuple[float, ...] = _LADDER

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, MALA | HMC | RandomWalkMetropolis):
            raise ValueError(
                f"tempering moves its levels by MALA, HMC or RandomWalkMetropolis, not {type(self.kernel).__name__}"
            )
        require_prior(self.prior)
        object.__setattr__(self, "betas", _as_ladder(self.betas))

    @property
    def gradients_per_step(self) -> int:
        """Those of the inner kernel on every level."""
        return len(self.betas) * self.kernel.gradients_per_step

    def step_kind(self, step: int) -> Hashable:
        """Return what a step depends on, of its number: which neighbors are offered to exchange."""
        return step % 2

    @arithmetic("float32")
    def init(self, z: Tensor, potential: Potential) -> TemperingState:
        """Build the state of ladders all of whose levels start at ``z`` (N, D)."""
        z = as_latents(z)
        if self._has_gradient:
            value, gradient = value_and_gradient(potential, z)
            log_prior, minus_prior_gradient = value_and_gradient(self.prior.log_prob, z)
        else:
            value, log_prior = evaluate(potential, z), evaluate(self.prior.log_prob, z)
            gradient = minus_prior_gradient = z[:, :0]
        parts = _Parts(z, value, log_prior, gradient, -minus_prior_gradient)
        levels = parts.map(lambda part: part[:, None].repeat(1, len(self.betas), *(1,) * (part.ndim - 1)))
        return _tempering_state(levels, number_chains(z), counter())

    @arithmetic("float32")
    @torch.no_grad()
    def step(
        self, state: TemperingState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[TemperingState, TemperingInfo]:
        """Move all levels by the inner kernel, then offers neighbors to exchange their positions."""
        n, levels, _ = state.positions.shape
        betas = constants(self.betas, state.z.dtype, state.z.device)
        # A level is a chain of its own: its noise comes from a number whose high half is the level.
        level_chains = state.chain[:, None] + (torch.arange(levels, device=state.z.device) << 32)
        level_potential = potential_at(potential, torch.arange(n, device=state.z.device).repeat_interleave(levels))
        tempered = _Tempered(level_potential, self.prior, betas.repeat(n))
        before = _Parts(*state[2:7]).map(lambda part: part.flatten(0, 1))
        # One kernel's step with that kernel's own state, a pair that a union of kernels does not show.
        kernel = cast(Kernel[Any], self.kernel)
        inner, info = kernel.step(
            self._inner_state(before, tempered, level_chains.flatten(), state.step), tempered, generator
        )
        assert isinstance(info, MetropolisInfo)
        parts = tempered.after(inner.z, info.accepted, before).map(lambda part: part.unflatten(0, (n, levels)))

        # Pairs (l, l + 1) with l of the step's parity.
        lower = torch.arange(int(state.step) % 2, levels - 1, 2, device=state.z.device)
        # What is tempered: U + log eta.
        energy = parts.potential + parts.log_prior
        log_ratio = (betas[lower] - betas[lower + 1]) * (energy[:, lower] - energy[:, lower + 1])
        key = draw_key(generator, state.z.device)
        numbers = uniform(key, level_chains[:, lower].flatten(), SWAP).view_as(log_ratio)
        swapped, decision = accept(log_ratio, log_ratio.isfinite(), numbers)
        source = torch.arange(levels, device=state.z.device).repeat(n, 1)
        source[:, lower] += swapped.long()
        source[:, lower + 1] -= swapped.long()
        row = torch.arange(n, device=state.z.device)[:, None]
        parts = parts.map(lambda part: part[row, source])

        swap_acceptance = torch.full((n, levels - 1), math.nan, dtype=state.z.dtype, device=state.z.device)
        swap_acceptance[:, lower] = decision.acceptance_probability
        new_state = _tempering_state(parts, state.chain, state.step + 1)
        accepted, probability, error, diverged = (entry.view(n, levels) for entry in info[1:])
        return new_state, TemperingInfo(
            new_state.potential, accepted[:, 0], probability[:, 0], error[:, 0], diverged.any(1), swap_acceptance
        )

    @property
    def _has_gradient(self) -> bool:
        return self.kernel.gradients_per_step > 0

    def _inner_state(
        self, parts: _Parts, tempered: _Tempered, chain: Tensor, step: Tensor
    ) -> GradientState | MetropolisState:
        z, value, log_prior, gradient, prior_gradient = parts
        # Infinite at any temperature, where nothing is known of the potential yet: zero times infinity is no number.
        mixed = tempered.mix(-log_prior, value).masked_fill(value == math.inf, math.inf)
        if self._has_gradient:
            return GradientState(z, mixed, tempered.mix(prior_gradient, gradient), chain, step)
        return MetropolisState(z, mixed, chain, step)


class _Parts(NamedTuple):
    """What is known of positions, prior and ``U`` apart: the third to the seventh entry of ``TemperingState``."""

    z: Tensor
    potential: Tensor
    log_prior: Tensor
    potential_gradient: Tensor
    prior_gradient: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> _Parts:
        """Apply a function to each of them."""
        return _Parts(*(function(part) for part in self))


def _tempering_state(parts: _Parts, chain: Tensor, step: Tensor) -> TemperingState:
    """Return the state of ladders from the parts of all levels (N, L, ...)."""
    return TemperingState(parts.z[:, 0].clone(), parts.potential[:, 0].clone(), *parts, chain, step)


class _Tempered:
    """The potential of all levels, which remembers prior and ``U`` of its last call apart, and their gradients.

    The inner kernels end a step with the call at the proposal, so that the last call is the one to remember. The
    gradients are picked up on autograd's way back: each of the two parts is weighed not at its value but where it
    meets ``z``, and leaves its own gradient there before it is weighed.
    """

    def __init__(self, potential: Potential, prior: Prior, betas: Tensor) -> None:
        self.potential, self.prior, self.betas = potential, prior, betas
        self.values: tuple[Tensor, ...] = ()
        self.gradients: dict[str, Tensor] = {}

    def __call__(self, z: Tensor) -> Tensor:
        minus_log_prior = -self.prior.log_prob(_Meet.apply(z, 1 - self.betas, self.gradients, "prior"))
        value = self.potential(_Meet.apply(z, self.betas, self.gradients, "potential"))
        self.values = value.detach().to(z.dtype), -minus_log_prior.detach().to(z.dtype)
        return _Mix.apply(minus_log_prior, value, self)

    def mix(self, prior: Tensor, potential: Tensor) -> Tensor:
        """Return the weighted sum (N L, ...) of the prior's part and ``U``'s."""
        betas = self.betas.view(-1, *(1,) * (potential.ndim - 1))
        return (1 - betas) * prior + betas * potential

    def after(self, z: Tensor, accepted: Tensor, before: _Parts) -> _Parts:
        """Return the parts at ``z``: those of the last call where it was accepted, and else those from before it."""
        # A kernel that needs no gradient has left none: the empty ones stay.
        potential_gradient = self.gradients.get("potential", before.potential_gradient)
        prior_gradient = self.gradients.get("prior", before.prior_gradient)
        merged = (
            torch.where(accepted.view(-1, *(1,) * (old.ndim - 1)), new, old)
            for new, old in zip((*self.values, potential_gradient, prior_gradient), before[1:], strict=True)
        )
        return _Parts(z, *merged)


class _Meet(torch.autograd.Function):
    """The identity, whose backward pass saves the gradient and then weighs it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, gradients: dict[str, Tensor], name: str) -> Tensor:
        ctx.weight, ctx.gradients, ctx.name = weight, gradients, name
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = grad_outputs
        ctx.gradients[ctx.name] = gradient.detach().to(ctx.weight.dtype)
        return ctx.weight[:, None] * gradient, None, None, None


class _Mix(torch.autograd.Function):
    """The weighted sum, whose backward pass leaves the weighing to ``_Meet``."""

    @staticmethod
    def forward(ctx: Any, prior: Tensor, potential: Tensor, tempered: _Tempered) -> Tensor:
        return tempered.mix(prior, potential)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, None]:
        (gradient,) = grad_outputs
        return gradient, gradient, None


def _as_ladder(betas: Sequence[float]) -> tuple[float, ...]:
    try:
        ladder = tuple(float(beta) for beta in betas)
    except (TypeError, ValueError):
        raise ValueError(f"betas must be a ladder of numbers from 1 downwards, not {betas!r}") from None
    falls = all(above > below for above, below in pairwise(ladder))
    if len(ladder) < 2 or ladder[0] != 1 or not falls or not ladder[-1] >= 0:
        raise ValueError(
            f"betas must be a ladder of at least two numbers that fall from 1 and stay at or above 0, not {ladder}"
        )
    return ladder
