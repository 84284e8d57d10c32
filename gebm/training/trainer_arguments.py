"""Checks of a trainer's arguments: of their kinds, their ranges, and whether they go together."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from gebm import inputs
from gebm.energies import Density
from gebm.model import GEBM
from gebm.objectives import Objective
from gebm.objectives.negatives import BaseDraws, DataChain, LatentChain, Negatives

__all__ = ["as_decay", "require_kinds", "require_optimizers", "require_parts_that_fit"]

# What an object of each kind has, and one that could be passed.
_KINDS = {
    "gebm": (("base", "energy", "prior", "log_partition"), "gebm.GEBM(base, energy, prior)"),
    "objective": (("energy_loss", "base_loss", "negatives"), "gebm.KALE()"),
    "penalty": (("draw", "__call__"), "gebm.GradientPenalty(0.1)"),
    "alternation": (("energy_steps_at",), "gebm.Alternation(energy_steps=5)"),
    "schedule": (("__call__",), "gebm.Schedule('cosine', num_steps=1000)"),
    "gradient_guard": (("__call__",), "gebm.ClipGradients()"),
    "negatives": (("draw", "needs_density"), "gebm.LatentChain()"),
}


def require_kinds(**arguments: Any) -> None:
    """Raise a TypeError unless each argument is an object of the kind of its name.

    Args:
        arguments: Arguments of a trainer, by name.

    Example:
        >>> require_kinds(penalty=0.1)
        Traceback (most recent call last):
        ...
        TypeError: penalty must have draw, __call__, which 0.1 lacks: pass for example gebm.GradientPenalty(0.1)
    """
    for name, value in arguments.items():
        methods, instead = _KINDS[name]
        inputs.require_methods(name, value, methods, instead)


def as_decay(decay: Any) -> float | None:
    """Return the decay of the base's moving average as a number in (0, 1), or ``None`` for no average.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.

    Example:
        >>> as_decay(0.999), as_decay(None)
        (0.999, None)
    """
    if decay is None:
        return None
    number = inputs.as_number("ema_decay", decay)
    if not 0 < number < 1:
        raise ValueError(f"the average's decay is {decay!r}: choose a number between 0 and 1, or none")
    return number


def require_parts_that_fit(base: nn.Module, objective: Objective, negatives: Negatives, train_base: bool) -> None:
    """Raise a ValueError if nothing is left to train, or the parts of a trainer do not go together.

    The losses may need a density that the base does not have. And an objective of base samples learns another energy
    from the ends of chains: under KALE they are samples of the model, and ``exp(-2 E) dB`` comes to be the data.

    Args:
        base: The model's base.
        objective: The pair of losses.
        negatives: Source of the energy's negatives.
        train_base: Whether there are base steps.
    """
    if not (train_base or objective.trains_energy):
        raise ValueError(f"{objective} trains no energy, and train_base is off: nothing is left to train")
    needs_density = (train_base and objective.base_learns_from == "data") or negatives.needs_density
    if needs_density and not isinstance(base, Density):
        raise ValueError(f"{objective} needs a base with a density, not {type(base).__name__}: use a flow")
    if isinstance(negatives, LatentChain | DataChain) and isinstance(objective.negatives, BaseDraws):
        raise ValueError(
            f"{objective} learns from samples of the base, not from the ends of a {type(negatives).__name__}: leave "
            "negatives out, or give the chains to ContrastiveDivergence"
        )


def require_optimizers(
    gebm: GEBM,
    objective: Objective,
    train_base: bool,
    energy_optimizer: Optimizer | None,
    base_optimizer: Optimizer | None,
) -> None:
    """Raise an error unless each optimizer owns the parameters of its part.

    Args:
        gebm: The model.
        objective: The pair of losses, which may leave the energy or the log-partition alone.
        train_base: Whether there are base steps.
        energy_optimizer: Of the energy and the log-partition; needed where the objective trains the energy.
        base_optimizer: Of the base; needed where there are base steps.

    Raises:
        TypeError: If one is no optimizer.
        ValueError: If one lacks parameters of its part, or owns others.
    """
    if energy_optimizer is not None or objective.trains_energy:
        parameters = dict(gebm.energy.named_parameters())
        parameters["log_partition"] = gebm.log_partition
        # What this objective leaves alone need not be owned.
        optional = () if objective.trains_log_partition else ("log_partition",)
        part = "the energy and log_partition"
        inputs.require_optimizer("energy_optimizer", energy_optimizer, parameters, part, optional)
    if base_optimizer is not None or train_base:
        parameters = dict(gebm.base.named_parameters())
        inputs.require_optimizer("base_optimizer", base_optimizer, parameters, "the base")
