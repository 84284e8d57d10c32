"""Gradient guards, held against each other over the objectives, at a budget where one batch can decide a run."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.claim.experiment import Bench
from benchmarks.claim.settings import OBJECTIVES, SETTINGS, experiment
from gebm import initialize_log_partition
from gebm.training import gradient_guard
from pipeline import tasks
from pipeline.data import Position
from pipeline.training.loop import step_generator
from pipeline.training.model import make_trainer, model_to_train

__all__ = ["GUARD_SAMPLES", "GUARD_SEEDS", "GUARD_STEPS", "run_guard"]

GUARD_SEEDS = (0, 1, 2)
GUARD_STEPS = 240
GUARD_SAMPLES = 1000


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
    config = experiment(SETTINGS["photographs"], objective, seed, {"train.gradient_guard": guard})
    device = torch.device("cpu")
    batches = tasks.make(config).open(0, 1, device).batches(Position())
    model = model_to_train(config, device)
    generator = step_generator(config, "log-partition", 0, device)
    initialize_log_partition(model, config.train.log_partition_samples, generator)
    trainer = make_trainer(model, config, device)
    largest, moments, kales = 0.0, [], []
    for step in range(GUARD_STEPS):
        info = trainer.step(batches, step_generator(config, "step", step, device))
        largest = max(largest, float(info.largest_energy_loss))
        moments.append(float(trainer.energy_second_moment()))
        kales.append(float(info.penalty - info.energy_loss))
    samples = model.sample_base(GUARD_SAMPLES, torch.Generator().manual_seed(1), batch_size=500)
    late = kales[GUARD_STEPS // 2 :]
    return {
        "objective": objective,
        "guard": guard,
        "seed": seed,
        "fid": bench.score(bench.features(samples))["fid"],
        "largest_energy_loss": largest,
        "largest_second_moment": max(moments),
        "mean_lower_bound": sum(late) / len(late),
        "extractor": bench.extractor.label,
    }
