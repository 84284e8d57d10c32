"""Gradient guards, compared over the objectives, at a budget where one batch can decide a run."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.claim.experiment import Bench
from benchmarks.claim.settings import OBJECTIVES, SETTINGS, experiment
from benchmarks.claim.short_runs import train_from_scratch
from gebm.training import gradient_guard

__all__ = ["GUARD_PENALTY", "GUARD_SAMPLES", "GUARD_SEEDS", "GUARD_STEPS", "run_guard"]

GUARD_SEEDS = (0, 1, 2)
GUARD_STEPS = 240
GUARD_SAMPLES = 1000
# As weak as it was when runs were knocked out.
GUARD_PENALTY = 0.1


def run_guard(bench: Bench, objective: str, guard: str, seed: int) -> dict[str, Any]:
    """Train photographs for a few hundred base steps, and return the base's FID and what happened to the energy.

    Args:
        bench: Of the photographs.
        objective: A key of ``OBJECTIVES``.
        guard: A key of ``gebm.training.gradient_guard.NAMES``.
        seed: The seed.

    Returns:
        What was measured, for JSON.
    """
    assert objective in OBJECTIVES and guard in gradient_guard.NAMES
    config = experiment(
        SETTINGS["photographs"], objective, seed, {"train.gradient_guard": guard, "train.penalty": GUARD_PENALTY}
    )
    trainer, _, losses = train_from_scratch(config, GUARD_STEPS)
    generator = torch.Generator().manual_seed(1)
    samples = trainer.sampling_model().sample_base(GUARD_SAMPLES, generator, batch_size=500)
    return {
        "objective": objective,
        "guard": guard,
        "seed": seed,
        "fid": bench.score(bench.features(samples))["fid"],
        **losses,
        "extractor": bench.extractor.label,
    }
