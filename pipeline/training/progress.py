"""Progress report of a trial: losses, speed and learning rates; and the steps and evaluations that are left."""

from __future__ import annotations

import math

import torch

from gebm.training import StepInfo, Trainer
from pipeline.config import Config
from pipeline.runtime.errors import NonFiniteLoss

__all__ = ["evaluation_due", "evaluations_left", "progress", "require_finite", "steps_between"]


def evaluation_due(config: Config, base_step: int) -> bool:
    """Return whether there is an evaluation after ``base_step`` base steps; after the last there always is."""
    return base_step % config.evaluation.every == 0 or base_step >= config.train.base_steps


def evaluations_left(config: Config, base_step: int) -> int:
    """Return how many evaluations are still to come."""
    if base_step >= config.train.base_steps:
        return 0
    return -(-config.train.base_steps // config.evaluation.every) - base_step // config.evaluation.every


def require_finite(infos: list[StepInfo], base_step: int) -> None:
    """Refuse to continue from a loss that is NaN or infinite.

    Args:
        infos: The steps up to ``base_step``.
        base_step: Base steps done.

    Raises:
        NonFiniteLoss: A loss is not finite; the message names the step.
    """
    if not infos:
        return
    broken = torch.stack([info.num_nonfinite for info in infos]).cpu().nonzero()
    if len(broken):
        row = int(broken[0])
        raise NonFiniteLoss(
            f"a loss is not finite at base step {base_step - len(infos) + row + 1}: "
            f"energy loss {infos[row].energy_loss.item()}, base loss {infos[row].base_loss.item()}; "
            f"lower train.energy_lr or train.base_lr"
        )


def progress(infos: list[StepInfo], trainer: Trainer, config: Config, *, seconds: float) -> dict[str, float]:
    """Return the numbers of the steps since the last report. Only reports wait for the device, not every step.

    Args:
        infos: The steps since the last report, one at least.
        trainer: Their trainer.
        config: The experiment.
        seconds: How long they took.

    Returns:
        The numbers by name, those that are finite: a mean over no steps, such as an energy's under maximum
        likelihood, is NaN and left out.
    """
    seconds = max(seconds, 1e-9)
    losses = torch.stack([torch.stack([info.energy_loss, info.base_loss]) for info in infos]).float().cpu()
    largest = torch.stack([info.largest_energy_loss for info in infos]).float().cpu().max()
    newest = infos[-1]
    # A base that learns from data takes a batch where no energy step has.
    at_least = int(trainer.train_base and trainer.objective.base_learns_from == "data")
    images = sum(max(info.energy_steps, at_least) for info in infos) * config.train.batch_size
    numbers = {
        "base_step": trainer.base_step,
        "energy_loss": losses[:, 0].mean().item(),
        "largest_energy_loss": largest.item(),
        "base_loss": losses[:, 1].mean().item(),
        "penalty": newest.penalty.item(),
        "energy_data": newest.energy_data.item(),
        "energy_base": newest.energy_base.item(),
        "log_partition": newest.log_partition.item(),
        "base_steps_per_second": len(infos) / seconds,
        "images_per_second": images / seconds,
        "energy_lr": _learning_rate(trainer.energy_optimizer),
        "base_lr": _learning_rate(trainer.base_optimizer),
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def steps_between(trainer: Trainer, start: int, stop: int) -> int:
    """Return how many energy steps and base steps are taken from one base step to another."""
    alternation = trainer.alternation
    energy_steps = alternation.energy_steps_before(stop) - alternation.energy_steps_before(start)
    return (stop - start) * trainer.train_base + energy_steps * trainer.objective.trains_energy


def _learning_rate(optimizer: torch.optim.Optimizer | None) -> float:
    """Return the present learning rate; NaN without an optimizer."""
    return math.nan if optimizer is None else optimizer.param_groups[0]["lr"]
