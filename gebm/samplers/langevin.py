"""Langevin dynamics: overdamped (ULA), underdamped (KLA), and overdamped with a Metropolis correction (MALA)."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from gebm.precision import arithmetic
from gebm.registry import Limits
from gebm.samplers.base import (
    GradientState,
    Potential,
    StepDecay,
    as_latents,
    convert_positive,
    counter,
    evaluate,
    finite_rows,
    number_chains,
    value_and_gradient,
)
from gebm.samplers.metropolis import MetropolisInfo, accept, as_inverse_mass, scales
from gebm.samplers.philox import VELOCITY, draw_key, normal, uniform

__all__ = ["MALA", "KineticLangevin", "KineticState", "LangevinInfo", "UnadjustedLangevin", "langevin_info"]


class LangevinInfo(NamedTuple):
    """Measurements of one unadjusted step.

    Attributes:
        potential: The potential (N,) evaluated in the step; not a number where the chain diverged.
        diverged: Whether position, potential or gradient is not finite (N,), bool.
    """

    potential: Tensor
    diverged: Tensor


def langevin_info(potential: Tensor, *others: Tensor) -> LangevinInfo:
    """Return the infos of an unadjusted step, in which chains that have diverged are marked.

    Args:
        potential: The potential evaluated in the step (N,).
        *others: Other tensors that have to be finite (N, ...).

    Returns:
        The infos.

    Example:
        >>> langevin_info(torch.tensor([1.0, 2.0]), torch.tensor([[0.0], [float("inf")]]))
        LangevinInfo(potential=tensor([1., nan]), diverged=tensor([False,  True]))
    """
    diverged = ~finite_rows(potential, *others)
    return LangevinInfo(potential.masked_fill(diverged, math.nan), diverged)


class KineticState(NamedTuple):
    """The state of kinetic Langevin dynamics.

    It carries no gradient: each step takes its one gradient at a midpoint that no other step visits.

    Attributes:
        z: Positions (N, D).
        velocity: Velocities (N, D).
        potential: Potential (N,) at the midpoint of the last step; at ``z`` before the first step.
        chain: Numbers of the chains (N,), int64.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    velocity: Tensor
    potential: Tensor
    chain: Tensor
    step: Tensor


