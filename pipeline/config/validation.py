"""What has to hold of an experiment before anything starts, beyond what the schema's types say.

Every refusal is one line that names the key and what it may be. What the method itself refuses is asked of the method:
its objects are built, on a device that allocates nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from operator import attrgetter

import torch

from gebm import StandardNormal, networks, objectives, penalties, samplers
from gebm.samplers import StepDecay
from gebm.training import gradient_guard
from gebm.training.optimizers import Schedule
from gebm.training.plateau import PlateauDecay
from pipeline.config.precision import BF16_SAFE_SAMPLERS, PRECISIONS
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, one_line

__all__ = ["FEWEST_SAMPLES", "validate"]

_SEEDS = 2**31  # what torch, NumPy and Optuna all take, with room for what is added to it
# With fewer samples a metric is not defined: a covariance; two subsets of two; one sample a split; a third neighbour.
FEWEST_SAMPLES = {"fid": 2, "kid": 4, "is": 10, "prc": 4}
# The scores that each of evaluation.metrics gives, by which a sweep of images can rank its trials.
_SCORES = {"fid": ("fid",), "kid": ("kid",), "is": ("is",), "prc": ("precision", "recall")}
# The networks that fit each task, and the encodings of its stores.
_NETWORKS = {
    "images": ("dcgan", "sngan_convnet", "sngan_resnet"),
    "density": networks.flows.FLOWS,
    "points": networks.VECTORS,
}
_CHAINS = ("ula", "mala", "hmc", "rwm")  # what moves negatives: kernels that need no prior and no friction
_EXACT = ("mala", "hmc", "rwm")  # what leaves a law at a temperature alone, as annealed importance sampling needs
_LOG_PARTITIONS = ("auto", "monte_carlo", "trained", "annealed")
_ENCODINGS = {"images": ("blocks", "images"), "density": ("rows",), "points": ("rows",)}
_POSITIVE = (  # where they are set at all
    "data.resolution",
    "data.max_correlation",
    "data.channels",
    "data.samples_per_shard",
    "data.cache_limit_gib",
    "data.timeout",
    "model.latent_dim",
    "train.energy_steps",
    "train.warmup_energy_steps",
    "train.warmup_every",
    "train.batch_size",
    "train.energy_lr",
    "train.base_lr",
    "train.report_every",
    "train.final_phase.energy_lr",
    "train.final_phase.check_every",
    "train.penalty_every",
    "train.negatives.step_size",
    "train.negatives.num_steps",
    "train.learning_rate_decay.every",
    "train.learning_rate_decay.num_samples",
    "sampler.step_size",
    "sampler.num_steps",
    "sampler.num_samples",
    "sampler.decay",
    "sampler.decay_every",
    "evaluation.every",
    "evaluation.batch_size",
    "evaluation.chain_points",
    "evaluation.grid",
    "evaluation.temperatures",
    "checkpoints.every",
    "scale.num_workers",
    "scale.min_workers",
    "scale.cpus_per_worker",
    "scale.timeout",
    "sweep.num_trials",
    "sweep.grid_size",
    "data.num_writers",
    "train.latent_batch_size",
    "sweep.grace_steps",
    "sweep.perturbation_steps",
    "sweep.max_concurrent",
)
_NOT_NEGATIVE = (
    "train.base_steps",
    "train.warmup_base_steps",
    "tracking.flush_timeout",
    "scale.max_restarts",
    "train.max_nonfinite_restarts",
    "train.log_partition_samples",
    "train.final_energy_steps",
    "train.final_phase.penalty",
    "train.final_phase.patience",
    "data.held_out",
    "evaluation.seed",
    "train.penalty",
    "train.weight_decay",
    "sampler.beta",
    "sampler.friction",
    "data.num_workers",
    "data.prefetch_shards",
    "data.max_bad_shards",
)


def validate(config: Config) -> None:
    """Refuse what cannot run, before anything starts.

    Args:
        config: the experiment.

    Raises:
        UserError: one line that names the key and what it may be.
    """
    for check in (_numbers, _names, _data, _scores, _objective, _sampler, _sweep, _scale, _parts):
        check(config)


def _numbers(config: Config) -> None:
    for key in _POSITIVE:
        value = attrgetter(key)(config)
        if value is not None and (not value > 0 or not math.isfinite(value)):
            raise UserError(f"{key}={value}: it has to be positive and finite")
    for key in _NOT_NEGATIVE:
        value = attrgetter(key)(config)
        if value is not None and (not value >= 0 or not math.isfinite(value)):
            raise UserError(f"{key}={value}: it cannot be negative, and has to be finite")
    if config.train.log_partition_samples == 1:
        raise UserError("train.log_partition_samples=1: an estimate needs 2 at least, and 0 is none")
    for key, value in (("train.beta1", config.train.beta1), ("train.beta2", config.train.beta2)):
        if not 0 <= value < 1:
            raise UserError(f"{key}={value}: it has to be at least 0 and below 1")
    if config.data.split_seed is not None and not 0 <= config.data.split_seed < _SEEDS:
        raise UserError(f"data.split_seed={config.data.split_seed}: it has to be at least 0 and below {_SEEDS}")
    if not 0 <= config.seed < _SEEDS:
        raise UserError(f"seed={config.seed}: it has to be at least 0 and below {_SEEDS}")
    if not math.isfinite(config.model.energy_offset):
        raise UserError(f"model.energy_offset={config.model.energy_offset}: it has to be finite")
    if config.model.energy_floor is not None and not config.model.energy_floor < math.inf:
        raise UserError(f"model.energy_floor={config.model.energy_floor}: it has to be a number, or -.inf for none")
    if config.train.ema_decay is not None and not 0 < config.train.ema_decay < 1:
        raise UserError(f"train.ema_decay={config.train.ema_decay}: it has to lie between 0 and 1")


def _names(config: Config) -> None:
    if config.task not in _NETWORKS:
        raise UserError(f"task={config.task}: it has to be one of {', '.join(_NETWORKS)}")
    for key, value, known in (
        ("model.networks", config.model.networks, _NETWORKS[config.task]),
        ("train.objective", config.train.objective, objectives.NAMES),
        ("train.negatives.sampler", config.train.negatives.sampler, _CHAINS),
        ("train.penalty_kind", config.train.penalty_kind, penalties.NAMES),
        ("train.gradient_guard", config.train.gradient_guard, gradient_guard.NAMES),
        ("train.precision", config.train.precision, PRECISIONS),
        ("train.memory_format", config.train.memory_format, ("auto", "channels_last", "contiguous")),
        ("sampler.name", config.sampler.name, samplers.NAMES),
        ("sampler.precision", config.sampler.precision, PRECISIONS),
        ("evaluation.log_partition", config.evaluation.log_partition, _LOG_PARTITIONS),
        ("data.encoding", config.data.encoding, _ENCODINGS[config.task]),
        ("checkpoints.on_failure", config.checkpoints.on_failure, ("stop", "continue")),
        ("sweep.search", config.sweep.search, ("random", "grid", "optuna")),
        ("sweep.scheduler", config.sweep.scheduler, ("asha", "pbt", "none")),
        ("sweep.mode", config.sweep.mode, ("min", "max")),
    ):
        if value not in known:
            raise UserError(f"{key}={value}: it has to be one of {', '.join(known)}")


def _data(config: Config) -> None:
    if config.data.device_resident and config.data.num_workers:
        raise UserError(
            f"data.num_workers={config.data.num_workers}: with data.device_resident=true nothing is read while "
            "training; leave one of the two out"
        )
    if config.data.device_resident is False and config.task != "images":
        raise UserError(
            f"data.device_resident=false: task={config.task} is about rows, which are always held; leave it out"
        )
    if config.data.held_out and config.task != "images":
        raise UserError(
            f"data.held_out={config.data.held_out}: task={config.task} has validation rows for that; leave it out"
        )
    cache = config.data.cache
    if cache is not None and not cache.startswith(("/", "~")):
        raise UserError(f"data.cache={cache}: it has to be a folder of each machine, from / or ~ on")


def _scores(config: Config) -> None:
    unknown = [name for name in config.evaluation.metrics if name not in ("fid", "kid", "is", "prc")]
    if unknown:
        raise UserError(f"evaluation.metrics={unknown}: they have to be among fid, kid, is, prc")
    fewest = max(FEWEST_SAMPLES[name] for name in ("fid", *config.evaluation.metrics))
    if config.evaluation.num_samples < fewest:
        raise UserError(
            f"evaluation.num_samples={config.evaluation.num_samples}: evaluation.metrics need {fewest} at least"
        )
    ranks = _ranks(config)
    if config.sweep.metric not in ranks:
        more = "; evaluation.metrics adds more" if config.task == "images" else ""
        raise UserError(f"sweep.metric={config.sweep.metric}: it has to be one of {', '.join(ranks)}{more}")


def _objective(config: Config) -> None:
    """What an objective, a base and a task need of one another."""
    objective = objectives.make(config.train.objective)
    flow = config.model.networks in networks.flows.FLOWS
    if (objective.base_learns_from == "data" or objective.negatives.needs_density) and not flow:
        raise UserError(
            f"train.objective={config.train.objective}: it needs a base with a density, and model.networks="
            f"{config.model.networks} has none; use one of {', '.join(networks.flows.FLOWS)}"
        )
    if config.evaluation.log_partition not in ("auto", "monte_carlo") and config.task != "density":
        raise UserError(
            f"evaluation.log_partition={config.evaluation.log_partition}: task={config.task} has no likelihood to "
            f"compute with it; leave it out"
        )
    if config.evaluation.log_partition == "trained" and not objective.trains_log_partition:
        raise UserError(
            f"evaluation.log_partition=trained: train.objective={config.train.objective} trains no log-partition; use "
            f"monte_carlo or annealed"
        )
    if config.evaluation.log_partition == "annealed" and config.sampler.name not in _EXACT:
        raise UserError(
            f"sampler.name={config.sampler.name}: evaluation.log_partition=annealed needs an exact kernel, one of "
            f"{', '.join(_EXACT)}"
        )
    if config.task == "points" and not objective.trains_energy:
        raise UserError(f"train.objective={config.train.objective}: it trains no energy, and task=points samples one")
    _final_phase(config, objective)
    if not (config.train.train_base or objective.trains_energy):
        raise UserError(f"train.train_base=false: train.objective={config.train.objective} trains nothing but the base")


def _final_phase(config: Config, objective: objectives.Objective) -> None:
    steps, patience = config.train.final_energy_steps, config.train.final_phase.patience
    if steps and not objective.trains_energy:
        raise UserError(
            f"train.final_energy_steps={steps}: train.objective={config.train.objective} trains no energy; leave it out"
        )
    if steps and patience and config.task == "images" and not config.data.held_out:
        raise UserError(
            f"train.final_energy_steps={steps}: it stops by held-out images; set data.held_out to some hundreds, or "
            f"train.final_phase.patience=0 to take all steps"
        )


def _sampler(config: Config) -> None:
    if config.sampler.precision == "bfloat16" and (
        config.sampler.name not in BF16_SAFE_SAMPLERS or config.task != "images"
    ):
        raise UserError(
            f"sampler.precision=bfloat16: sampler.name={config.sampler.name} for task={config.task} needs float32; "
            f"only {', '.join(BF16_SAFE_SAMPLERS)} for images do without"
        )


def _sweep(config: Config) -> None:
    if config.sweep.scheduler == "pbt" and config.sweep.search == "optuna":
        raise UserError("sweep.search=optuna: sweep.scheduler=pbt makes proposals of its own; use random or grid")
    if config.sweep.reduction_factor < 2:
        raise UserError(f"sweep.reduction_factor={config.sweep.reduction_factor}: it has to be 2 at least")


def _scale(config: Config) -> None:
    if (config.ray.address or "").startswith("ray://"):
        raise UserError(
            f"ray.address={config.ray.address}: a sweep is driven from within the cluster; start this command on one "
            f"of its machines with ray.address=auto, for example with `ray job submit`"
        )
    fewest, most = config.scale.min_workers or config.scale.num_workers, config.scale.num_workers
    if fewest > most:
        raise UserError(f"scale.min_workers={fewest}: it cannot be more than scale.num_workers={most}")
    possible = range(fewest, most + 1)
    asked = f"scale.num_workers={most}" if fewest == most else f"{fewest} to {most} workers (scale.min_workers)"
    for key, size in (("batch_size", config.train.batch_size), ("latent_batch_size", config.train.latent_batch_size)):
        if size is not None and any(size % number for number in possible):
            raise UserError(
                f"train.{key}={size} cannot be shared out evenly among {asked}: make it a multiple of "
                f"{math.lcm(*possible)}"
            )


def _parts(config: Config) -> None:
    _build(
        "model",
        lambda: _networks(
            config.model.networks,
            config.data.resolution,
            config.data.channels,
            config.model.latent_dim,
            config.model.width,
            config.model.energy,
            config.model.energy_offset,
        ),
    )
    _build("sampler.decay", lambda: StepDecay(factor=config.sampler.decay, every=config.sampler.decay_every))
    _build(
        "sampler",
        lambda: samplers.make(
            config.sampler.name,
            step_size=config.sampler.step_size,
            friction=config.sampler.friction,
            prior=StandardNormal(config.model.latent_dim),
        ),
    )
    _build("train.schedule", lambda: Schedule(config.train.schedule, max(config.train.base_steps, 1)))
    decay = config.train.learning_rate_decay
    _build(
        "train.learning_rate_decay",
        lambda: PlateauDecay(
            torch.zeros(decay.num_samples, 1),
            factor=decay.factor,
            every=decay.every,
            lag=decay.lag,
            patience=decay.patience,
        ),
    )


def _ranks(config: Config) -> list[str]:
    """The scores that trials can be ranked by."""
    # By the validation rows, where there are such: the test rows choose nothing.
    if config.task == "density":
        return ["nll_gebm_validation", "nll_base_validation"]
    if config.task == "points":
        return ["distance_validation_gebm", "distance_validation_base"]
    measured = dict.fromkeys(score for name in ("fid", *config.evaluation.metrics) for score in _SCORES[name])
    return [f"{score}_{model}" for score in measured for model in ("gebm", "base")]


@functools.cache  # a search asks for the same ones at each end of each range
def _networks(
    name: str,
    resolution: int | None,
    channels: int,
    latent_dim: int,
    width: int | None,
    energy: str | None,
    offset: float,
) -> object:
    # A flow looks at its masks while it is built, which the meta device cannot; and it is small.
    with torch.device("cpu" if name in networks.flows.FLOWS else "meta"):
        return networks.make(
            name,
            resolution=resolution or 0,
            channels=channels,
            latent_dim=latent_dim,
            width=width,
            energy=energy,
            offset=offset,
        )


def _build(key: str, make: Callable[[], object]) -> None:
    """What the method itself refuses, it refuses here; nothing is allocated."""
    try:
        with torch.device("meta"):
            make()
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:  # sizes that no memory has
        raise UserError(f"{key}: these sizes are impossible ({one_line(error, limit=200)})") from None
