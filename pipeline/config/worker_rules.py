"""Rules of a trial's workers: how many there may be, what they share out evenly, and their share of a GPU."""

from __future__ import annotations

import math

from pipeline.config.schema import Config, Data
from pipeline.runtime.errors import UserError

__all__ = ["check_gpus", "check_lanes", "check_scale", "required_multiple"]

# Workers of more trials than this would not find room for their contexts on a GPU.
_LEAST_GPU_SHARE = 0.01


def required_multiple(config: Config, key: str) -> int:
    """Return the number that the values of a key have to be multiples of; 1 where any will do.

    Args:
        config: The experiment.
        key: Dotted name of a whole number.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}, "scale": {"num_workers": 3, "min_workers": 2}})
        >>> required_multiple(config, "train.batch_size"), required_multiple(config, "sampler.num_steps")
        (6, 1)
    """
    if key in ("train.batch_size", "train.latent_batch_size"):
        return math.lcm(*_possible_workers(config))
    return config.train.learning_rate_decay.every if key == "train.learning_rate_decay.lag" else 1


def check_scale(config: Config) -> None:
    """Refuse numbers of workers that cannot be, and batches that they cannot share out."""
    if (config.ray.address or "").startswith("ray://"):
        raise UserError(
            f"ray.address={config.ray.address}: a sweep is driven from within the cluster; start this command on one "
            f"of its machines with ray.address=auto, for example with `ray job submit`"
        )
    fewest, most = config.scale.min_workers or config.scale.num_workers, config.scale.num_workers
    if fewest > most:
        raise UserError(f"scale.min_workers={fewest}: it cannot be more than scale.num_workers={most}")
    workers = _describe_workers(config)
    for key, size in (("batch_size", config.train.batch_size), ("latent_batch_size", config.train.latent_batch_size)):
        multiple = required_multiple(config, f"train.{key}")
        if size is not None and size % multiple:
            raise UserError(
                f"train.{key}={size} cannot be shared out evenly among {workers}: make it a multiple of {multiple}"
            )


def check_gpus(config: Config) -> None:
    """Refuse a share of a GPU that no worker, or not each of several, can have."""
    share, workers = config.scale.gpus_per_worker, config.scale.num_workers
    if share is None:
        return
    if config.scale.use_gpu is False:
        raise UserError(f"scale.gpus_per_worker={share}: scale.use_gpu=false uses none; leave out one of them")
    if share == "auto":
        return
    if isinstance(share, str) or not _LEAST_GPU_SHARE <= share < math.inf or (share > 1 and share != int(share)):
        raise UserError(
            f"scale.gpus_per_worker={share}: it has to be a fraction from {_LEAST_GPU_SHARE:g} to 1, a whole number, "
            f"or auto"
        )
    if share < 1 and workers > 1:
        raise UserError(
            f"scale.gpus_per_worker={share}: the scale.num_workers={workers} workers of a trial need a GPU each, since "
            f"NCCL connects no two on one; use scale.num_workers=1, or scale.gpus_per_worker=1"
        )


def check_lanes(config: Config) -> None:
    """Refuse lanes that the workers of a trial cannot share out; a store that may be held has them only if named."""
    lanes, multiple = config.data.lanes, math.lcm(*_possible_workers(config))
    named = config.data.device_resident is False or lanes != Data.lanes
    if named and not config.data.device_resident and lanes > 1 and lanes % multiple:
        raise UserError(
            f"data.lanes={lanes} cannot be shared out evenly among {_describe_workers(config)}: make it a multiple of "
            f"{multiple}, such as {multiple * max(1, round(lanes / multiple))}, or 1"
        )


def _describe_workers(config: Config) -> str:
    fewest, most = config.scale.min_workers or config.scale.num_workers, config.scale.num_workers
    return f"scale.num_workers={most}" if fewest == most else f"{fewest} to {most} workers (scale.min_workers)"


def _possible_workers(config: Config) -> range:
    """Return the numbers of workers that a trial may run on."""
    return range(config.scale.min_workers or config.scale.num_workers, config.scale.num_workers + 1)
