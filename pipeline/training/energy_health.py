"""Health of the energy: warnings of an energy that has collapsed, with what to do about it.

The energy of a healthy run is lower on data than on base samples, and its KALE is positive: it is a lower bound of
``KL(P || B)`` (Arbel, Zhou and Gretton, ICLR 2021). A single batch with a huge loss can end that: Adam remembers its
square, and the energy hardly moves for ``1 / (1 - beta2)`` steps, while the base follows an energy that is wrong.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from gebm import GEBM, KALE, EnergyQuality, Objective, energies_of
from gebm.training import StepInfo

__all__ = ["EnergyHealth", "measure_energy"]

# Base steps that a mean is taken over.
_WINDOW = 100
# A loss this many times the usual one is a jump: two orders of magnitude.
_JUMP = 100.0
# So is a second moment whose root is this many times the usual: from a gradient a hundred times as large, or more.
_MOMENT_JUMP = 10.0
# Base samples that held-out and training data are compared to.
_BASE_SAMPLES = 4096
# Share of the data at the energy's floor from which a warning is given.
_MANY_AT_FLOOR = 0.5


def measure_energy(model: GEBM, held_out: Tensor, seen: Tensor, seed: int) -> dict[str, float]:
    """Return the quality of an energy on data that no step saw, and its KALE on an equal number that were trained on.

    Args:
        model: The model.
        held_out: Held-out data (M, ...).
        seen: Training data (M, ...).
        seed: Of the base samples that both are compared to.

    Returns:
        ``held_out_kale``, ``train_kale`` and ``energy_spread`` in nats, ``weights_ess`` and ``floor_share``.
    """
    samples = model.sample_base(_BASE_SAMPLES, torch.Generator().manual_seed(seed), batch_size=1000)
    energy_base, floor = energies_of(model, samples), model.energy.floor
    unseen, trained_on = (EnergyQuality.of(energies_of(model, x), energy_base, floor) for x in (held_out, seen))
    return {
        "held_out_kale": unseen.kale,
        "train_kale": trained_on.kale,
        "energy_spread": unseen.spread,
        "weights_ess": unseen.weights_ess,
        "floor_share": unseen.floor_share,
    }


class EnergyHealth:
    """Warnings on the steps of a trial, as they are reported.

    Args:
        objective: The objective; under KALE the loss itself is an estimate of the KALE.
        guard: The name of the gradient guard, for the advice.
        beta2: Adam's decay of the second moment.

    Example:
        >>> health = EnergyHealth(KALE(), guard="none", beta2=0.999)
        >>> health.judge_quality(kale=-0.4, floor_share=0.9, base_step=200)[0]
        'base step 200: held-out KALE is -0.400 nats, below zero: the energy makes its base worse; ...'
    """

    def __init__(self, objective: Objective, guard: str, beta2: float) -> None:
        self._is_kale = isinstance(objective, KALE)
        self._guard = guard
        self._memory = round(1 / (1 - beta2))
        self._kales: deque[float] = deque(maxlen=_WINDOW)
        self._gaps: deque[float] = deque(maxlen=_WINDOW)
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._moments: deque[float] = deque(maxlen=_WINDOW)
        self._warned: set[str] = set()

    def judge_steps(self, infos: Sequence[StepInfo], second_moment: Tensor, base_step: int) -> list[str]:
        """Return warnings about the steps since the last call; each kind once, until it has recovered.

        Args:
            infos: The steps since the last call, the last of which is ``base_step``.
            second_moment: From :meth:`gebm.Trainer.energy_second_moment`.
            base_step: Base steps done.

        Returns:
            A line for each warning, with what to do.
        """
        columns = torch.stack(
            [
                torch.stack([i.largest_energy_loss, i.energy_loss - i.penalty, i.energy_data - i.energy_base])
                for i in infos
            ]
        )
        rows = columns.double().cpu().tolist()
        warnings = self._judge_moment(float(second_moment), max(row[0] for row in rows), base_step)
        if self._guard == "none":
            warnings += self._judge_losses([row[0] for row in rows], base_step)
        self._losses.extend(row[0] for row in rows if math.isfinite(row[0]))
        self._kales.extend(-row[1] for row in rows if math.isfinite(row[1]))
        self._gaps.extend(row[2] for row in rows if math.isfinite(row[2]))
        if self._is_kale and self._once("kale", _below_zero(self._kales)):
            warnings.append(
                f"base step {base_step}: KALE is negative ({statistics.fmean(self._kales):.3f} nats over "
                f"{len(self._kales)} base steps): the energy makes its base worse; {self._advice()}"
            )
        if self._once("gap", _below_zero([-gap for gap in self._gaps])):
            warnings.append(
                f"base step {base_step}: data have higher energies than base samples (by "
                f"{statistics.fmean(self._gaps):.3f} nats over {len(self._gaps)} base steps); {self._advice()}"
            )
        return warnings

    def judge_quality(self, kale: float, floor_share: float, base_step: int) -> list[str]:
        """Return warnings about an evaluation's measures on held-out data.

        Args:
            kale: Held-out KALE, in nats.
            floor_share: Share of the data's energies at the energy's floor.
            base_step: Base steps done.

        Returns:
            A line for each warning, with what to do.
        """
        warnings = []
        if self._is_kale and kale < 0:
            warnings.append(
                f"base step {base_step}: held-out KALE is {kale:.3f} nats, below zero: the energy makes its base "
                f"worse; {self._advice()}"
            )
        if floor_share > _MANY_AT_FLOOR:
            warnings.append(
                f"base step {base_step}: {floor_share:.0%} of held-out data are at the energy's floor, where no "
                f"gradient passes; lower model.energy_floor or raise train.penalty"
            )
        return warnings

    def _judge_moment(self, moment: float, largest_loss: float, base_step: int) -> list[str]:
        usual = statistics.median(self._moments) if len(self._moments) >= 3 else math.inf
        jumped = moment > _MOMENT_JUMP * usual
        if not jumped:
            self._moments.append(moment)
        if not self._once("moment", jumped):
            return []
        return [
            f"base step {base_step}: a batch with an energy loss of {largest_loss:.3g} raised the root of Adam's "
            f"second moment {moment / usual:.0f}-fold; the energy hardly learns for the next {self._memory:,} energy "
            f"steps; {self._advice()}"
        ]

    def _judge_losses(self, losses: list[float], base_step: int) -> list[str]:
        usual = statistics.median(map(abs, self._losses)) if len(self._losses) >= 20 else math.inf
        if not self._once("loss", max(losses) > _JUMP * max(usual, 1.0)):
            return []
        return [
            f"base step {base_step}: an energy loss of {max(losses):.3g} where {usual:.2g} is usual; {self._advice()}"
        ]

    def _once(self, kind: str, unwell: bool) -> bool:
        """Return whether this kind is unwell and was not at the last call."""
        warned = kind in self._warned
        (self._warned.add if unwell else self._warned.discard)(kind)
        return unwell and not warned

    def _advice(self) -> str:
        if self._guard == "none":
            return "set train.gradient_guard=clip"
        return "lower train.energy_lr or train.beta2, or raise train.penalty"


def _below_zero(values: Sequence[float]) -> bool:
    """Return whether the mean of a full window is below zero by more than twice its standard error."""
    if len(values) < _WINDOW:
        return False
    return statistics.fmean(values) + 2 * statistics.stdev(values) / len(values) ** 0.5 < 0
