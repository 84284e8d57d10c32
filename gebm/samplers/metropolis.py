"""Metropolis-Hastings: the accept-or-reject step, and the kernels that need energies only, no gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gebm.precision import arithmetic
from gebm.samplers.base import (
    Potential,
    Prior,
    as_latents,
    constants,
    convert_positive,
    counter,
    evaluate,
    finite_rows,
    number_chains,
    require_prior,
)
from gebm.samplers.philox import draw_key, normal, uniform

__all__ = [
    "Decision",
    "IndependentMetropolis",
    "IndependentState",
    "MetropolisInfo",
    "MetropolisState",
    "RandomWalkMetropolis",
    "accept",
    "as_inverse_mass",
    "scales",
]


class MetropolisInfo(NamedTuple):
    """Measurements of one step that is accepted or rejected.

    Attributes:
        potential: Potential after the step (N,).
        accepted: Whether the proposal was taken (N,), bool.
        acceptance_probability: Probability of taking it (N,).
        energy_error: Minus the log of the Metropolis-Hastings ratio (N,): for HMC and MALA the error of the integrator
            in the total energy; infinite where the proposal diverged.
        diverged: Whether position, potential or gradient of the proposal is not finite (N,), bool; it was rejected.
    """

    potential: Tensor
    accepted: Tensor
    acceptance_probability: Tensor
    energy_error: Tensor
    diverged: Tensor


class MetropolisState(NamedTuple):
    """The state of a random walk.

    Attributes:
        z: Positions (N, D).
        potential: Potential at ``z`` (N,).
        chain: Numbers of the chains (N,), int64.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    chain: Tensor
    step: Tensor


