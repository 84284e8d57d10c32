"""Random numbers of one step of the training."""

from __future__ import annotations

import hashlib

import torch

from pipeline import config as schema

__all__ = ["step_generator"]


def step_generator(config: schema.Config, purpose: str, step: int) -> torch.Generator:
    """Return the random-number generator of one step, a function of seed and step and of nothing before.

    So a resumed run draws what an undisturbed one would have drawn, and a checkpoint needs no generator's state. All
    workers have the same generator, and each takes its own rows of what is drawn for all. It is the CPU's, whatever the
    device: a seed has the same numbers on every machine.

    Args:
        config: ``seed``.
        purpose: ``step``, ``log-partition`` or ``final-phase``.
        step: Base steps done before; of the final phase, energy steps.
    """
    # The zero was a worker's rank once, and keeps the numbers that a seed has had on a CPU what they were.
    text = f"{config.seed}/0/{purpose}/{step}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)
