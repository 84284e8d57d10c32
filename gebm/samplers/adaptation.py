"""Warm-up: adaptation of the step size and the mass matrix to the target while chains run towards it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from gebm.inputs import as_count
from gebm.samplers.base import Info, Kernel, Potential, State
from gebm.samplers.runner import run

__all__ = ["DualAveraging", "History", "Variance", "WarmUp", "variance_windows", "warm_up"]


class History(NamedTuple):
    """Measurements of a warm-up, a row a step, on the CPU.

    Attributes:
        step_size: The step size of the step (num_steps,), float64.
        acceptance: Mean acceptance probability of the chains in it (num_steps,), float64.
        potential: Mean potential of the chains after it (num_steps,), float64.
    """

    step_size: Tensor
    acceptance: Tensor
    potential: Tensor


class WarmUp(NamedTuple):
    """Result of a warm-up.

    Attributes:
        kernel: The kernel with its step size and inverse mass adapted.
        state: State of the chains; pass it to ``run`` with the kernel.
        history: Measurements of its steps.
        r_hat: R-hat of each coordinate over the second half of the steps (D,), float64; not a number after too few
            steps.
        converged: Whether no R-hat is above 1.1. Where it is false the chains have not mixed yet, whatever their
            acceptance: use more steps.
    """

    kernel: Any
    state: State
    history: History
    r_hat: Tensor
    converged: bool


@dataclass(frozen=True)
class DualAveraging:
    """Dual averaging of a step size towards a target acceptance rate.

    Algorithm 5 of Hoffman and Gelman, *The No-U-Turn sampler*, JMLR 2014, after Nesterov 2009, with their constants.

    Args:
        center: The logarithm that the step size is drawn to, ``mu``.
        target: The acceptance rate to reach, ``delta``.
        log_step: Logarithm of the step size to use next.
        log_average: Logarithm of the averaged step size, which is to be kept in the end.
        error: Average shortfall of acceptance so far.
        count: Number of updates so far.

    Example:
        >>> averaging = DualAveraging.start(1.0, target=0.8)
        >>> for _ in range(1000):  # a sampler that accepts exp(-step)
        ...     averaging = averaging.update(math.exp(-averaging.step_size))
        >>> abs(math.exp(-averaging.average) - 0.8) < 0.01
        True
    """

    center: float
    target: float
    log_step: float
    log_average: float = 0.0
    error: float = 0.0
    count: int = 0

    @classmethod
    def start(cls, step_size: float, target: float) -> DualAveraging:
        """Start from a step size; towards ten times as much, since large steps are the cheap ones to try."""
        return cls(center=math.log(10 * step_size), target=target, log_step=math.log(step_size))

    @property
    def step_size(self) -> float:
        """The step size to use next."""
        return math.exp(self.log_step)

    @property
    def average(self) -> float:
        """The step size to keep; that to use next where there was no update."""
        return math.exp(self.log_average) if self.count else self.step_size

    def update(self, acceptance: float) -> DualAveraging:
        """Learn from the acceptance rate that the step size had."""
        gamma, delay, kappa = 0.05, 10, 0.75
        count = self.count + 1
        weight = 1 / (count + delay)
        error = (1 - weight) * self.error + weight * (self.target - acceptance)
        # Within e^-30 and e^30 of the center: a potential that accepts everything would let it overflow.
        log_step = self.center + max(-30.0, min(30.0, -math.sqrt(count) / gamma * error))
        share = count**-kappa
        log_average = share * log_step + (1 - share) * self.log_average
        return replace(self, log_step=log_step, log_average=log_average, error=error, count=count)


class Variance(NamedTuple):
    """Running variances of coordinates, after Welford 1962, many draws at a time (Chan, Golub and LeVeque 1983).

    Attributes:
        num_draws: Number of draws.
        mean: Their mean (D,), float64.
        squares: Sum of their squared deviations from it (D,), float64.

    Example:
        >>> draws = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> parts = Variance.start(draws).update(draws[:30]).update(draws[30:])
        >>> torch.allclose(parts.squares / 99, draws.var(0))
        True
    """

    num_draws: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def start(cls, z: Tensor) -> Variance:
        """Start with no draws, of the dimension and on the device of ``z`` (N, D)."""
        return cls(0, *(torch.zeros(z.shape[1], dtype=torch.float64, device=z.device) for _ in range(2)))

    def update(self, z: Tensor) -> Variance:
        """Take in draws (N, D)."""
        z = z.to(torch.float64)
        num_draws, mean = self.num_draws + len(z), z.mean(0)
        shift = mean - self.mean
        squares = self.squares + (z - mean).square().sum(0) + shift.square() * (self.num_draws * len(z) / num_draws)
        return Variance(num_draws, self.mean + shift * (len(z) / num_draws), squares)

    def regularize(self) -> Tensor:
        """Return the variances (D,), shrunk a little towards 1e-3 where there are few draws, as Stan does."""
        n = self.num_draws
        return (self.squares / max(1, n - 1) * n + 1e-3 * 5) / (n + 5)


# Above it chains still differ by where they came from. The usual limit since Brooks and Gelman (1998), and a loose one,
# for chains that are yet to run.
_LARGEST_R_HAT = 1.1
# About so many positions, at most twice as many, of so many chains say as much, and fit into memory.
_NUM_POSITIONS, _MAX_CHAINS = 100, 256


class _Tail:
    """Positions of the second half of a warm-up, evenly spaced, on the CPU."""

    def __init__(self, num_steps: int) -> None:
        # Before the steps: the one place of the samplers that needs a package besides torch.
        from gebm.samplers.diagnostics import r_hat

        self._r_hat = r_hat
        self._first = num_steps // 2
        self._every = max(1, (num_steps - self._first) // _NUM_POSITIONS)
        self._positions: list[Tensor] = []

    def add(self, step: int, z: Tensor) -> None:
        """Keep the positions (N, D) after a step, if it is one of those."""
        if step >= self._first and (step - self._first) % self._every == 0:
            self._positions.append(z[:_MAX_CHAINS].cpu())

    def r_hat(self, dim: int) -> Tensor:
        """Return R-hat of each coordinate (D,); of a single chain, that of its two halves."""
        if len(self._positions) < 4:
            return torch.full((dim,), math.nan, dtype=torch.float64)
        positions = torch.stack(self._positions)
        if positions.shape[1] == 1:
            half = len(positions) // 2
            positions = torch.cat([positions[:half], positions[half : 2 * half]], 1)
        if len(positions) < 4:
            return torch.full((dim,), math.nan, dtype=torch.float64)
        return self._r_hat(positions)


def variance_windows(num_steps: int) -> tuple[int, list[int]]:
    """Return the windows of steps in which variances are estimated, as in Stan's warm-up.

    75 steps to get near the target; windows of 25, 50, 100, ... steps, each of which forgets what came before; and 50
    steps in which the step size settles on the last window's masses. Where there are fewer than 150 steps, 15 % of
    them, one window, and 10 %; where fewer than 20, no window at all.

    Args:
        num_steps: Steps of the warm-up.

    Returns:
        The step at which the first window begins, and those at which the windows end.

    Example:
        >>> variance_windows(1000), variance_windows(100), variance_windows(10)
        ((75, [100, 150, 250, 450, 950]), (15, [90]), (10, []))
    """
    if num_steps < 20:
        return num_steps, []
    if num_steps < 150:
        return int(0.15 * num_steps), [num_steps - int(0.1 * num_steps)]
    begin, size, last, ends = 75, 25, num_steps - 50, []
    start = begin
    while start < last:
        # A window takes in the rest where no window of twice its size would fit after it.
        end = start + size if start + 3 * size <= last else last
        ends.append(end)
        start, size = end, 2 * size
    return begin, ends


@torch.no_grad()
def warm_up(
    kernel: Kernel[Any],
    potential: Potential,
    z0: Tensor,
    num_steps: int,
    target_acceptance: float | None = None,
    *,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
) -> WarmUp:
    """Run chains and adapt the kernel's step size and masses to what they meet.

    The step size by dual averaging (Hoffman and Gelman, JMLR 2014), and where the kernel has an ``inverse_mass``, that
    by the variances of the chains in windows of growing length (Stan Reference Manual, chapter on HMC). All the chains
    teach one kernel: in the warm-up, and only here, a chain depends on the others. The chain that follows, with
    the kernel held fixed, is exact; throw away what went before.

    A kernel can meet its acceptance rate long before its chains have mixed, with steps that are far too small. So R-hat
    of the second half of the steps is measured, and a warning says where more steps are needed.

    Args:
        kernel: ``MALA``, ``HMC``, ``RandomWalkMetropolis``, or another that has a ``step_size`` and accepts or rejects.
            Its own settings are where the adaptation starts.
        potential: Maps (N, D) to (N,).
        z0: Starting positions (N, D); with one chain alone the estimates are as noisy as Stan's.
        num_steps: Number of steps, at least 1; a few hundred are enough where chains reach the target within them.
        target_acceptance: The acceptance rate to reach, in (0, 1); ``None`` means the kernel's own
            ``target_acceptance``.
        generator: Source of all randomness, on any device; torch's default one if None.
        first_chain: Number of the first chain.

    Returns:
        The adapted kernel, the state to continue from, the history, and whether the chains have mixed.

    Warns:
        UserWarning: If they have not, or there are too few steps to say.

    Raises:
        ValueError: If the kernel has no step size or accepts everything, or a setting is out of range.
        ImportError: If arviz-stats is not installed, which R-hat needs.

    Example:
        >>> from gebm import samplers
        >>> potential = lambda z: (z / torch.tensor([1.0, 10.0])).square().sum(1) / 2
        >>> generator = torch.Generator().manual_seed(0)
        >>> z0 = torch.randn(64, 2, generator=generator)
        >>> warm = samplers.warm_up(samplers.HMC(0.1, 5), potential, z0, 300, generator=generator)
        >>> [round(variance) for variance in warm.kernel.inverse_mass]
        [1, 99]
        >>> chain = samplers.run(warm.kernel, potential, None, 100, generator=generator, state=warm.state)
        >>> bool((chain.infos.acceptance_probability.mean() - 0.8).abs() < 0.1)
        True
    """
    num_steps = as_count("num_steps", num_steps)
    target = _check_kernel(kernel, target_acceptance)
    state = run(kernel, potential, z0, 0, first_chain=first_chain).state
    # A dataclass with a step size, as _check_kernel has seen: no protocol of typing can say that.
    adapted: Any = kernel
    averaging = DualAveraging.start(adapted.step_size, target)
    begin, ends = variance_windows(num_steps) if hasattr(kernel, "inverse_mass") else (num_steps, [])
    variance = Variance.start(state.z)
    history: list[tuple[float, float, float]] = []
    tail = _Tail(num_steps)
    for step in range(num_steps):
        adapted = replace(adapted, step_size=averaging.step_size)
        state, info = adapted.step(state, potential, generator)
        acceptance = _mean_acceptance(kernel, info)
        history.append((averaging.step_size, acceptance, float(info.potential.double().mean())))
        averaging = averaging.update(acceptance)
        tail.add(step, state.z)
        if begin <= step < (ends[-1] if ends else 0):
            variance = variance.update(state.z)
        if step + 1 in ends:
            adapted = replace(adapted, inverse_mass=variance.regularize())
            variance = Variance.start(state.z)
            averaging = DualAveraging.start(averaging.average, target)
    adapted = replace(adapted, step_size=averaging.average)
    r_hat = tail.r_hat(state.z.shape[1])
    measurements = History(*torch.tensor(history, dtype=torch.float64).unbind(1))
    return WarmUp(adapted, state, measurements, r_hat, _judge(r_hat, num_steps))


def _judge(r_hat: Tensor, num_steps: int) -> bool:
    """Return whether chains have mixed, and warn where they have not."""
    # A coordinate that never moved has a quotient of zeros, which is not a number.
    if bool((r_hat <= _LARGEST_R_HAT).all()):
        return True
    worst = r_hat.nan_to_num(nan=math.inf).max().item()
    measured = f"R-hat is {worst:.2f}, above {_LARGEST_R_HAT}" if math.isfinite(worst) else "R-hat cannot be measured"
    warnings.warn(
        f"the warm-up of {num_steps} steps was too short: {measured}; use more, such as {max(2 * num_steps, 100)}",
        stacklevel=4,
    )
    return False


def _check_kernel(kernel: Kernel[Any], target_acceptance: float | None) -> float:
    """Return the acceptance rate to reach, or raise a ValueError if a warm-up cannot adapt the kernel to it."""
    if "step_size" not in {field.name for field in fields(cast(Any, kernel))}:
        raise ValueError(f"a warm-up adapts a step_size; {type(kernel).__name__} has none")
    target = getattr(kernel, "target_acceptance", None) if target_acceptance is None else target_acceptance
    if target is None:
        raise ValueError(f"give target_acceptance, in (0, 1): {type(kernel).__name__} has none of its own")
    if not 0 < target < 1:
        raise ValueError(f"target_acceptance must lie between 0 and 1, not {target!r}")
    return target


def _mean_acceptance(kernel: Kernel[Any], info: Info) -> float:
    probability = getattr(info, "acceptance_probability", None)
    if probability is None:
        raise ValueError(f"a warm-up needs acceptance probabilities; {type(kernel).__name__} accepts everything")
    return float(probability.double().mean())