@dataclass(frozen=True)
class UnadjustedLangevin:
    """ULA, the unadjusted (overdamped) Langevin algorithm: ``z' = z - h grad U(z) + sqrt(2h) xi``.

    Algorithm 2 of Arbel, Zhou and Gretton, ICLR 2021; with ``beta = 1`` it is the DDLS of Che et al., NeurIPS 2020. Its
    stationary law is off by an amount that shrinks in proportion to ``h``: for a Gaussian target of precision ``A`` the
    covariance solves ``S = (I - hA) S (I - hA)' + 2h I``. One gradient a step. Where the step is written with ``h/2``
    and ``sqrt(h)``, as in the paper's experiments, their ``h`` is twice the one here.

    Args:
        step_size: The step ``h``, in squared units of ``z``.
        schedule: Factor of ``h`` as the chain proceeds; ``None`` keeps it constant.

    Raises:
        ValueError: If ``step_size`` is not positive.

    Example:
        >>> from gebm import samplers
        >>> kernel = UnadjustedLangevin(step_size=1e-2, schedule=samplers.StepDecay(factor=0.1, every=200))
        >>> samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10).z.shape
        torch.Size([4, 2])
    """

    step_size: float
    schedule: StepDecay | None = None

    def __post_init__(self) -> None:
        convert_positive(self, "step_size")

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def step_kind(self, step: int) -> Hashable:
        """Return what a step depends on, of its number: the factor of the step size."""
        return self.schedule(step) if self.schedule else 1.0

    def init(self, z: Tensor, potential: Potential) -> GradientState:
        """Build the state of chains that start at ``z`` (N, D)."""
        z = as_latents(z)
        return GradientState(z, *value_and_gradient(potential, z), number_chains(z), counter())

    @torch.no_grad()
    def step(
        self, state: GradientState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[GradientState, LangevinInfo]:
        """Take one step downhill, with noise."""
        h = self.step_size * (self.schedule(state.step) if self.schedule else 1.0)
        key = draw_key(generator, state.z.device)
        noise = normal(key, state.chain, state.z.shape[1], dtype=state.z.dtype)
        z = state.z - h * state.gradient + math.sqrt(2 * h) * noise
        value, gradient = value_and_gradient(potential, z)
        return GradientState(z, value, gradient, state.chain, state.step + 1), langevin_info(value, z, gradient)


@dataclass(frozen=True)
class KineticLangevin:
    """KLA, kinetic (underdamped) Langevin dynamics of unit mass.

    Algorithm 3 of Arbel, Zhou and Gretton, ICLR 2021, the splitting of Sachs, Leimkuhler and Danos, Entropy 2017:
    half a drift to ``z + h/2 v``; there half a kick, ``v <- C v + sqrt(1 - C^2) xi`` with ``C = exp(-kappa h)``, and
    half a kick again; half a drift. Unadjusted, with a bias of order ``h^2``; on a Gaussian target the velocities alone
    have it. One gradient a step, at the midpoint.

    Args:
        step_size: The step ``h``, in units of time: of ``z`` over velocity.
        friction: The friction ``kappa``, per unit of time.
        schedule: Factor of ``h`` as the chain proceeds; ``None`` keeps it constant. The paper's, of the squared step,
            is ``StepDecay(0.1 ** 0.5)`` here.
        initial_velocity: "zero", or "normal" for standard normal velocities, drawn in the first step. A chain that is
            restarted after a divergence starts from rest.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import samplers
        >>> kernel = KineticLangevin(step_size=0.1, friction=1.0, initial_velocity="normal")
        >>> samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10).state.velocity.shape
        torch.Size([4, 2])
    """

    step_size: float
    friction: float
    schedule: StepDecay | None = None
    initial_velocity: Annotated[str, Limits(choices=("zero", "normal"))] = "zero"

    def __post_init__(self) -> None:
        convert_positive(self, "step_size", "friction")
        if self.initial_velocity not in ("zero", "normal"):
            raise ValueError(f"initial_velocity must be 'zero' or 'normal', not {self.initial_velocity!r}")

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def step_kind(self, step: int) -> Hashable:
        """Return what a step depends on, of its number: the factor of the step size, and if velocities are drawn."""
        return (self.schedule(step) if self.schedule else 1.0), self.initial_velocity == "normal" and step == 0

    def init(self, z: Tensor, potential: Potential) -> KineticState:
        """Build the state of chains that start at ``z`` (N, D)."""
        z = as_latents(z)
        return KineticState(z, torch.zeros_like(z), evaluate(potential, z), number_chains(z), counter())

    def restart(self, state: KineticState, z: Tensor) -> KineticState:
        """Return the state of chains that restart at ``z`` (N, D), at rest."""
        infinite = torch.full_like(state.potential, math.inf)
        return state._replace(z=z, velocity=torch.zeros_like(z), potential=infinite)

    @torch.no_grad()
    def step(
        self, state: KineticState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[KineticState, LangevinInfo]:
        """Take one step of the splitting."""
        h = self.step_size * (self.schedule(state.step) if self.schedule else 1.0)
        damping = math.exp(-self.friction * h)
        key, dim = draw_key(generator, state.z.device), state.z.shape[1]
        v = state.velocity
        # init has no generator, so random velocities wait for the first step.
        if self.initial_velocity == "normal" and int(state.step) == 0:
            v = normal(key, state.chain, dim, VELOCITY, dtype=state.z.dtype)
        middle = state.z + h / 2 * v
        value, gradient = value_and_gradient(potential, middle)
        v = v - h / 2 * gradient
        v = damping * v + math.sqrt(1 - damping**2) * normal(key, state.chain, dim, dtype=state.z.dtype)
        v = v - h / 2 * gradient
        z = middle + h / 2 * v
        return KineticState(z, v, value, state.chain, state.step + 1), langevin_info(value, z, v)


@dataclass(frozen=True)
class MALA:
    """MALA, the Metropolis-adjusted Langevin algorithm: a ULA proposal, accepted or rejected.

    Roberts and Tweedie, Bernoulli 1996. Exact: its stationary law is ``exp(-U)``, whatever the step size. One gradient
    a step. With an inverse mass ``m``, the preconditioner, the proposal is ``z - h m grad U(z) + sqrt(2 h m) xi``.

    Args:
        step_size: The step ``h``, in squared units of ``z``; of variances of ``z`` where there is an ``inverse_mass``.
        inverse_mass: The diagonal ``m`` (D,), about the variances of the target, from any sequence or tensor; None is
            1.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import samplers
        >>> chain = samplers.run(MALA(step_size=0.1), lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10)
        >>> chain.infos.acceptance_probability.shape
        torch.Size([10, 4])
        >>> MALA(step_size=0.1, inverse_mass=torch.tensor([1.0, 4.0]))
        MALA(step_size=0.1, inverse_mass=(1.0, 4.0))
    """

    step_size: float
    inverse_mass: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        convert_positive(self, "step_size")
        object.__setattr__(self, "inverse_mass", as_inverse_mass(self.inverse_mass))

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    @property
    def target_acceptance(self) -> float:
        """The acceptance rate of the most efficient step in high dimension (Roberts and Rosenthal, JRSS B 1998)."""
        return 0.574

    @arithmetic("float32")
    def init(self, z: Tensor, potential: Potential) -> GradientState:
        """Build the state of chains that start at ``z`` (N, D)."""
        z = as_latents(z)
        return GradientState(z, *value_and_gradient(potential, z), number_chains(z), counter())

    @arithmetic("float32")
    @torch.no_grad()
    def step(
        self, state: GradientState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[GradientState, MetropolisInfo]:
        """Propose a step of ULA and takes it or not."""
        h, scale = self.step_size, scales(self.inverse_mass, state.z)
        key = draw_key(generator, state.z.device)
        noise = normal(key, state.chain, state.z.shape[1], dtype=state.z.dtype)
        z = state.z - h * scale**2 * state.gradient + math.sqrt(2 * h) * scale * noise
        value, gradient = value_and_gradient(potential, z)
        # The noise that would lead back, z = z' - h grad U(z') + sqrt(2h) back. Written in terms of the noise rather
        # than of z' - z, nothing cancels when h is small.
        back = math.sqrt(h / 2) * scale * (state.gradient + gradient) - noise
        log_proposals = (noise.square().sum(1) - back.square().sum(1)) / 2
        log_ratio = state.potential - value + log_proposals
        accepted, decision = accept(log_ratio, finite_rows(z, value, gradient), uniform(key, state.chain))
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        gradient = torch.where(accepted[:, None], gradient, state.gradient)
        return GradientState(z, value, gradient, state.chain, state.step + 1), MetropolisInfo(
            value, accepted, *decision
        )
