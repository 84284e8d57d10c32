"""Learning rates of a trainer's optimizers: its own schedule, or one of ``torch.optim.lr_scheduler`` next to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gebm.training.optimizers import Schedule

__all__ = ["LearningRates"]

# Entries of a parameter group: the rate that the schedule starts from, and the one that was set here last.
_PEAK, _SET = "peak_lr", "scheduled_lr"


class LearningRates:
    """Learning rates of several optimizers, at each base step a factor of where they started.

    A rate that was changed from outside, by a scheduler of torch's or by hand, is the rate from then on: under a
    constant schedule. Two schedules of one rate would overwrite each other, so another one is refused.

    Args:
        optimizers: Optimizers by the names of a trainer's arguments.
        schedule: Factor of the rates at each base step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> rates = LearningRates({"base_optimizer": optimizer}, Schedule())
        >>> optimizer.param_groups[0]["lr"] = 0.05
        >>> rates.set(base_step=1)
        >>> optimizer.param_groups[0]["lr"], rates.starts("base_optimizer")
        (0.05, [0.05])
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], schedule: Callable[[int], float]) -> None:
        self._optimizers = dict(optimizers)
        self._schedule = schedule
        for name in self._optimizers:
            for group in self._of(name):
                # A trainer before this one may have left what it started from.
                group[_PEAK] = group[_SET] = float(group["lr"])

    def set(self, base_step: int) -> None:
        """Set the rates that the schedule has for a base step.

        Raises:
            ValueError: If the schedule is not constant, and a rate was changed from outside.
        """
        self._adopt()
        for name in self._optimizers:
            for group in self._of(name):
                _write(group, group[_PEAK] * self._schedule(base_step))

    def override(self, name: str, rate: float | None) -> None:
        """Set one optimizer's rates for the moment: all to ``rate``, or to where the schedule starts (``None``)."""
        self._adopt()
        for group in self._of(name):
            _write(group, group[_PEAK] if rate is None else rate)

    def scale(self, factors: Mapping[str, float], base_step: int) -> None:
        """Multiply the rates, including those that the schedule starts from, by each optimizer's factor."""
        self._adopt()
        for name in self._optimizers:
            for group in self._of(name):
                group[_PEAK] *= factors[name]
        self.set(base_step)

    def starts(self, name: str) -> list[float]:
        """Return the rates that the schedule starts from, one for each parameter group of an optimizer."""
        self._adopt()
        return [group[_PEAK] for group in self._of(name)]

    def load(self, name: str, starts: list[float], base_step: int) -> None:
        """Let the schedule start from other rates, and set those of a base step.

        Raises:
            ValueError: If there is not one for each parameter group.
        """
        groups = self._of(name)
        if len(starts) != len(groups):
            raise ValueError(
                f"the checkpoint has {len(starts)} learning rates of {name}, which has {len(groups)} parameter groups: "
                "build it as it was"
            )
        for group, start in zip(groups, starts, strict=True):
            group[_PEAK] = start
            _write(group, start * self._schedule(base_step))

    def _of(self, name: str) -> list[dict[str, Any]]:
        return self._optimizers[name].param_groups

    def _adopt(self) -> None:
        """Start from the rates that were changed from outside."""
        constant = isinstance(self._schedule, Schedule) and self._schedule.shape == "constant"
        for name in self._optimizers:
            for group in self._of(name):
                rate = float(group["lr"])
                # A group that was added, or loaded from elsewhere, has no entries.
                if rate == group.get(_SET):
                    continue
                if _SET in group and not constant:
                    raise ValueError(
                        f"a learning rate of {name} was changed from outside, from {group[_SET]} to {rate}, and the "
                        f"trainer has the {self._schedule}: leave out one of the two schedules, or use "
                        "Trainer.scale_learning_rates"
                    )
                group[_PEAK] = group[_SET] = rate


def _write(group: dict[str, Any], rate: float) -> None:
    """Set a group's rate, in place where it is a tensor, as torch's schedulers do."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
        rate = float(group["lr"])
    else:
        group["lr"] = rate
    group[_SET] = rate