class IndependentState(NamedTuple):
    """The state of an independence sampler.

    Attributes:
        z: Positions (N, D).
        potential: Potential at ``z`` (N,).
        log_prior: Log-density of the proposal at ``z`` (N,).
        chain: Numbers of the chains (N,), int64.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    log_prior: Tensor
    chain: Tensor
    step: Tensor


class Decision(NamedTuple):
    """Measurements of the decisions of ``accept``: the last three entries of ``MetropolisInfo``.

    Attributes:
        acceptance_probability: Probability of taking a proposal (N,).
        energy_error: Minus the log-ratio (N,).
        diverged: Whether the proposal is not finite (N,), bool.
    """

    acceptance_probability: Tensor
    energy_error: Tensor
    diverged: Tensor


def accept(log_ratio: Tensor, finite: Tensor, uniform: Tensor) -> tuple[Tensor, Decision]:
    """Decide which proposals to take, with probability ``min(1, exp(log_ratio))`` each.

    A proposal that is not finite, as where a trajectory has diverged, is rejected, and so is one whose ratio is not a
    number.

    Args:
        log_ratio: Log of the Metropolis-Hastings ratio (N,).
        finite: Whether the proposal's position, potential and gradient are finite (N,), bool.
        uniform: Uniform numbers in [0, 1) to decide by (N,).

    Returns:
        Decisions (N,), bool, and their measurements.

    Example:
        >>> ratio = torch.tensor([1.0, float("-inf"), float("nan"), float("inf")])
        >>> accepted, decision = accept(ratio, torch.tensor([True, True, True, False]), torch.full((4,), 0.5))
        >>> accepted.tolist(), decision.acceptance_probability.tolist()
        ([True, False, False, False], [1.0, 0.0, 0.0, 0.0])
    """
    log_ratio = log_ratio.masked_fill(~finite, -math.inf)
    probability = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
    return uniform < probability, Decision(probability, -log_ratio, ~finite)


def as_inverse_mass(values: Tensor | Sequence[float] | None) -> tuple[float, ...] | None:
    """Return the diagonal of an inverse mass matrix as plain numbers, which compare, print and save.

    Args:
        values: Positive numbers (D,), or None for unit mass.

    Returns:
        The same numbers.

    Raises:
        ValueError: If they are not a row of positive, finite numbers.

    Example:
        >>> as_inverse_mass(torch.tensor([0.5, 2.0]))
        (0.5, 2.0)
    """
    if values is None:
        return None
    numbers = values.tolist() if isinstance(values, Tensor) else values
    try:
        numbers = tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        kind = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"inverse_mass must be a diagonal (D,) of positive, finite numbers, not {kind}") from None
    if not numbers or not all(math.isfinite(number) and number > 0 for number in numbers):
        worst = min(numbers, key=lambda number: number if math.isfinite(number) else -math.inf, default=None)
        raise ValueError(f"inverse_mass must be a diagonal (D,) of positive, finite numbers, but one of it is {worst}")
    return numbers


def scales(inverse_mass: tuple[float, ...] | None, z: Tensor) -> Tensor | float:
    """Return the factors of a velocity of unit mass, coordinate by coordinate.

    Args:
        inverse_mass: Diagonal of the inverse mass matrix, or None for unit mass.
        z: Positions (N, D).

    Returns:
        Square roots of the diagonal (D,), of the type of ``z``; 1.0 for unit mass.

    Raises:
        ValueError: If the diagonal is not as long as a position.

    Example:
        >>> scales((4.0, 9.0), torch.zeros(5, 2))
        tensor([2., 3.])
    """
    if inverse_mass is None:
        return 1.0
    if len(inverse_mass) != z.shape[1]:
        raise ValueError(f"inverse_mass has {len(inverse_mass)} numbers: give one for each of the {z.shape[1]} latents")
    return constants(inverse_mass, z.dtype, z.device).sqrt()


@dataclass(frozen=True)
class RandomWalkMetropolis:
    """Random-walk Metropolis: a Gaussian proposal around the position, accepted or rejected (Metropolis et al. 1953).

    Exact: its stationary law is ``exp(-U)``, whatever the step size. One potential a step, no gradient.

    Args:
        step_size: Standard deviation of the proposal, in the units of ``z``.

    Raises:
        ValueError: If ``step_size`` is not positive.

    Example:
        >>> kernel = RandomWalkMetropolis(step_size=0.5)
        >>> potential = lambda z: z.square().sum(1) / 2
        >>> state, info = kernel.step(kernel.init(torch.zeros(4, 2), potential), potential)
        >>> state.z.shape, info.accepted.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    step_size: float

    def __post_init__(self) -> None:
        convert_positive(self, "step_size")

    @property
    def gradients_per_step(self) -> int:
        """None: it needs energies only."""
        return 0

    @property
    def target_acceptance(self) -> float:
        """The acceptance rate of the most efficient step in high dimension (Roberts, Gelman and Gilks, AAP 1997)."""
        return 0.234

    @arithmetic("float32")
    def init(self, z: Tensor, potential: Potential) -> MetropolisState:
        """Build the state of chains that start at ``z`` (N, D)."""
        z = as_latents(z)
        return MetropolisState(z, evaluate(potential, z), number_chains(z), counter())

    @arithmetic("float32")
    @torch.no_grad()
    def step(
        self, state: MetropolisState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[MetropolisState, MetropolisInfo]:
        """Propose a move and takes it or not."""
        key = draw_key(generator, state.z.device)
        z = state.z + self.step_size * normal(key, state.chain, state.z.shape[1], dtype=state.z.dtype)
        value = evaluate(potential, z)
        accepted, decision = accept(state.potential - value, finite_rows(z, value), uniform(key, state.chain))
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        return MetropolisState(z, value, state.chain, state.step + 1), MetropolisInfo(value, accepted, *decision)


@dataclass(frozen=True)
class IndependentMetropolis:
    """Independent Metropolis-Hastings with proposals from the latent prior.

    With ``U = -log eta + beta E(B(z))`` the prior cancels, and a proposal is taken with probability
    ``min(1, exp(-beta (E' - E)))``: the sampler of Turner et al., *Metropolis-Hastings Generative Adversarial
    Networks*, ICML 2019. Exact. One potential a step, no gradient.

    Args:
        prior: The proposal ``eta``, with ``from_noise(noise)`` and ``log_prob(z)``.

    Raises:
        ValueError: If ``prior`` lacks one of these.

    Example:
        >>> class Normal:
        ...     def from_noise(self, noise):
        ...         return noise
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
        require_prior(self.prior)

    @property
    def gradients_per_step(self) -> int:
        """None: it needs energies only."""
        return 0

    @arithmetic("float32")
    @torch.no_grad()
    def init(self, z: Tensor, potential: Potential) -> IndependentState:
        """Build the state of chains that start at ``z`` (N, D)."""
        z = as_latents(z)
        return IndependentState(z, evaluate(potential, z), self.prior.log_prob(z), number_chains(z), counter())

    @arithmetic("float32")
    @torch.no_grad()
    def step(
        self, state: IndependentState, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[IndependentState, MetropolisInfo]:
        """Propose a draw of the prior and takes it or not."""
        key = draw_key(generator, state.z.device)
        noise = normal(key, state.chain, state.z.shape[1], dtype=state.z.dtype)
        z = self.prior.from_noise(noise).to(state.z.dtype)
        value, log_prior = evaluate(potential, z), self.prior.log_prob(z)
        log_ratio = state.potential + state.log_prior - value - log_prior
        accepted, decision = accept(log_ratio, finite_rows(z, value, log_prior), uniform(key, state.chain))
        z = torch.where(accepted[:, None], z, state.z)
        value = torch.where(accepted, value, state.potential)
        log_prior = torch.where(accepted, log_prior, state.log_prior)
        state = IndependentState(z, value, log_prior, state.chain, state.step + 1)
        return state, MetropolisInfo(value, accepted, *decision)
