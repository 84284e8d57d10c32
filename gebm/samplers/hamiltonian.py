"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from gebm.inputs import as_count, as_number
from gebm.precision import arithmetic
from gebm.registry import Limits
from gebm.samplers.base import (
    GradientState,
    Potential,
    as_latents,
    convert_positive,
    counter,
    finite_rows,
    number_chains,
    value_and_gradient,
)
from gebm.samplers.metropolis import MetropolisInfo, accept, as_inverse_mass, scales
from gebm.samplers.philox import TRAJECTORY, draw_key, normal, uniform

__all__ = ["HMC"]


@dataclass(frozen=True)
class HMC:
    """HMC, Hamiltonian Monte Carlo: fresh velocities, leapfrog steps, then accepted or rejected.

    Neal, *MCMC using Hamiltonian dynamics*, 2011, with a diagonal mass. Exact: its stationary law is ``exp(-U)``,
    whatever the step size. ``num_leapfrog_steps`` gradients a step, since the one at the starting point is remembered.

    Args:
        step_size: The leapfrog step ``h``, in units of time: of ``z`` over velocity.
        num_leapfrog_steps: Number of leapfrog steps in a proposal.
        inverse_mass: Diagonal of the inverse mass matrix (D,), about the variances of the target, from any sequence
            or tensor; None is 1. Velocities have this variance.
        jitter: Share by which the step of a trajectory is longer or shorter than ``h``, at random and the same within
            it. A trajectory whose length is a multiple of half a period of the target comes back to where it was, or
            to its mirror image, and a fixed length does so for ever.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import samplers
        >>> kernel = HMC(step_size=0.2, num_leapfrog_steps=5)
        >>> samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(4, 2), 10).infos.accepted.shape
        torch.Size([10, 4])
    """

    step_size: float
    num_leapfrog_steps: Annotated[int, Limits(ge=1)] = 10
    inverse_mass: tuple[float, ...] | None = None
    jitter: Annotated[float, Limits(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        convert_positive(self, "step_size")
        object.__setattr__(self, "num_leapfrog_steps", as_count("num_leapfrog_steps", self.num_leapfrog_steps))
        object.__setattr__(self, "inverse_mass", as_inverse_mass(self.inverse_mass))
        object.__setattr__(self, "jitter", as_number("jitter", self.jitter))
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must lie in [0, 1), not {self.jitter!r}")

    @property
    def gradients_per_step(self) -> int:
        """As many as there are leapfrog steps."""
        return self.num_leapfrog_steps

    @property
    def target_acceptance(self) -> float:
        """Stan's, a little above the most efficient one of 0.651 (Beskos et al., Bernoulli 2013)."""
        return 0.8

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
        """Follow a trajectory and takes its end or not."""
        h, scale = self.step_size, scales(self.inverse_mass, state.z)
        key = draw_key(generator, state.z.device)
        start = normal(key, state.chain, state.z.shape[1], dtype=state.z.dtype)
        # The velocity over its own scale: kinetic energy and noise are then those of unit mass.
        z, velocity, value, gradient = state.z, start, state.potential, state.gradient
        if self.jitter:
            # One factor a chain, drawn before the trajectory and for both of its directions: it stays exact.
            drawn = uniform(key, state.chain, TRAJECTORY).to(state.z.dtype)[:, None]
            scale = scale * (1 + self.jitter * (2 * drawn - 1))
        for _ in range(self.num_leapfrog_steps):
            velocity = velocity - h / 2 * scale * gradient
            z = z + h * scale * velocity
            value, gradient = value_and_gradient(potential, z)
            velocity = velocity - h / 2 * scale * gradient
        log_velocities = (start.square().sum(1) - velocity.square().sum(1)) / 2
        log_ratio = state.potential - value + log_velocities
        accepted, decision = accept(log_ratio, finite_rows(z, value, gradient), uniform(key, state.chain))
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        gradient = torch.where(accepted[:, None], gradient, state.gradient)
        return GradientState(z, value, gradient, state.chain, state.step + 1), MetropolisInfo(
            value, accepted, *decision
        )
