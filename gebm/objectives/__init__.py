"""Objectives, and the negatives, penalties and losses they are made of."""

from __future__ import annotations

from gebm.objectives.objectives import (
    KALE,
    NAMES,
    ContrastiveDivergence,
    Hinge,
    MaximumLikelihood,
    NonSaturating,
    Objective,
    Wasserstein,
    log_mean_exp,
    make,
    needs_density,
    register,
)

__all__ = [
    "KALE",
    "NAMES",
    "ContrastiveDivergence",
    "Hinge",
    "MaximumLikelihood",
    "NonSaturating",
    "Objective",
    "Wasserstein",
    "log_mean_exp",
    "make",
    "needs_density",
    "register",
]
