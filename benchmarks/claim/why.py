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
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from benchmarks.claim.experiment import Bench, train_phase
from benchmarks.claim.settings import SETTINGS, experiment
from gebm import GEBM, Trainer, energy_quality, initialize_log_partition
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position
from pipeline.evaluation.evaluator import resampled
from pipeline.training.loop import step_generator
from pipeline.training.model import make_trainer, model_to_train

__all__ = ["FLAT", "OVERFIT", "Flat", "Overfit", "remove_spectral_norm", "run_flat", "run_overfit", "run_why"]

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
    """

    setting: str
    base_steps: int
    energy_steps: int = 1500
    seed: int = 0

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
    index, count = map(int, share.split("/"))
    bench = functools.cache(lambda: Bench(SETTINGS["digits"]))
    # The few long jobs first.
    for job in (*OVERFIT, *FLAT)[index::count]:
        path = folder / f"{job.name}.json"
        if path.exists():
            continue
        if out_of_time():
            log("why: out of time; the same command resumes")
            return
        result = run_overfit(job) if isinstance(job, Overfit) else run_flat(bench(), job)
        _write(path, result)
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
    trainer, work, losses = _train(config, job.base_steps, spectral_norm=job.spectral_norm)
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
        "quality": _quality(model, work),
        **losses,
    }


def run_overfit(job: Overfit) -> dict[str, Any]:
    """Train KALE-F, then its energy alone for long, and record KALE on held-out and on training data.

    Args:
        job: Which setting, and how long.

    Returns:
        What was measured, for JSON.
    """
    config = experiment(SETTINGS[job.setting], "kale_fenchel", job.seed)
    trainer, work, _ = _train(config, job.base_steps)
    model = copy.deepcopy(trainer.sampling_model()).eval()
    _, result = train_phase(model, work, config, "kale", patience=0, steps=job.energy_steps)
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


def remove_spectral_norm(network: torch.nn.Module) -> None:
    """Take the normalization off all layers; each keeps the weight that it had with it.

    So an energy with and one without begin as the same function, and differ in what training may make of them.

    Args:
        network: Changed in place.

    Example:
        >>> from torch import nn
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)).eval()
        >>> before = layer.weight.detach().clone()
        >>> remove_spectral_norm(layer)
        >>> parametrize.is_parametrized(layer), torch.equal(layer.weight, before)
        (False, True)
    """
    training = network.training
    # In training mode reading a weight moves its power iteration.
    network.eval()
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    network.train(training)


def _train(
    config: schema.Config, base_steps: int, *, spectral_norm: bool = True
) -> tuple[Trainer, tasks.TaskWorker, dict[str, float]]:
    """Train from scratch, and return the trainer, the data and what the losses went through."""
    device = torch.device("cpu")
    work = tasks.make(config).open(0, 1, device)
    batches = work.batches(Position())
    model = model_to_train(config, device)
    if not spectral_norm:
        remove_spectral_norm(model.energy)
    generator = step_generator(config, "log-partition", 0, device)
    initialize_log_partition(model, config.train.log_partition_samples, generator)
    trainer = make_trainer(model, config, device)
    losses = {"largest_energy_loss": float("-inf"), "largest_second_moment": 0.0, "nonfinite_losses": 0}
    for step in range(base_steps):
        info = trainer.step(batches, step_generator(config, "step", step, device))
        losses["largest_energy_loss"] = max(losses["largest_energy_loss"], float(info.largest_energy_loss))
        losses["largest_second_moment"] = max(losses["largest_second_moment"], float(trainer.energy_second_moment()))
        losses["nonfinite_losses"] += int(info.num_nonfinite)
    return trainer, work, losses


def _quality(model: GEBM, work: tasks.TaskWorker) -> dict[str, float]:
    qualities = {}
    for name, data in (("held_out", work.held_out), ("train", work.seen)):
        quality = energy_quality(model, data, generator=torch.Generator().manual_seed(_LATENTS))
        qualities |= {f"{name}_{key}": value for key, value in quality._asdict().items()}
    return qualities


def _weighted_fid(bench: Bench, features: dict[str, Tensor], energies: Tensor) -> float | None:
    """Return the FID of the samples drawn again by their weights, or none where an energy is not finite."""
    if not energies.isfinite().all():
        return None
    rows = resampled(energies)
    return bench.score({layer: values[rows] for layer, values in features.items()})["fid"]


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)
