"""A network and a sampler of one's own."""

import dataclasses
from typing import Annotated

import torch
from torch import nn

import gebm
from gebm import samplers
from gebm.samplers import philox
from gebm.samplers.base import GradientState, counter, number_chains
from gebm.samplers.langevin import LangevinInfo


@gebm.networks.register("smooth", tasks=("points",))
def smooth(channels: int, latent_dim: int, width: int = 32, *, depth: Annotated[int, gebm.Limits(ge=1, lt=9)] = 2):
    """Smooth layers for base and energy.

    Args:
        channels: Numbers in a sample.
        latent_dim: Numbers in a latent.
        width: Units of a hidden layer.
        depth: Hidden layers of each.
    """

    def layers(inputs: int, outputs: int) -> nn.Sequential:
        sizes = [inputs] + [width] * depth
        hidden = [layer for size in sizes[:-1] for layer in (nn.Linear(size, width), nn.SiLU())]
        return nn.Sequential(*hidden, nn.Linear(width, outputs))

    return layers(latent_dim, channels), layers(channels, 1)


@samplers.register("clipped", like="ula")
@dataclasses.dataclass(frozen=True)
class Clipped:
    """Langevin dynamics whose drift is bounded.

    Args:
        step_size: The step.
        longest: Bound of the gradient's norm.
    """

    step_size: float
    longest: Annotated[float, gebm.Limits(gt=0)] = 10.0

    @property
    def gradients_per_step(self) -> int:
        """One."""
        return 1

    def init(self, z, potential):
        """Return the state of chains that start at ``z``."""
        return GradientState(z, *samplers.value_and_gradient(potential, z), number_chains(z), counter())

    def step(self, state, potential, generator=None):
        """Take one step."""
        key = philox.draw_key(generator, state.z.device)
        noise = philox.normal(key, state.chain, state.z.shape[1])
        norm = state.gradient.norm(dim=1, keepdim=True)
        drift = state.gradient * (self.longest / norm.clamp_min(self.longest))
        z = state.z - self.step_size * drift + (2 * self.step_size) ** 0.5 * noise
        value, gradient = samplers.value_and_gradient(potential, z)
        state = state._replace(z=z, potential=value, gradient=gradient, step=state.step + 1)
        return state, LangevinInfo(value, ~(torch.isfinite(value) & torch.isfinite(gradient).all(1)))
