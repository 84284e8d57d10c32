"""What makes or breaks an energy, measured: how steep it may be, and how soon it fits the training data alone.

Two kinds of jobs, each one JSON file, so that what is interrupted resumes job by job:

- ``flat-<penalty>-<on|off>-<seed>``: KALE-F on the digits under a weak or strong gradient penalty, with and without
  spectral normalization: a penalty that is too strong makes the energy flat, and a flat energy reweights nothing;
- ``overfit-<setting>``: an energy trained on and on, on a base that does not change, with its KALE on training data and
  on held-out data: the gap between the two is overfitting.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.claim.experiment import Bench, train_phase
from benchmarks.claim.result_files import own_share, write_json
from benchmarks.claim.settings import SETTINGS, experiment
from benchmarks.claim.short_runs import measure_quality, train_from_scratch
from pipeline.evaluation.evaluator import resampled

__all__ = ["FLAT", "OVERFIT", "Flat", "Overfit", "run_flat", "run_overfit", "run_why"]

_SAMPLES, _BATCH, _LATENTS = 5000, 500, 41


class Flat(NamedTuple):
    """One energy under one regularization.

    Attributes:
        penalty: Weight of the gradient penalty.
        spectral_norm: Whether the energy's layers are spectrally normalized.
        seed: The seed.
        base_steps: Base steps of training.
    """

    penalty: float
    spectral_norm: bool
    seed: int
    base_steps: int = 1000

    @property
    def name(self) -> str:
        """Its file's name, without the ending."""
        return f"flat-{self.penalty:g}-{'on' if self.spectral_norm else 'off'}-{self.seed}"


class Overfit(NamedTuple):
    """One long phase of the energy alone.

    Attributes:
        setting: A key of ``SETTINGS``.
        base_steps: Base steps of training before it.
        energy_steps: Energy steps of the phase.
        seed: The seed.
        penalty: Weight of the gradient penalty, weaker than in the experiment, so that the energy may be steep.
    """

    setting: str
    base_steps: int
    energy_steps: int = 1500
    seed: int = 0
    penalty: float = 0.1

    @property
    def name(self) -> str:
        """Its file's name, without the ending."""
        return f"overfit-{self.setting}"


FLAT = tuple(
    Flat(p, normalized, seed) for seed in (0, 1) for p in (0.0, 0.01, 0.1, 1.0) for normalized in (True, False)
)
OVERFIT = (Overfit("digits", 2000), Overfit("photographs", 800))


def run_why(folder: Path, share: str, out_of_time: Callable[[], bool], log: Callable[[str], None]) -> None:
    """Run the jobs of a share that have no result yet, one after the other.

    Args:
        folder: Where each job's JSON file is.
        share: ``i/n``: the i-th of n processes that share the work.
        out_of_time: Asked before each job; ends the run there.
        log: Takes lines about the progress.
    """
    bench = functools.cache(lambda: Bench(SETTINGS["digits"]))
    # The few long jobs first.
    for job in own_share((*OVERFIT, *FLAT), share):
        path = folder / f"{job.name}.json"
        if path.exists():
            continue
        if out_of_time():
            log("why: out of time; the same command resumes")
            return
        result = run_overfit(job) if isinstance(job, Overfit) else run_flat(bench(), job)
        write_json(path, result)
        log(f"written: {path.name}")


def run_flat(bench: Bench, job: Flat) -> dict[str, Any]:
    """Train KALE-F on the digits under a regularization, and measure its base, its energy and its losses.

    Args:
        bench: Of the digits.
        job: Which regularization.

    Returns:
        What was measured, for JSON.
    """
    config = experiment(SETTINGS["digits"], "kale_fenchel", job.seed, {"train.penalty": job.penalty})
    trainer, work, losses = train_from_scratch(config, job.base_steps, spectral_norm=job.spectral_norm)
    model = trainer.sampling_model().eval()
    with torch.no_grad():
        samples = model.sample_base(_SAMPLES, torch.Generator().manual_seed(_LATENTS), batch_size=_BATCH)
        energies = torch.cat([model.energy(part) for part in samples.split(_BATCH)])
    features = bench.features(samples)
    return {
        "penalty": job.penalty,
        "spectral_norm": job.spectral_norm,
        "seed": job.seed,
        "base_steps": trainer.base_step,
        "samples": _SAMPLES,
        "extractor": bench.extractor.label,
        "fid": bench.score(features)["fid"],
        "weighted_fid": _weighted_fid(bench, features, energies),
        "quality": measure_quality(model, work, _LATENTS),
        **losses,
    }


def run_overfit(job: Overfit) -> dict[str, Any]:
    """Train KALE-F, then its energy alone for long, and record KALE on held-out and on training data.

    Args:
        job: Which setting, and how long.

    Returns:
        What was measured, for JSON.
    """
    config = experiment(SETTINGS[job.setting], "kale_fenchel", job.seed, {"train.penalty": job.penalty})
    trainer, work, _ = train_from_scratch(config, job.base_steps)
    model = copy.deepcopy(trainer.sampling_model()).eval()
    _, result = train_phase(model, work, config, "kale", patience=0, steps=job.energy_steps, penalty=job.penalty)
    history = [
        {"steps": steps, "held_out_kale": unseen.kale, "train_kale": seen.kale}
        for steps, unseen, seen in result.history
    ]
    return {
        "setting": job.setting,
        "seed": job.seed,
        "base_steps": trainer.base_step,
        "held_out": len(work.held_out),
        "history": history,
    }


def _weighted_fid(bench: Bench, features: dict[str, Tensor], energies: Tensor) -> float | None:
    """Return the FID of the samples drawn again by their weights, or none where an energy is not finite."""
    if not energies.isfinite().all():
        return None
    rows = resampled(energies)
    return bench.score({layer: values[rows] for layer, values in features.items()})["fid"]
