"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.samplers.kernel import (
    GradientState,
    Potential,
    as_latents,
    counter,
    require_count,
    require_positive,
    standard_normal_like,
    value_and_gradient,
)
from gebm.samplers.metropolis import MetropolisInfo, accept

__all__ = ["HMC"]


@dataclass(frozen=True)
class HMC:
    """HMC, Hamiltonian Monte Carlo: fresh velocities, leapfrog steps, then accepted or rejected.

    Neal, *MCMC using Hamiltonian dynamics*, 2011, with unit mass. Exact: its stationary law is `exp(-U)`, whatever
    the step size. `num_leapfrog_steps` gradients a step, since the one at the starting point is remembered.

    Args:
        step_size: The leapfrog step `h`, in units of time: of `z` over velocity.
        num_leapfrog_steps: Number of leapfrog steps in a proposal.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import samplers
        >>> kernel = HMC(step_size=0.2, num_leapfrog_steps=5)
        >>> samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10).infos.accepted.shape
        torch.Size([10, 4])
    """

    step_size: float
    num_leapfrog_steps: int = 10

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)
        require_count("num_leapfrog_steps", self.num_leapfrog_steps)

    @property
    def gradients_per_step(self) -> int:
        """As many as there are leapfrog steps."""
        return self.num_leapfrog_steps

    def init(self, z: Tensor, potential: Potential) -> GradientState:
        """Builds the state of chains that start at `z` (N, D)."""
        z = as_latents(z)
        return GradientState(z, *value_and_gradient(potential, z), counter())

    @torch.no_grad()
    def step(
        self, state: GradientState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[GradientState, MetropolisInfo]:
        """Follows a trajectory and takes its end or not."""
        h = self.step_size
        start = standard_normal_like(state.z, generator)
        z, velocity, value, gradient = state.z, start, state.potential, state.gradient
        for _ in range(self.num_leapfrog_steps):
            velocity = velocity - h / 2 * gradient
            z = z + h * velocity
            value, gradient = value_and_gradient(potential, z)
            velocity = velocity - h / 2 * gradient
        log_velocities = (start.square().sum(1) - velocity.square().sum(1)) / 2
        accepted, probability = accept(state.potential - value + log_velocities, generator)
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        gradient = torch.where(accepted[:, None], gradient, state.gradient)
        return GradientState(z, value, gradient, state.step + 1), MetropolisInfo(value, accepted, probability)
