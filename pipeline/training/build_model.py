"""Model of an experiment: built from its config, with its trainer, or read from a checkpoint."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch

from gebm import GEBM, BoundedEnergy, EnergyPhase, NoEnergy, StandardNormal, networks
from gebm.training import Alternation, Trainer, gradient_guard
from gebm.training.data_parallel import data_parallel
from gebm.training.optimizers import Schedule, adam
from pipeline import config as schema
from pipeline.config import plugins, precision
from pipeline.config.networks import network_arguments
from pipeline.config.own_choices import DATA_KEYS, choose, load_kept_plugins
from pipeline.config.tasks import NAMES, facts_of
from pipeline.config.training_parts import make_objective, make_penalty
from pipeline.config.validation import validate
from pipeline.data.classes import Classes
from pipeline.runtime.errors import UserError
from pipeline.training.checkpoint_format import Checkpoint, load_state, require_shapes
from pipeline.training.checkpoints import read

__all__ = [
    "TrainedModel",
    "build_model",
    "load_model",
    "make_energy_phase",
    "make_trainer",
    "model_to_train",
    "trained_config",
]


class TrainedModel(NamedTuple):
    """Model that was read from a checkpoint, and what the checkpoint says of it.

    Attributes:
        model: The model, ready to be sampled.
        config: The config to sample it with.
        classes: Classes that it learned; ``None`` where its networks are not conditional.
        state: What the checkpoint has in addition to its tensors.
    """

    model: GEBM
    config: schema.Config
    classes: Classes | None
    state: dict[str, Any]


# Values of ``train.schedule``, as validated with the config.
_ScheduleShape = Literal["constant", "linear", "cosine"]
# Prefix of the moving average's tensors in the trainer's state.
_AVERAGE = "average."
# Keys of the command, not of the model it is about.
_COMMAND_KEYS = ("checkpoint", "output", "resume")


def build_model(config: schema.Config, classes: Classes | None = None) -> GEBM:
    """Build a fresh model, the same for the same seed.

    Args:
        config: ``model``, ``data.resolution``, ``data.channels`` and ``seed``.
        classes: Classes of the data, for conditional networks; others have none.

    Raises:
        UserError: Conditional networks have no classes.
    """
    if classes is None and networks.is_conditional(config.model.networks):
        raise UserError(f"model.networks={config.model.networks}: a checkpoint of them names its classes; give another")
    if not networks.is_conditional(config.model.networks):
        classes = None
    torch.manual_seed(config.seed)
    base, energy = networks.make(**network_arguments(config), num_classes=None if classes is None else len(classes))
    prior, floor = StandardNormal(config.model.latent_dim), config.model.energy_floor
    frequencies = None if classes is None else classes.counts
    return GEBM(base, energy, prior, energy_floor=floor, class_frequencies=frequencies)


def model_to_train(config: schema.Config, device: torch.device, classes: Classes | None = None) -> GEBM:
    """Build a fresh model on its device, in the memory format that it is trained in.

    Args:
        config: As :func:`build_model` takes it, with ``train.memory_format`` and ``task``.
        device: Where to put it.
        classes: Classes of the data, for conditional networks.
    """
    model = build_model(config, classes).to(device)
    of_images = facts_of(config.task).of == "images"
    if config.train.memory_format == "channels_last" or (config.train.memory_format == "auto" and of_images):
        model = model.to(memory_format=torch.channels_last)
    return model


def make_trainer(model: GEBM, config: schema.Config, device: torch.device, world_size: int = 1) -> Trainer:
    """Build the trainer of a model.

    Args:
        model: From :func:`model_to_train`.
        config: ``train`` and ``task``.
        device: Where the model is.
        world_size: Number of workers, over which batches and gradients are shared.
    """
    train = config.train
    betas = (train.beta1, train.beta2)
    energy = [*model.energy.parameters(), model.log_partition]

    return Trainer(
        model,
        objective=make_objective(train),
        penalty=make_penalty(train, train.penalty),
        energy_optimizer=adam(energy, train.energy_lr, betas=betas, weight_decay=train.weight_decay),
        base_optimizer=adam(model.base.parameters(), train.base_lr, betas=betas),
        alternation=Alternation(
            energy_steps=train.energy_steps,
            warmup_energy_steps=train.warmup_energy_steps,
            warmup_base_steps=train.warmup_base_steps,
            warmup_every=train.warmup_every,
        ),
        schedule=Schedule(cast(_ScheduleShape, train.schedule), max(train.base_steps, 1)),
        ema_decay=train.ema_decay,
        train_base=train.train_base,
        latent_batch_size=(train.latent_batch_size or train.batch_size) // world_size,
        precision=precision.training_precision(config, device),
        parallel=data_parallel if world_size > 1 else lambda module: module,
        gradient_guard=gradient_guard.make(train.gradient_guard),
        cuda_graphs=str(train.cuda_graphs).lower(),
        compiled=str(train.compile).lower(),
    )


def make_energy_phase(config: schema.Config) -> EnergyPhase:
    """Build the final phase, which trains the energy alone.

    Args:
        config: ``train.final_energy_steps``, ``train.final_phase`` and ``train``'s penalty.
    """
    train, phase = config.train, config.train.final_phase
    weight = train.penalty if phase.penalty is None else phase.penalty
    return EnergyPhase(
        train.final_energy_steps,
        learning_rate=phase.energy_lr,
        penalty=make_penalty(train, weight),
        check_every=phase.check_every,
        patience=phase.patience,
    )


def load_model(
    url: str | None, overrides: dict[str, Any], device: torch.device | str = "cpu", *, needed: tuple[str, ...] = ()
) -> TrainedModel:
    """Read a trained model, ready to be sampled, and the config to sample it with.

    Args:
        url: A checkpoint's folder, or a trial's.
        overrides: Keys of its config to change, such as ``sampler.step_size``, with their new values.
        device: Where to put it.
        needed: Keys of :data:`pipeline.config.own_choices.OUTSIDE` that the caller uses, in addition to the store of
            rows, without which no sample has its units.

    Raises:
        UserError: There is no such checkpoint, it is damaged, a key makes it another architecture, or the checkpoint
            alone says whom to talk to.
    """
    if url is None:
        raise UserError("no checkpoint is named: give checkpoint=<the folder of a checkpoint or of a trial>")
    if overrides.get("model.base"):
        raise UserError(
            f"model.base={overrides['model.base']}: the checkpoint has its weights already; leave it out, or give it "
            "to `python -m pipeline.train`"
        )
    checkpoint = read(url)
    load_kept_plugins(url)
    config = schema.apply(
        trained_config(checkpoint), {key: value for key, value in overrides.items() if key not in _COMMAND_KEYS}
    )
    # Rows are drawn in the units of their table. Of a task that does not exist `validate` says so.
    of_images = config.task in NAMES and facts_of(config.task).of == "images"
    choose(config, overrides, url, needed if of_images else (*needed, *DATA_KEYS))
    validate(config)
    if of_images:
        # A config may promise a model that no memory holds, where the checkpoint's tensors are small. Flows compute
        # with numbers while they are built.
        with torch.device("meta"):
            require_shapes(build_model(config, checkpoint.classes), checkpoint)
    model = build_model(config, checkpoint.classes)
    load_state(model, checkpoint)
    average = {
        name.removeprefix(_AVERAGE): tensor
        for name, tensor in checkpoint.training["trainer"]["tensors"].items()
        if name.startswith(_AVERAGE)
    }
    if average:
        model.base.load_state_dict(average)
    if not make_objective(config.train).trains_energy:
        # The energy that it was built with was never trained.
        model.energy = BoundedEnergy(NoEnergy())
    classes = checkpoint.classes if model.num_classes else None
    return TrainedModel(model.to(device).eval(), config, classes, checkpoint.state)


def trained_config(checkpoint: Checkpoint) -> schema.Config:
    """Return the config that a model was trained with.

    Args:
        checkpoint: Of a trial.

    Raises:
        UserError: It is not of a trial, or of another version's schema.
    """
    if not isinstance(checkpoint.state.get("config"), dict):
        raise UserError(f"{checkpoint.url} does not say what it was trained with: give a trial's checkpoint")
    config = schema.from_saved(checkpoint.state["config"])
    plugins.require_parts(config, checkpoint.url)
    return config
