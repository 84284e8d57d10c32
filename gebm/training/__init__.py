"""The alternation of energy steps and base steps, its optimizers, and the decay of their learning rates."""

from __future__ import annotations

from gebm.training.alternation import Alternation, StepInfo
from gebm.training.optimizers import Schedule, adam
from gebm.training.plateau_decay import PlateauDecay
from gebm.training.trainer import Trainer

__all__ = [
    "Alternation",
    "PlateauDecay",
    "Schedule",
    "StepInfo",
    "Trainer",
    "adam",
]
