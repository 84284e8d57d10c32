"""Validation of a config before anything starts, beyond what the schema's types say.

Every refusal is a one-line message that names the key and what it may be. Bounds and choices are those of the schema's
fields; what follows them here are the rules between keys. What :mod:`gebm` itself refuses is not repeated: its objects
are built, on a device that allocates nothing.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, cast

import torch

from gebm import StandardNormal, networks, objectives, samplers
from gebm.samplers import StepDecay
from gebm.training.optimizers import Schedule
from gebm.training.plateau_decay import PlateauDecay
from pipeline.config import metrics, part_settings
from pipeline.config.fields import keys
from pipeline.config.kernels import kernel_settings
from pipeline.config.network_shapes import check_networks, try_to_build
from pipeline.config.networks import check_shared_keys
from pipeline.config.part_checks import check_parts, checked_objective
from pipeline.config.ranking import mode_of, rankable_scores
from pipeline.config.schema import Config, Evaluation
from pipeline.config.tasks import facts_of, networks_of, networks_with_density
from pipeline.config.worker_rules import check_gpus, check_lanes, check_scale
from pipeline.runtime.errors import UserError

__all__ = [
    "FEWEST_FOR_FID_INFINITY",
    "validate",
    "validate_image_scores",
    "validate_rules",
    "validate_store",
]

# Fifteen subsets of different sizes, the smallest of ten samples.
FEWEST_FOR_FID_INFINITY = 150


def validate(config: Config) -> None:
    """Refuse what cannot run, before anything starts.

    Args:
        config: The experiment.

    Raises:
        UserError: A key or a combination of keys is impossible; the message is one line that names it.
    """
    validate_rules(config)
    check_networks(config)
    check_parts(config)


def validate_rules(config: Config) -> None:
    """Refuse what cannot run, as :func:`validate` does, without building the networks, which takes seconds.

    Args:
        config: The experiment.

    Raises:
        UserError: As :func:`validate`.
    """
    _check_rules(config, tuple(part_settings.GROUPS))


def validate_before_weights(config: Config) -> None:
    """Refuse what cannot run, as :func:`validate_rules` does, where weights that say the networks' settings are unread.

    Args:
        config: The experiment, with ``model.base``.

    Raises:
        UserError: As :func:`validate`.
    """
    _check_rules(config, tuple(group for group in part_settings.GROUPS if group != "model.settings"))


def _check_rules(config: Config, groups: tuple[str, ...]) -> None:
    """Refuse what cannot run; of the settings of parts, those of some groups are looked at."""
    for check in (
        _check_fields,
        _check_images,
        _check_task,
        check_shared_keys,
        lambda config: part_settings.check(config, groups),
        _check_data,
        _check_scores,
        _check_objective,
        _check_sampler,
        _check_warm_up,
        _check_sweep,
        check_scale,
        check_gpus,
        check_lanes,
        _check_components,
    ):
        check(config)


def validate_store(config: Config) -> None:
    """Refuse what makes no store. A store is data only: any network may be trained on it later.

    Args:
        config: The experiment, of which ``data`` is looked at.

    Raises:
        UserError: A key or a combination of keys is impossible; the message is one line that names it.
    """
    for group in ("data.", "task"):
        _check_fields(config, group)
    _check_encoding(config)


def validate_image_scores(config: Config) -> None:
    """Refuse what scores no images. They need no model, and no experiment.

    Args:
        config: ``images``, ``against``, ``checkpoint`` and ``evaluation``.

    Raises:
        UserError: A key or a combination of keys is impossible; the message is one line that names it.
    """
    if config.checkpoint is not None:
        raise UserError(
            f"checkpoint={config.checkpoint}: images=... are scored against=... a store without a model; leave it out, "
            "or leave them out"
        )
    if config.images is None or config.against is None:
        given, lacking = ("against", "images") if config.images is None else ("images", "against")
        raise UserError(
            f"{given}={getattr(config, given)}: images are scored against a store; add {lacking}="
            + ("<the store>" if lacking == "against" else "<a folder, archive, array or store>")
        )
    for group in ("data.", "evaluation.", "seed"):
        _check_fields(config, group)
    _check_metrics(config.evaluation)
    if not config.evaluation.metrics:
        raise UserError(f"evaluation.metrics=[]: name some of {', '.join(metrics.names())}, or leave it out for all")


def _check_fields(config: Config, prefix: str = "") -> None:
    for key in keys(Config):
        if not key.name.startswith(prefix):
            continue
        value = attrgetter(key.name)(config)
        if requirement := key.rule.refusal(value):
            raise UserError(f"{key.name}={value}: it {requirement}")


def _check_images(config: Config) -> None:
    for name, value in (("images", config.images), ("against", config.against)):
        if value is not None:
            raise UserError(f"{name}={value}: it is a key of `python -m pipeline.evaluate` alone; leave it out")


def _check_task(config: Config) -> None:
    names = networks_of(config.task)
    if not names:
        raise UserError(
            f"task={config.task}: no networks are for it; register some with tasks=({config.task!r},), or it with like="
            "'images', 'points' or another task whose networks it takes"
        )
    if config.model.networks not in names:
        raise UserError(f"model.networks={config.model.networks}: it has to be one of {', '.join(names)}")
    _check_encoding(config)


def _check_encoding(config: Config) -> None:
    names = facts_of(config.task).encodings
    if config.data.encoding not in names:
        raise UserError(f"data.encoding={config.data.encoding}: it has to be one of {', '.join(names)}")


def _check_data(config: Config) -> None:
    if config.data.device_resident and config.data.num_workers:
        raise UserError(
            f"data.num_workers={config.data.num_workers}: with data.device_resident=true nothing is read while "
            "training; leave one of the two out"
        )
    if config.data.device_resident is False and facts_of(config.task).of == "rows":
        raise UserError(
            f"data.device_resident=false: task={config.task} is about rows, which are always held; leave it out"
        )
    if config.data.held_out and facts_of(config.task).splits:
        raise UserError(
            f"data.held_out={config.data.held_out}: task={config.task} has validation rows for that; leave it out"
        )
    cache = config.data.cache
    if cache is not None and not cache.startswith(("/", "~")):
        raise UserError(f"data.cache={cache}: it has to be a folder of each machine, from / or ~ on")


def _check_metrics(evaluation: Evaluation) -> None:
    # A checkpoint's config may hold anything.
    unknown = [name for name in evaluation.metrics if not (isinstance(name, str) and name in metrics.names())]
    if unknown:
        raise UserError(f"evaluation.metrics={unknown}: they have to be among {', '.join(metrics.names())}")


def _check_scores(config: Config) -> None:
    _check_metrics(config.evaluation)
    fewest = max(metrics.metric(name).fewest for name in ("fid", *config.evaluation.metrics))
    if config.evaluation.num_samples < fewest:
        raise UserError(
            f"evaluation.num_samples={config.evaluation.num_samples}: evaluation.metrics need {fewest} at least"
        )
    final = config.evaluation.final_samples
    if final is not None and final < fewest:
        raise UserError(f"evaluation.final_samples={final}: evaluation.metrics need {fewest} at least")
    if config.evaluation.per_class and not networks.is_conditional(config.model.networks):
        raise UserError(
            f"evaluation.per_class=true: model.networks={config.model.networks} has no classes; leave it out, or use "
            f"{', '.join(name for name in networks.NAMES if networks.is_conditional(name))}"
        )
    least = min(final or config.evaluation.num_samples, config.evaluation.num_samples)
    if config.evaluation.fid_infinity and facts_of(config.task).metrics and least < FEWEST_FOR_FID_INFINITY:
        raise UserError(
            f"evaluation.fid_infinity=true: it needs {FEWEST_FOR_FID_INFINITY} samples, and there are {least}; "
            f"raise evaluation.num_samples and evaluation.final_samples"
        )
    ranks = rankable_scores(config)
    if config.sweep.metric not in ranks:
        more = "; evaluation.metrics adds more" if facts_of(config.task).metrics else ""
        raise UserError(f"sweep.metric={config.sweep.metric}: it has to be one of {', '.join(ranks)}{more}")
    best = mode_of(ranks[config.sweep.metric])
    if config.sweep.mode != best:
        direction = "higher" if best == "max" else "lower"
        raise UserError(
            f"sweep.mode={config.sweep.mode}: {config.sweep.metric} is better the {direction} it is; use "
            f"sweep.mode={best}"
        )


def _check_objective(config: Config) -> None:
    """Check what an objective, a base and a task need of one another."""
    objective = checked_objective(config.train)
    with_density = networks_with_density()
    flow = config.model.networks in with_density
    if objectives.needs_density(objective) and not flow:
        raise UserError(
            f"train.objective={config.train.objective}: it needs a base with a density, and model.networks="
            f"{config.model.networks} has none; use one of {', '.join(with_density)}"
        )
    if facts_of(config.task).trained_energy and not objective.trains_energy:
        raise UserError(
            f"train.objective={config.train.objective}: it trains no energy, and task={config.task} samples one"
        )
    if not (config.train.train_base or objective.trains_energy):
        raise UserError(f"train.train_base=false: train.objective={config.train.objective} trains nothing but the base")
    _check_log_partition(config, objective)
    _check_final_phase(config, objective)


def _check_log_partition(config: Config, objective: objectives.Objective) -> None:
    if config.train.log_partition_samples == 1:
        raise UserError("train.log_partition_samples=1: an estimate needs 2 at least, and 0 is none")
    if config.evaluation.log_partition not in ("auto", "monte_carlo") and not facts_of(config.task).likelihood:
        raise UserError(
            f"evaluation.log_partition={config.evaluation.log_partition}: task={config.task} has no likelihood to "
            f"compute with it; leave it out"
        )
    if config.evaluation.log_partition == "trained" and not objective.trains_log_partition:
        raise UserError(
            f"evaluation.log_partition=trained: train.objective={config.train.objective} trains no log-partition; use "
            f"monte_carlo or annealed"
        )
    exact = samplers.NAMES.having("exact", True)
    if config.evaluation.log_partition == "annealed" and config.sampler.name not in exact:
        raise UserError(
            f"sampler.name={config.sampler.name}: evaluation.log_partition=annealed needs an exact kernel, one of "
            f"{', '.join(exact)}"
        )


def _check_final_phase(config: Config, objective: objectives.Objective) -> None:
    steps, patience = config.train.final_energy_steps, config.train.final_phase.patience
    if steps and not objective.trains_energy:
        raise UserError(
            f"train.final_energy_steps={steps}: train.objective={config.train.objective} trains no energy; leave it out"
        )
    if steps and patience and not facts_of(config.task).splits and not config.data.held_out:
        raise UserError(
            f"train.final_energy_steps={steps}: it stops by held-out images; set data.held_out to some hundreds, or "
            f"train.final_phase.patience=0 to take all steps"
        )


def _check_sampler(config: Config) -> None:
    safe = samplers.NAMES.having("bfloat16", True)
    rounds = config.sampler.precision in ("tf32", "bfloat16")
    if rounds and (config.sampler.name not in safe or facts_of(config.task).of != "images"):
        raise UserError(
            f"sampler.precision={config.sampler.precision}: sampler.name={config.sampler.name} for task={config.task} "
            f"needs float32; only {', '.join(safe)} for images do without"
        )


def _check_warm_up(config: Config) -> None:
    kernel = samplers.NAMES[config.sampler.name]
    if config.sampler.warm_up_steps and not hasattr(kernel, "target_acceptance"):
        able = ", ".join(name for name, other in samplers.NAMES.items() if hasattr(other, "target_acceptance"))
        raise UserError(
            f"sampler.warm_up_steps={config.sampler.warm_up_steps}: sampler.name={config.sampler.name} has no "
            f"acceptance rate to find a step size by; {able} have"
        )


def _check_sweep(config: Config) -> None:
    if config.sweep.scheduler == "pbt" and config.sweep.search == "optuna":
        raise UserError("sweep.search=optuna: sweep.scheduler=pbt makes proposals of its own; use random or grid")


def _check_components(config: Config) -> None:
    sampler = kernel_settings(config.sampler)
    try_to_build("sampler.decay", lambda: StepDecay(cast(float, sampler.decay), cast(int, sampler.decay_every)))
    try_to_build(
        "sampler",
        lambda: samplers.make(
            sampler.name,
            step_size=sampler.step_size,
            friction=sampler.friction,
            prior=StandardNormal(config.model.latent_dim),
            **sampler.settings,
        ),
    )
    try_to_build("train.schedule", lambda: Schedule(cast(Any, config.train.schedule), max(config.train.base_steps, 1)))
    decay = config.train.learning_rate_decay
    try_to_build(
        "train.learning_rate_decay",
        lambda: PlateauDecay(
            torch.zeros(decay.num_samples, 1),
            factor=decay.factor,
            every=decay.every,
            lag=decay.lag,
            patience=decay.patience,
            significance=decay.significance,
            unconditional_every=decay.unconditional_every,
        ),
    )
