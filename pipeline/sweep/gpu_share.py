"""Share of a GPU that a trial gets: what its worker asks Ray for, and which share the first trial says would fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.config.sampler_search import is_sampler_search

__all__ = ["gpus_per_worker", "suggest_share"]

# Part of a GPU's memory that stays free of trials' tensors, by that of all of them: each process has a context of its
# own, and later evaluations may need more.
_MARGIN = 1.25


def gpus_per_worker(config: Config) -> float:
    """Return the GPUs of a worker, of a trial that uses GPUs; while the share is to be found, a whole one.

    Args:
        config: The experiment, with ``scale.gpus_per_worker``.
    """
    share = config.scale.gpus_per_worker
    return 1.0 if share is None or share == "auto" else float(share)


def suggest_share(config: Config, system: Mapping[str, Any]) -> str:
    """Return in a line which share of a GPU a trial would have had enough memory with, or why none can be named.

    Args:
        config: The experiment.
        system: System metrics of a trial's first worker, from :class:`pipeline.runtime.system_metrics.SystemMetrics`,
            with its peak.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}})
        >>> suggest_share(config, {"gpu_0_peak_memory_percentage": 18.0, "gpu_0_utilization_percentage": 40.0})
        'scale.gpus_per_worker=0.25 would fit, 4 trials a GPU: peak memory 18 % of a GPU, utilization 40 %'
        >>> suggest_share(config, {"gpu_0_peak_memory_percentage": 60.0})
        'scale.gpus_per_worker=1 is what fits: peak memory 60 % of a GPU'
        >>> suggest_share(config, {})
        'scale.gpus_per_worker=auto has no advice: the trial had no GPU, or did not measure its memory'
    """
    peak, busy = system.get("gpu_0_peak_memory_percentage"), system.get("gpu_0_utilization_percentage")
    if not isinstance(peak, int | float) or not math.isfinite(peak):
        return "scale.gpus_per_worker=auto has no advice: the trial had no GPU, or did not measure its memory"
    measured = f"peak memory {peak:.0f} % of a GPU" + ("" if busy is None else f", utilization {busy:.0f} %")
    workers = config.scale.num_workers
    if workers > 1 and not is_sampler_search(config):
        return (
            f"scale.gpus_per_worker=1 is what fits: the scale.num_workers={workers} workers of a trial need a GPU "
            f"each, since NCCL connects no two on one ({measured})"
        )
    # In hundredths, the least that is accepted.
    trials = 100 // max(math.ceil(peak * _MARGIN), 1)
    if trials < 2:
        return f"scale.gpus_per_worker=1 is what fits: {measured}"
    # A trial that only samples has one worker, whatever the key says, and a fraction is accepted of one alone.
    alone = "" if workers == 1 else "scale.num_workers=1 "
    return f"{alone}scale.gpus_per_worker={100 // trials / 100:g} would fit, {trials} trials a GPU: {measured}"
