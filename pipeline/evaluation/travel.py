"""Distance that chains have travelled, and a warning where it is next to nothing.

A chain that hardly moves gives the base's own samples, and with them the base's scores under the GEBM's name.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.config.kernels import kernel_settings
from pipeline.config.schema import Sampler

__all__ = ["LEAST_ACCEPTANCE", "LEAST_SHARE", "judge_travel", "measure_travel"]

LEAST_SHARE = 0.01
"""Least mean distance between a chain's start and its end, as a share of that between two independent starts.

Of a standard normal prior the latter is about ``(2 D)^(1/2)``. A share ``s`` means that start and end correlate by
``1 - s^2`` where the prior is what chains leave invariant: by more than 0.9999 below this share.
"""

LEAST_ACCEPTANCE = 0.1
"""Share of accepted proposals below which chains that hardly move do so since they propose too much."""


def measure_travel(start: Tensor, end: Tensor) -> dict[str, float]:
    """Return how far chains are from their starts, in the units of the latents, and as a share.

    Args:
        start: First latents (N, D), drawn independently.
        end: Last latents (N, D), of the same chains.

    Returns:
        ``chain_distance``, the mean Euclidean distance between a chain's start and its end; and, of two chains at
        least, ``chain_distance_share``, its ratio to the mean distance between the starts of two chains.

    Example:
        >>> import torch
        >>> start = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> measure_travel(start, start + torch.tensor([3.0, 4.0]))
        {'chain_distance': 5.0, 'chain_distance_share': 1.0}
    """
    distance = (end - start).double().norm(dim=1).mean()
    between = (start - start.roll(1, dims=0)).double().norm(dim=1).mean()
    measures = {"chain_distance": distance, **({"chain_distance_share": distance / between} if between > 0 else {})}
    return {name: float(value) for name, value in measures.items()}


def judge_travel(scores: dict[str, float], sampler: Sampler) -> list[str]:
    """Return a warning where chains hardly moved; the same line at each evaluation.

    Args:
        scores: Scores of an evaluation, with those of :func:`measure_travel`.
        sampler: The sampler.

    Example:
        >>> len(judge_travel({"chain_distance_share": 0.5}, Sampler()))
        0
        >>> judge_travel({"chain_distance_share": 1e-4}, Sampler(name="kla", step_size=5e-5))[0].partition(" take ")[0]
        'chains hardly move: 1000 steps of sampler.name=kla at sampler.step_size=5e-05'
        >>> rejected = {"chain_distance_share": 0.0, "acceptance_rate": 0.0}
        >>> judge_travel(rejected, Sampler(name="mala", step_size=9.0))[0].partition("; ")[2]
        'lower sampler.step_size: nearly all proposals are rejected'
    """
    if not scores.get("chain_distance_share", 1.0) < LEAST_SHARE:
        return []
    used = kernel_settings(sampler)
    # A proposal that goes too far is rejected.
    if scores.get("acceptance_rate", 1.0) < LEAST_ACCEPTANCE:
        advice = "lower sampler.step_size: nearly all proposals are rejected"
    else:
        advice = "raise sampler.step_size, or leave it to the kernel"
    return [
        f"chains hardly move: {used.num_steps} steps of sampler.name={used.name} at sampler.step_size="
        f"{used.step_size:g} take them less than {LEAST_SHARE:.0%} as far as two independent latents are apart, so "
        f"that scores of the GEBM are the base's; {advice}"
    ]
