"""Checks of parts that are not built in, before anything starts: shapes, the protocol of a sampler, losses, metrics.

What this project's own parts do is known from its tests. Of another's, one batch of two and two steps of two chains say
whether hours of training would end in a traceback.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gebm import StandardNormal, networks, objectives, penalties, samplers
from gebm.registry import Part
from pipeline.config import metrics, part_settings, tasks
from pipeline.config.kernels import kernel_settings
from pipeline.config.networks import network_arguments
from pipeline.config.schema import Config, Train
from pipeline.config.scores import ENDS, STANDARD_ERROR
from pipeline.config.tasks import facts_of
from pipeline.config.training_parts import make_objective, make_penalty
from pipeline.runtime.errors import UserError
from pipeline.runtime.part_errors import refusal, refusing

__all__ = ["check_metrics", "check_parts", "checked_objective", "own_networks"]

_STEPS = 2
_WITH_ENDS = tuple(f"_{end}" for end in ENDS)
# Random samples that a metric is tried on, and features of each.
_SAMPLES, _FEATURES = 16, 8
# The tensors of a network that is tried on the CPU, where it cannot be on a device without memory.
_MAX_PARAMETERS = 2**28


def check_parts(config: Config) -> None:
    """Refuse networks of the wrong shape, a task or a sampler that is none, and losses and metrics that are no numbers.

    Args:
        config: The experiment, of which :func:`pipeline.config.validation.validate_rules` holds.

    Raises:
        UserError: One is; the line names the plugin's file and line.
    """
    model, data = config.model, config.data
    image_shape = data.channels, data.resolution or 0, data.resolution or 0
    facts = facts_of(config.task)
    shape = image_shape if facts.of == "images" else image_shape[:1]
    if not (part := tasks.NAMES.part(config.task)).builtin:
        _check_task(part, config)
    if (part := own_networks(config)) is not None:
        _check_networks(part, shape, part_settings.frozen(network_arguments(config)))
    if not (part := samplers.NAMES.part(config.sampler.name)).builtin:
        used = kernel_settings(config.sampler)
        settings = {"step_size": used.step_size, "friction": used.friction, **used.settings}
        _check_sampler(part, model.latent_dim, part_settings.frozen(settings))
    if not (part := objectives.NAMES.part(config.train.objective)).builtin:
        _check_objective(part, config.train)
    if not (part := penalties.NAMES.part(config.train.penalty_kind)).builtin:
        _check_penalty(part, config.train, shape)
    if facts.metrics:
        check_metrics(config.evaluation.metrics, image_shape)


def own_networks(config: Config) -> Part | None:
    """Return the family of the networks, or of the energy alone, that is not built in; ``None`` where both are."""
    parts = [
        networks.NAMES.part(name) for name in networks.NAMES if name in (config.model.networks, config.model.energy)
    ]
    return next((part for part in parts if not part.builtin), None)


def check_metrics(names: Iterable[str], shape: tuple[int, int, int]) -> None:
    """Refuse a metric of one's own that returns no number, on a few random samples.

    Args:
        names: Metrics, those of this project among them.
        shape: Channels, height and width of the images.

    Raises:
        UserError: One does; the line names the plugin's file and line.
    """
    for name in names:
        if name in metrics.NAMES:
            _check_metric(metrics.NAMES.part(name), shape)


def _check_task(part: Part, config: Config) -> None:
    facts, protocol = facts_of(part.name), pkgutil.resolve_name("pipeline.tasks.base:Task")
    with refusing(part):
        if not re.fullmatch(r"[A-Za-z]\w*", facts.score) or facts.score.endswith((STANDARD_ERROR, *_WITH_ENDS)):
            raise ValueError(
                f"it is registered with score={facts.score!r}, and has to have the name of a score without the model "
                "that has it, as in score='distance'"
            )
        if facts.score in metrics.NAMES or (facts.score in metrics.FEATURE_SCORES and not facts.metrics):
            raise ValueError(f"it is registered with score={facts.score!r}, which is that of a metric: name another")
        if facts.splits and facts.of != "rows":
            raise ValueError("it is registered with splits=True, and only rows are split: give of='rows' as well")
        task = tasks.make(config)
        for name, method in inspect.getmembers(protocol, inspect.isfunction):
            if name.startswith("_"):
                continue
            arguments = list(inspect.signature(method).parameters)[1:]
            own = getattr(task, name, None)
            if not callable(own):
                raise ValueError(
                    f"it has no {name}({', '.join(arguments)}): give it one, or make it a subclass of a task in "
                    "pipeline.tasks that has"
                )
            try:
                inspect.signature(own).bind(*arguments)
            except TypeError as error:
                raise ValueError(f"its {name} has to take {', '.join(arguments)} ({error})") from None


@functools.cache
def _check_networks(part: Part, shape: tuple[int, ...], arguments: tuple[tuple[str, Any], ...]) -> None:
    given = dict(arguments)
    resolutions, latent_dim = part.facts["resolutions"], given["latent_dim"]
    if resolutions and len(shape) == 3 and shape[1] not in resolutions:
        raise UserError(f"data.resolution={shape[1]}: {part.name} has {', '.join(map(str, resolutions))}")

    # Whatever their number is, in the first pixels of one plane.
    num_classes = 2 if networks.is_conditional(given["name"]) else None
    if num_classes is not None:
        shape, latent_dim = (shape[0] + 1, *shape[1:]), latent_dim + num_classes

    def build() -> tuple[nn.Module, nn.Module]:
        return networks.make(**given, num_classes=num_classes)

    with refusing(part):
        try:
            with torch.device("meta"):
                sample, energy = _apply(build, latent_dim)
        # Not every operation can do without memory, and code may fail in any way where one could not.
        except Exception:
            with torch.device("meta"):
                count = _count_parameters(build)
            if count > _MAX_PARAMETERS:
                raise
            with torch.random.fork_rng(devices=[]):
                sample, energy = _apply(build, latent_dim)
    for what, tensor, wanted in (("base", sample, (2, *shape)), ("energy", energy, (2, 1))):
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != wanted:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            of = f"latents (2, {latent_dim})" if what == "base" else f"samples {(2, *shape)}"
            raise refusal(part, f"its {what} maps {of} to {got}, and has to map them to {wanted}")
        if not tensor.is_floating_point():
            raise refusal(part, f"its {what} returns {tensor.dtype}, and has to return floating-point numbers")
    if not energy.requires_grad:
        raise refusal(part, "its energy has no gradient with respect to samples, which chains follow: do not detach it")


def _apply(build: Callable[[], tuple[nn.Module, nn.Module]], latent_dim: int) -> tuple[Any, Any]:
    base, energy = (module.eval() for module in _checked_pair(build()))
    with torch.no_grad():
        sample = base(torch.zeros(2, latent_dim))
    is_number = isinstance(sample, Tensor) and sample.is_floating_point()
    return sample, energy(sample.requires_grad_() if is_number else sample)


def _checked_pair(pair: Any) -> tuple[nn.Module, nn.Module]:
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(one, nn.Module) for one in pair)):
        raise ValueError(f"it returns {type(pair).__name__}, and has to return a base and an energy, two nn.Module")
    if next(pair[0].parameters(), None) is None:
        raise ValueError("its base has no parameters, and one is there to be trained")
    return pair


def _count_parameters(build: Callable[[], tuple[nn.Module, nn.Module]]) -> int:
    """Return the number of parameters; 0 where networks cannot be built on a device without memory."""
    try:
        return sum(parameter.numel() for module in _checked_pair(build()) for parameter in module.parameters())
    except Exception:
        return 0


@functools.cache
def _check_sampler(part: Part, latent_dim: int, settings: tuple[tuple[str, Any], ...]) -> None:
    prior = StandardNormal(latent_dim)
    z = prior.sample(2, torch.Generator().manual_seed(0))

    def chain(first: int, count: int) -> samplers.Chain[Any]:
        kernel = samplers.make(part.name, prior=prior, **dict(settings))
        generator = torch.Generator().manual_seed(1)
        start = z[first : first + count]
        return samplers.run(kernel, _half_square, start, _STEPS, generator=generator, prior=prior, first_chain=first)

    with refusing(part), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        both, again, second = chain(0, 2), chain(0, 2), chain(1, 1)
        state, infos = both.state, both.infos
        wanted = {
            "state.z": (state.z, (2, latent_dim)),
            "state.potential": (state.potential, (2,)),
            "state.chain": (state.chain, (2,)),
            "info.potential": (infos.potential, (_STEPS, 2)),
            "info.diverged": (infos.diverged, (_STEPS, 2)),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and has to have {shape}")
        if state.z.dtype != z.dtype:
            raise ValueError(f"state.z is {state.z.dtype} of chains that start in {z.dtype}: keep their type")
        if int(state.step) != _STEPS:
            raise ValueError(f"after {_STEPS} steps state.step is {int(state.step)}: add 1 in each")
        if state.chain.tolist() != [0, 1]:
            raise ValueError("state.chain is changed by a step: it has the numbers of the chains")
        if not isinstance(samplers.make(part.name, prior=prior, **dict(settings)).gradients_per_step, int):
            raise ValueError("gradients_per_step has to be a whole number")
        if not torch.equal(both.z, again.z):
            raise ValueError("the same generator gives two different chains: draw all noise from the one it is given")
        if not torch.allclose(both.z[1], second.z[0], rtol=1e-4, atol=1e-5):
            raise ValueError(
                "chain 1 is another one alone than next to chain 0: draw noise by gebm.samplers.philox, "
                "normal(draw_key(generator, z.device), state.chain, z.shape[1])"
            )


def checked_objective(train: Train) -> objectives.Objective:
    """Return the objective of a training, of which what others ask it for is there.

    Args:
        train: As :func:`pipeline.config.training_parts.make_objective` takes it.

    Raises:
        UserError: It is one of one's own, and fails or lacks something; the line names the plugin's file and line.
    """
    if (part := objectives.NAMES.part(train.objective)).builtin:
        return make_objective(train)
    with refusing(part):
        objective = make_objective(train)
        for name in ("trains_energy", "trains_log_partition"):
            if not isinstance(value := getattr(objective, name), bool):
                raise ValueError(f"{name} is {value!r}, and has to be True or False")
        if objective.base_learns_from not in ("energy", "data"):
            raise ValueError(f"base_learns_from is {objective.base_learns_from!r}, and has to be 'energy' or 'data'")
        if not isinstance(objective.negatives.needs_density, bool):
            raise ValueError("negatives.needs_density has to be True or False")
    return objective


def _check_objective(part: Part, train: Train) -> None:
    energies = [torch.linspace(-1, 1, 8).requires_grad_() for _ in range(2)]
    log_partition = torch.zeros((), requires_grad=True)
    objective = checked_objective(train)
    with refusing(part), torch.random.fork_rng(devices=[]):
        if objective.trains_energy:
            _require_loss("energy_loss", objective.energy_loss(energies[0], energies[1], log_partition))
        if train.train_base:
            _require_loss("base_loss", objective.base_loss(energies[0]))


def _check_penalty(part: Part, train: Train, shape: tuple[int, ...]) -> None:
    data, base = torch.rand(2, 4, *shape, generator=torch.Generator().manual_seed(0)).unbind()
    weight = torch.ones(data[0].numel(), requires_grad=True)
    with refusing(part), torch.random.fork_rng(devices=[]):
        penalty = make_penalty(train, train.penalty)
        position = penalty.draw(len(data), torch.Generator().manual_seed(0), 0)
        if position is None:
            return
        if not isinstance(position, Tensor) or tuple(position.shape) != (len(data),):
            got = tuple(position.shape) if isinstance(position, Tensor) else type(position).__name__
            raise ValueError(f"draw gives {got} for {len(data)} points, and has to give ({len(data)},), or None")
        _require_loss(
            "its value", penalty(lambda x: (x.flatten(1) * weight).square().sum(1), data, base, position, [weight])
        )


def _require_loss(what: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} is {got}, and has to be a tensor without dimensions")
    if not bool(value.isfinite()):
        raise ValueError(f"{what} is {value.item()} of ordinary energies, and has to be finite")
    if not value.requires_grad:
        raise ValueError(f"{what} has no gradient with respect to energies: do not detach it")


@functools.cache
def _check_metric(part: Part, shape: tuple[int, int, int]) -> None:
    known, generator = metrics.metric(part.name), torch.Generator().manual_seed(0)
    count = max(known.fewest, _SAMPLES)
    if known.of == "images":
        tensors = torch.randint(256, (2, count, *shape), dtype=torch.uint8, generator=generator)
    else:
        tensors = torch.randn(2, count, _FEATURES, generator=generator)
    # It may change what it is given.
    once, again = (metrics.measure(part, tensors[0].clone(), tensors[1].clone()) for _ in range(2))
    if once != again:
        raise refusal(part, f"the same samples have the scores {once.value} and {again.value}: draw from torch alone")


def _half_square(z: Tensor) -> Tensor:
    return z.square().sum(1) / 2
