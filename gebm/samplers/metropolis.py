"""Metropolis-Hastings: the accept-or-reject step, and the kernels that need energies only, no gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.samplers.kernel import (
    Potential,
    Prior,
    as_latents,
    counter,
    evaluate,
    require_positive,
    standard_normal_like,
)

__all__ = [
    "IndependentMetropolis",
    "IndependentState",
    "MetropolisInfo",
    "MetropolisState",
    "RandomWalkMetropolis",
    "accept",
]


class MetropolisInfo(NamedTuple):
    """What one accepted-or-rejected step tells.

    Attributes:
        potential: Potential after the step (N,).
        accepted: Whether the proposal was taken (N,), bool.
        acceptance_probability: With what probability it was to be taken (N,).
    """

    potential: Tensor
    accepted: Tensor
    acceptance_probability: Tensor


class MetropolisState(NamedTuple):
    """The state of a random walk.

    Attributes:
        z: Positions (N, D).
        potential: Potential at `z` (N,).
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    step: Tensor


class IndependentState(NamedTuple):
    """The state of an independence sampler.

    Attributes:
        z: Positions (N, D).
        potential: Potential at `z` (N,).
        log_prior: Log-density of the proposal at `z` (N,).
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    log_prior: Tensor
    step: Tensor


def accept(log_ratio: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Decides which proposals to take, with probability `min(1, exp(log_ratio))` each.

    A ratio that is not a number, as where a trajectory has diverged, is a rejection.

    Args:
        log_ratio: Log of the Metropolis-Hastings ratio (N,).
        generator: Source of the randomness.

    Returns:
        Decisions (N,), bool, and the probabilities (N,) they were drawn with.

    Example:
        >>> accepted, probability = accept(torch.tensor([1.0, float("-inf"), float("nan")]), None)
        >>> accepted.tolist(), probability.tolist()
        ([True, False, False], [1.0, 0.0, 0.0])
    """
    probability = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
    device = log_ratio.device if generator is None else generator.device
    uniform = torch.rand(log_ratio.shape, generator=generator, device=device).to(log_ratio.device)
    return uniform < probability, probability


@dataclass(frozen=True)
class RandomWalkMetropolis:
    """Random-walk Metropolis: a Gaussian proposal around the position, accepted or rejected (Metropolis et al. 1953).

    Exact: its stationary law is `exp(-U)`, whatever the step size. One potential a step, no gradient.

    Args:
        step_size: Standard deviation of the proposal, in the units of `z`.

    Raises:
        ValueError: If `step_size` is not positive.

    Example:
        >>> kernel = RandomWalkMetropolis(step_size=0.5)
        >>> potential = lambda z: z.square().sum(1) / 2
        >>> state, info = kernel.step(kernel.init(torch.zeros(4, 2), potential), potential)
        >>> state.z.shape, info.accepted.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    step_size: float

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)

    @property
    def gradients_per_step(self) -> int:
        """None: it needs energies only."""
        return 0

    def init(self, z: Tensor, potential: Potential) -> MetropolisState:
        """Builds the state of chains that start at `z` (N, D)."""
        z = as_latents(z)
        return MetropolisState(z, evaluate(potential, z), counter())

    @torch.no_grad()
    def step(
        self, state: MetropolisState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[MetropolisState, MetropolisInfo]:
        """Proposes a move and takes it or not."""
        z = state.z + self.step_size * standard_normal_like(state.z, generator)
        value = evaluate(potential, z)
        accepted, probability = accept(state.potential - value, generator)
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        return MetropolisState(z, value, state.step + 1), MetropolisInfo(value, accepted, probability)


@dataclass(frozen=True)
class IndependentMetropolis:
    """Independent Metropolis-Hastings with proposals from the latent prior.

    With `U = -log eta + beta E(B(z))` the prior cancels, and a proposal is taken with probability
    `min(1, exp(-beta (E' - E)))`: the sampler of Turner et al., *Metropolis-Hastings Generative Adversarial
    Networks*, ICML 2019. Exact. One potential a step, no gradient.

    Args:
        prior: The proposal `eta`, with `sample(n, generator=..., device=...)` and `log_prob(z)`.

    Raises:
        ValueError: If `prior` lacks one of these.

    Example:
        >>> class Normal:
        ...     def sample(self, n, generator=None, device=None):
        ...         return torch.randn(n, 2, generator=generator, device=device)
        ...
        ...     def log_prob(self, z):
        ...         return -z.square().sum(1) / 2
        >>> kernel = IndependentMetropolis(Normal())
        >>> potential = lambda z: z.square().sum(1) / 2
        >>> state, info = kernel.step(kernel.init(torch.zeros(4, 2), potential), potential)
        >>> info.acceptance_probability  # the target is the prior
        tensor([1., 1., 1., 1.])
    """

    prior: Prior

    def __post_init__(self) -> None:
        if not (hasattr(self.prior, "sample") and hasattr(self.prior, "log_prob")):
            raise ValueError(f"prior must have sample and log_prob; {type(self.prior).__name__} has not both")

    @property
    def gradients_per_step(self) -> int:
        """None: it needs energies only."""
        return 0

    @torch.no_grad()
    def init(self, z: Tensor, potential: Potential) -> IndependentState:
        """Builds the state of chains that start at `z` (N, D)."""
        z = as_latents(z)
        return IndependentState(z, evaluate(potential, z), self.prior.log_prob(z), counter())

    @torch.no_grad()
    def step(
        self, state: IndependentState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[IndependentState, MetropolisInfo]:
        """Proposes a draw of the prior and takes it or not."""
        device = state.z.device if generator is None else generator.device
        z = self.prior.sample(len(state.z), generator=generator, device=device).to(state.z)
        value, log_prior = evaluate(potential, z), self.prior.log_prob(z)
        accepted, probability = accept(state.potential + state.log_prior - value - log_prior, generator)
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        log_prior = torch.where(accepted, log_prior, state.log_prior)
        return IndependentState(z, value, log_prior, state.step + 1), MetropolisInfo(value, accepted, probability)
