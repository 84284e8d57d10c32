"""Short training runs from scratch, and what their losses and energies went through."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from gebm import GEBM, Trainer, energy_quality, initialize_log_partition
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.step_generator import step_generator

__all__ = ["ShortRun", "measure_quality", "remove_spectral_norm", "train_from_scratch"]


class ShortRun(NamedTuple):
    """A run that has ended.

    Attributes:
        trainer: What trained it.
        task: The data.
        losses: ``largest_energy_loss``, ``largest_second_moment`` (the root of it), ``nonfinite_losses``, and
            ``mean_lower_bound``: minus the energy's loss without the penalty, over the second half of the run.
    """

    trainer: Trainer
    task: tasks.TaskWorker
    losses: dict[str, Any]


def train_from_scratch(config: schema.Config, base_steps: int, spectral_norm: bool = True) -> ShortRun:
    """Train a model on the CPU.

    Args:
        config: The experiment.
        base_steps: Base steps.
        spectral_norm: Whether the energy keeps its spectral normalization.
    """
    device = torch.device("cpu")
    task = tasks.make(config).open(0, 1, device)
    batches = task.batches(Position())
    model = model_to_train(config, device)
    if not spectral_norm:
        remove_spectral_norm(model.energy)
    generator = step_generator(config, "log-partition", 0)
    initialize_log_partition(model, config.train.log_partition_samples, generator)
    trainer = make_trainer(model, config, device)
    largest, moment, nonfinite, bounds = float("-inf"), 0.0, 0, []
    for step in range(base_steps):
        info = trainer.step(batches, step_generator(config, "step", step))
        largest = max(largest, float(info.largest_energy_loss))
        moment = max(moment, float(trainer.energy_second_moment()))
        nonfinite += int(info.num_nonfinite)
        bounds.append(float(info.penalty - info.energy_loss))
    late = bounds[base_steps // 2 :]
    losses = {
        "largest_energy_loss": largest,
        "largest_second_moment": moment,
        "nonfinite_losses": nonfinite,
        "mean_lower_bound": sum(late) / len(late),
    }
    return ShortRun(trainer, task, losses)


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


def measure_quality(model: GEBM, task: tasks.TaskWorker, seed: int) -> dict[str, float]:
    """Return the quality of an energy on held-out data and on data that were trained on.

    Args:
        model: The model.
        task: The data.
        seed: Of the base samples that both are compared to.
    """
    samples = model.sample_base(4096, torch.Generator().manual_seed(seed), batch_size=1000)
    sets = {"held_out": task.held_out, "train": task.seen}
    qualities = {name: energy_quality(model, data, samples) for name, data in sets.items()}
    return {f"{name}_{key}": value for name, quality in qualities.items() for key, value in quality._asdict().items()}
