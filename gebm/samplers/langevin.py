"""Langevin dynamics: overdamped (ULA), underdamped (KLA), and overdamped with a Metropolis correction (MALA)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.samplers.kernel import (
    GradientState,
    Potential,
    StepDecay,
    as_latents,
    counter,
    evaluate,
    require_positive,
    standard_normal_like,
    value_and_gradient,
)
from gebm.samplers.metropolis import MetropolisInfo, accept

__all__ = ["MALA", "KineticLangevin", "KineticState", "LangevinInfo", "UnadjustedLangevin"]


class LangevinInfo(NamedTuple):
    """What one unadjusted step tells.

    Attributes:
        potential: The potential (N,) evaluated in the step.
    """

    potential: Tensor


class KineticState(NamedTuple):
    """The state of kinetic Langevin dynamics.

    It carries no gradient: each step takes its one gradient at a midpoint that no other step visits.

    Attributes:
        z: Positions (N, D).
        velocity: Velocities (N, D).
        potential: Potential (N,) at the midpoint of the last step; at `z` before the first step.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    velocity: Tensor
    potential: Tensor
    step: Tensor


@dataclass(frozen=True)
class UnadjustedLangevin:
    """ULA, the unadjusted (overdamped) Langevin algorithm: `z' = z - h grad U(z) + sqrt(2h) xi`.

    Algorithm 2 of Arbel, Zhou and Gretton, ICLR 2021; with `beta = 1` it is the DDLS of Che et al., NeurIPS 2020.
    Its stationary law is off by an amount that shrinks in proportion to `h`: for a Gaussian target of precision `A`
    the covariance solves `S = (I - hA) S (I - hA)' + 2h I`. One gradient a step. Where the step is written with `h/2`
    and `sqrt(h)`, as in the paper's experiments, their `h` is twice the one here.

    Args:
        step_size: The step `h`, in squared units of `z`.
        schedule: What `h` is multiplied by as the chain proceeds; None keeps it.

    Raises:
        ValueError: If `step_size` is not positive.

    Example:
        >>> from gebm import samplers
        >>> kernel = UnadjustedLangevin(step_size=1e-2, schedule=samplers.StepDecay(factor=0.1, every=200))
        >>> samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10).z.shape
        torch.Size([4, 2])
    """

    step_size: float
    schedule: StepDecay | None = None

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def init(self, z: Tensor, potential: Potential) -> GradientState:
        """Builds the state of chains that start at `z` (N, D)."""
        z = as_latents(z)
        return GradientState(z, *value_and_gradient(potential, z), counter())

    @torch.no_grad()
    def step(
        self, state: GradientState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[GradientState, LangevinInfo]:
        """Takes one step downhill, with noise."""
        h = self.step_size * (self.schedule(state.step) if self.schedule else 1.0)
        z = state.z - h * state.gradient + math.sqrt(2 * h) * standard_normal_like(state.z, generator)
        value, gradient = value_and_gradient(potential, z)
        return GradientState(z, value, gradient, state.step + 1), LangevinInfo(value)


@dataclass(frozen=True)
class KineticLangevin:
    """KLA, kinetic (underdamped) Langevin dynamics of unit mass.

    Algorithm 3 of Arbel, Zhou and Gretton, ICLR 2021, the splitting of Sachs, Leimkuhler and Danos, Entropy 2017:
    half a drift to `z + h/2 v`; there half a kick, `v <- C v + sqrt(1 - C^2) xi` with `C = exp(-kappa h)`, and half a
    kick again; half a drift. Unadjusted, with a bias of order `h^2`; on a Gaussian target the velocities alone have it.
    One gradient a step, at the midpoint.

    Args:
        step_size: The step `h`, in units of time: of `z` over velocity.
        friction: The friction `kappa`, per unit of time.
        schedule: What `h` is multiplied by as the chain proceeds; None keeps it.
        initial_velocity: "zero", or "normal" for standard normal velocities, drawn in the first step.

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
    initial_velocity: str = "zero"

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)
        require_positive("friction", self.friction)
        if self.initial_velocity not in ("zero", "normal"):
            raise ValueError(f"initial_velocity must be 'zero' or 'normal', not {self.initial_velocity!r}")

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def init(self, z: Tensor, potential: Potential) -> KineticState:
        """Builds the state of chains that start at `z` (N, D)."""
        z = as_latents(z)
        return KineticState(z, torch.zeros_like(z), evaluate(potential, z), counter())

    @torch.no_grad()
    def step(
        self, state: KineticState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[KineticState, LangevinInfo]:
        """Takes one step of the splitting."""
        h = self.step_size * (self.schedule(state.step) if self.schedule else 1.0)
        damping = math.exp(-self.friction * h)
        v = state.velocity
        # init has no generator, so random velocities wait for the first step.
        if self.initial_velocity == "normal" and int(state.step) == 0:
            v = standard_normal_like(v, generator)
        middle = state.z + h / 2 * v
        value, gradient = value_and_gradient(potential, middle)
        v = v - h / 2 * gradient
        v = damping * v + math.sqrt(1 - damping**2) * standard_normal_like(v, generator)
        v = v - h / 2 * gradient
        return KineticState(middle + h / 2 * v, v, value, state.step + 1), LangevinInfo(value)


@dataclass(frozen=True)
class MALA:
    """MALA, the Metropolis-adjusted Langevin algorithm: a ULA proposal, accepted or rejected.

    Roberts and Tweedie, Bernoulli 1996. Exact: its stationary law is `exp(-U)`, whatever the step size. One gradient
    a step.

    Args:
        step_size: The step `h`, in squared units of `z`.

    Raises:
        ValueError: If `step_size` is not positive.

    Example:
        >>> from gebm import samplers
        >>> chain = samplers.run(MALA(step_size=0.1), lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10)
        >>> chain.infos.acceptance_probability.shape
        torch.Size([10, 4])
    """

    step_size: float

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def init(self, z: Tensor, potential: Potential) -> GradientState:
        """Builds the state of chains that start at `z` (N, D)."""
        z = as_latents(z)
        return GradientState(z, *value_and_gradient(potential, z), counter())

    @torch.no_grad()
    def step(
        self, state: GradientState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[GradientState, MetropolisInfo]:
        """Proposes a step of ULA and takes it or not."""
        h = self.step_size
        noise = standard_normal_like(state.z, generator)
        z = state.z - h * state.gradient + math.sqrt(2 * h) * noise
        value, gradient = value_and_gradient(potential, z)
        # The noise that would lead back, z = z' - h grad U(z') + sqrt(2h) back. Written in terms of the noise rather
        # than of z' - z, nothing cancels when h is small.
        back = math.sqrt(h / 2) * (state.gradient + gradient) - noise
        log_proposals = (noise.square().sum(1) - back.square().sum(1)) / 2
        accepted, probability = accept(state.potential - value + log_proposals, generator)
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        gradient = torch.where(accepted[:, None], gradient, state.gradient)
        return GradientState(z, value, gradient, state.step + 1), MetropolisInfo(value, accepted, probability)
