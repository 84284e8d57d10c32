"""Weights of the gradient penalty, tried for each objective in short runs before the experiment.

The experiment's runs have the weight that makes the best base: the same search of the same few weights for every
objective, on a seed that no run of the experiment has. Losses differ in scale, so one weight for all of them would suit
some and not others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from benchmarks.claim.experiment import Bench
from benchmarks.claim.settings import OBJECTIVES, PENALTIES, experiment
from benchmarks.claim.short_runs import measure_quality, train_from_scratch

__all__ = ["PENALTY_SAMPLES", "PENALTY_SEED", "PENALTY_STEPS", "best_penalty", "run_penalty"]

PENALTY_SEED = 100
PENALTY_STEPS = 1000
PENALTY_SAMPLES = 5000


def run_penalty(bench: Bench, objective: str, penalty: float) -> dict[str, Any]:
    """Train for a thousand base steps, and return the base's FID and what the energy knows.

    Args:
        bench: The data.
        objective: A key of ``OBJECTIVES``.
        penalty: One of ``PENALTIES``.

    Returns:
        What was measured, for JSON.
    """
    assert objective in OBJECTIVES and penalty in PENALTIES
    config = experiment(bench.setting, objective, PENALTY_SEED, {"train.penalty": penalty})
    trainer, task, losses = train_from_scratch(config, PENALTY_STEPS)
    model = trainer.sampling_model().eval()
    generator = torch.Generator().manual_seed(PENALTY_SEED)
    samples = model.sample_base(PENALTY_SAMPLES, generator, batch_size=500)
    return {
        "setting": bench.setting.name,
        "objective": objective,
        "penalty": penalty,
        "fid": bench.score(bench.features(samples))["fid"],
        "quality": measure_quality(model, task, PENALTY_SEED),
        **losses,
        "extractor": bench.extractor.label,
    }


def best_penalty(rows: Iterable[Mapping[str, Any]], setting: str, objective: str) -> float | None:
    """Return the weight with the lowest FID, or none until all have been tried.

    Args:
        rows: Results of :func:`run_penalty`.
        setting: Name of the data.
        objective: A key of ``OBJECTIVES``.

    Example:
        >>> fids = {0.1: 5.0, 1.0: 4.0, 10.0: 7.0}
        >>> rows = [{"setting": "digits", "objective": "gan", "penalty": p, "fid": fid} for p, fid in fids.items()]
        >>> best_penalty(rows, "digits", "gan"), best_penalty(rows[:2], "digits", "gan")
        (1.0, None)
    """
    fids = {row["penalty"]: row["fid"] for row in rows if (row["setting"], row["objective"]) == (setting, objective)}
    return min(fids, key=lambda penalty: fids[penalty]) if fids.keys() == set(PENALTIES) else None
