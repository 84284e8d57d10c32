"""The losses of an energy step and of a base step: modules of one forward, which data parallelism wraps as they are.

The networks may run in bfloat16. A last layer that is linear then returns an energy of eight bits: one of ten nats is
off by up to a thirty-second. From there on all is in float32, and everything that is a mean over energies or exponents,
the log-partition and KALE, averages these roundings out; eight bits of its own would round a KALE of a tenth of a nat
away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gebm.energies import BoundedEnergy, Density
from gebm.freezing import cached_parametrizations, frozen
from gebm.inputs import cast_to, one_per_sample
from gebm.model import GEBM
from gebm.objectives.objectives import Objective
from gebm.objectives.penalties import Penalty

__all__ = ["BaseLoss", "EnergyLoss", "EnergyTerms"]


class EnergyTerms(NamedTuple):
    """Terms of an energy step: the loss to differentiate, and its parts, detached."""

    loss: Tensor
    penalty: Tensor
    energy_data: Tensor
    energy_base: Tensor


class EnergyLoss(nn.Module):
    """The complete loss of an energy step, in one forward: Algorithm 1 of Arbel, Zhou and Gretton (ICLR 2021).

    Minus the KALE estimate of their section 3, or another objective's loss, plus the penalty.

    Being one module with one forward and one backward, it can be wrapped for data parallelism as it is.

    Args:
        gebm: The model; its energy, and the log-partition where the objective trains it, become this module's
            parameters. Its base does not.
        objective: The pair of losses.
        penalty: The regularizer of the energy, from :mod:`gebm.objectives.penalties`.
        precision: float32, or bfloat16 for autocast inside the networks; the loss itself is in float32.
    """

    log_partition: nn.Parameter | None

    def __init__(
        self, gebm: GEBM, objective: Objective, penalty: Penalty, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.energy = gebm.energy
        # A parameter that gets no gradient would keep data parallelism waiting: register it only where it gets one.
        self.register_parameter("log_partition", gebm.log_partition if objective.trains_log_partition else None)
        self.objective = objective
        self.penalty = penalty
        self.precision = precision

    def forward(self, x_data: Tensor, x_base: Tensor, position: Tensor | None) -> EnergyTerms:
        """Return the loss and its parts.

        Args:
            x_data: Data (N, ...).
            x_base: Base samples, or negatives from elsewhere (M, ...), without a graph.
            position: The draws of the penalty (min(N, M),); ``None`` if no penalty is due.

        Returns:
            The terms.
        """
        with cached_parametrizations(self.energy):
            energies = _autocast(self.energy, x_data.device, self.precision)
            energy_data, energy_base = energies(torch.cat([x_data, x_base])).split([len(x_data), len(x_base)])
            penalty = (
                energy_data.new_zeros(())
                if position is None
                else self.penalty(energies, x_data, x_base, position, list(self.energy.parameters()))
            )
        loss = self.objective.energy_loss(energy_data, energy_base, self.log_partition) + penalty
        return EnergyTerms(loss, penalty.detach(), energy_data.detach().mean(), energy_base.detach().mean())


class BaseLoss(nn.Module):
    """The complete loss of a base step, in one forward: Algorithm 1 of Arbel, Zhou and Gretton (ICLR 2021).

    Of latents, or, where the objective has the base learn from them, of data.

    Args:
        gebm: The model; its base becomes this module's, its energy does not.
        objective: The pair of losses.
        precision: float32, or bfloat16 for autocast inside the networks; the loss itself is in float32.
    """

    def __init__(self, gebm: GEBM, objective: Objective, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.base = gebm.base
        # In a tuple, the energy is no submodule: data parallelism must not wait for gradients that never come.
        self._energy: tuple[BoundedEnergy] = (gebm.energy,)
        self.objective = objective
        self.precision = precision

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the loss.

        Args:
            inputs: Latents (M, D), or data (N, ...) if that is what the base learns from.

        Returns:
            A scalar.
        """
        if self.objective.base_learns_from == "data":
            assert isinstance(self.base, Density)
            log_density = _autocast(self.base.log_prob, inputs.device, self.precision)(inputs)
            return self.objective.base_loss(one_per_sample(log_density, len(inputs), "the base's log_prob"))
        (energy,) = self._energy
        # Outside of what is frozen: an energy relative to the base holds this very base fixed while it evaluates log b.
        x_base = _autocast(self.base, inputs.device, self.precision)(cast_to(self.base, inputs))
        with frozen(energy):
            energy_base = _autocast(energy, inputs.device, self.precision)(x_base)
        return self.objective.base_loss(energy_base)


def _autocast(
    network: Callable[[Tensor], Tensor], device: torch.device, precision: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return the network so that it runs in the given precision.

    Only its forward: the penalty differentiates in between, and backward passes run outside autocast by torch's rules.
    """

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            return network(x)

    return forward
