"""Searches over the sampler alone, of a model that is trained already."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError

__all__ = ["check_sampler_search", "is_sampler_search", "samples_only"]


def samples_only(keys: Collection[str]) -> bool:
    """Return whether trials that differ in these keys only sample a model that is trained already.

    Args:
        keys: Keys of the experiment that a search sets.

    Example:
        >>> samples_only(["sampler.step_size", "sampler.beta"]), samples_only(["sampler.beta", "seed"])
        (True, False)
    """
    return bool(keys) and all(key.startswith("sampler.") for key in keys)


def is_sampler_search(config: Config) -> bool:
    """Return whether a search is over the sampler alone, of a model that is trained already.

    Args:
        config: The experiment, with its ``sweep.space``.
    """
    return samples_only(config.sweep.space)


def check_sampler_search(config: Config) -> None:
    """Refuse a search over the sampler alone that has no model, or a scheduler that finds nothing to decide by.

    Args:
        config: The experiment, of which :func:`is_sampler_search` holds.

    Raises:
        UserError: It cannot be run; one line says what to change.
    """
    scheduler, metric = config.sweep.scheduler, config.sweep.metric
    if config.checkpoint is None and config.model.base is None:
        raise UserError(
            "a search over the sampler alone needs a trained model: give checkpoint=<a trial's folder>, or model.base "
            "and model.energy"
        )
    if scheduler == "pbt":
        raise UserError(
            "sweep.scheduler=pbt: a search over the sampler alone trains nothing that one trial could take over from "
            "another; use asha or none"
        )
    if scheduler == "asha" and not metric.endswith("_gebm"):
        raise UserError(
            f"sweep.scheduler=asha: sweep.metric={metric} is the same at each point of a chain; rank by a score of the "
            f"GEBM, or use sweep.scheduler=none"
        )
    if scheduler == "asha" and config.evaluation.chain_points == 1:
        raise UserError(
            "sweep.scheduler=asha: evaluation.chain_points=1 leaves no point before a chain's end at which a setting "
            "could be pruned; raise it, or use sweep.scheduler=none"
        )
