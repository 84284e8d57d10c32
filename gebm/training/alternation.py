"""Alternation of energy steps and base steps, and the measurements of one round of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["Alternation", "StepInfo"]


@dataclass(frozen=True)
class Alternation:
    """Numbers of energy steps before each base step (Arbel, Zhou and Gretton, ICLR 2021, algorithm 1).

    Args:
        energy_steps: ``n_e``, energy steps per base step; zero for none.
        warmup_energy_steps: ``n_e`` of the base steps named below.
        warmup_base_steps: Number of base steps at the beginning that have the warm-up's ``n_e``.
        warmup_every: Period, in base steps, of the later ones.

    Raises:
        ValueError: If a number of steps is negative or the period is below 1.

    Example:
        >>> alternation = Alternation()
        >>> [alternation.energy_steps_at(step) for step in (0, 1, 2, 499, 500, 501)]
        [100, 100, 5, 5, 100, 5]
    """

    energy_steps: int = 5
    warmup_energy_steps: int = 100
    warmup_base_steps: int = 2
    warmup_every: int = 500

    def __post_init__(self) -> None:
        if min(self.energy_steps, self.warmup_energy_steps, self.warmup_base_steps) < 0 or self.warmup_every < 1:
            raise ValueError(f"{self}: numbers of steps cannot be negative, and the period is at least 1")

    def energy_steps_at(self, base_step: int) -> int:
        """Return how many energy steps come before this base step.

        Args:
            base_step: Base steps done before.

        Returns:
            The number of energy steps.
        """
        warm = base_step < self.warmup_base_steps or base_step % self.warmup_every == 0
        return self.warmup_energy_steps if warm else self.energy_steps

    def energy_steps_before(self, base_step: int) -> int:
        """Return how many energy steps a run has taken when it comes to this base step's own.

        Args:
            base_step: Base steps done before.

        Returns:
            The sum of :meth:`energy_steps_at` over them.

        Example:
            >>> Alternation().energy_steps_before(3), Alternation().energy_steps_before(501)
            (205, 2790)
        """
        first = min(self.warmup_base_steps, base_step)
        later = max(0, -(-base_step // self.warmup_every) - -(-self.warmup_base_steps // self.warmup_every))
        warm = first + later
        return warm * self.warmup_energy_steps + (base_step - warm) * self.energy_steps


class StepInfo(NamedTuple):
    """Measurements of a base step and the energy steps before it: 0-dim tensors without a graph, this process's own.

    Nothing here waits for the device; reading a value does. A value is not a number where there was no such step.

    Attributes:
        energy_loss: Loss of the last energy step, penalty included; for KALE, minus the batch's estimate of the lower
            bound plus the penalty.
        largest_energy_loss: The largest loss of these energy steps.
        base_loss: Loss of the base step.
        penalty: Penalty in the last energy step; zero if it was not due.
        energy_data: Mean energy of data in the last energy step.
        energy_base: Mean energy of negatives in the last energy step: of base samples, unless they come from chains.
        log_partition: ``c`` after the step.
        num_nonfinite: Number of losses that were infinite or not a number; zero in a healthy run.
        energy_steps: Number of energy steps that were taken; a plain integer.
    """

    energy_loss: Tensor
    largest_energy_loss: Tensor
    base_loss: Tensor
    penalty: Tensor
    energy_data: Tensor
    energy_base: Tensor
    log_partition: Tensor
    num_nonfinite: Tensor
    energy_steps: int
