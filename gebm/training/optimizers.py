"""Optimizers of the two parts: Adam with the paper's moments, and learning rates that fall with the base step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import Adam

__all__ = ["Schedule", "adam"]


def adam(
    parameters: Iterable[nn.Parameter],
    lr: float,
    betas: tuple[float, float] = (0.5, 0.999),
    weight_decay: float = 0.0,
) -> Adam:
    """Return Adam with the paper's betas, fused into one kernel.

    Args:
        parameters: The parameters that it owns.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        weight_decay: L2 of the weights; a 0-dim parameter, the log-partition, is left out, for it has no reason to be
            near zero.

    Returns:
        The optimizer.

    Raises:
        TypeError: If ``parameters`` are none.

    Example:
        >>> adam(nn.Linear(2, 1).parameters(), lr=1e-4).defaults["betas"]
        (0.5, 0.999)
    """
    if isinstance(parameters, nn.Module):
        raise TypeError(f"parameters is the module {type(parameters).__name__}: pass its parameters()")
    parameters = list(parameters)
    if not all(isinstance(parameter, Tensor) for parameter in parameters):
        raise TypeError("parameters must be tensors, not pairs with their names: pass parameters()")
    groups = [
        {"params": [p for p in parameters if p.dim() > 0], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() == 0], "weight_decay": 0.0},
    ]
    return Adam([group for group in groups if group["params"]], lr=lr, betas=betas, fused=True)


@dataclass(frozen=True)
class Schedule:
    """Factor of both learning rates at each base step.

    Late in a run the noise of the steps is what moves the energy; with rates that fall to zero it settles.

    Args:
        shape: ``"constant"``; ``"linear"``, down to zero; or ``"cosine"``, half a wave down to zero (Loshchilov and
            Hutter 2017).
        num_steps: Base steps until zero.

    Raises:
        ValueError: If the shape is another, or there is no step.

    Example:
        >>> [round(Schedule("cosine", num_steps=4)(step), 2) for step in range(5)]
        [1.0, 0.85, 0.5, 0.15, 0.0]
    """

    shape: Literal["constant", "linear", "cosine"] = "constant"
    num_steps: int = 1

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "linear", "cosine"):
            raise ValueError(f"no schedule {self.shape!r}: choose constant, linear or cosine")
        if self.num_steps < 1:
            raise ValueError(f"a schedule over {self.num_steps} steps: choose at least 1")

    def __call__(self, base_step: int) -> float:
        """Return the factor.

        Args:
            base_step: Base steps done before.

        Returns:
            One at the start; beyond the last step it stays what it was there.
        """
        if self.shape == "constant":
            return 1.0
        done = min(base_step / self.num_steps, 1.0)
        return 1.0 - done if self.shape == "linear" else (1.0 + math.cos(math.pi * done)) / 2
