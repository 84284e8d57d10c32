"""Zero-temperature descent."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm.samplers.base import (
    GradientState,
    Potential,
    StepDecay,
    as_latents,
    convert_positive,
    counter,
    number_chains,
    value_and_gradient,
)
from gebm.samplers.langevin import LangevinInfo, langevin_info

__all__ = ["GradientDescent"]


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent of the potential, ``z' = z - h grad U(z)``: ULA without its noise.

    It samples nothing; it shows what the noise of a Langevin chain adds (Arbel, Zhou and Gretton, ICLR 2021, section
    6). One gradient a step, no randomness.

    Args:
        step_size: The step ``h``, in squared units of ``z``.
        schedule: Factor of ``h`` as the chain proceeds; ``None`` keeps it constant.

    Raises:
        ValueError: If ``step_size`` is not positive.

    Example:
        >>> from gebm import samplers
        >>> samplers.run(GradientDescent(0.5), lambda z: z.square().sum(1) / 2, torch.ones(1, 2), 3).z
        tensor([[0.1250, 0.1250]])
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
        """Take one step downhill; the generator is not used."""
        h = self.step_size * (self.schedule(state.step) if self.schedule else 1.0)
        z = state.z - h * state.gradient
        value, gradient = value_and_gradient(potential, z)
        return GradientState(z, value, gradient, state.chain, state.step + 1), langevin_info(value, z, gradient)
