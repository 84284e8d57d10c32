"""Trained generator, and its discriminator, as the model that trials start from.

Their files are read once, on the driver, and the weights that are taken become a checkpoint in the sweep's folder.
Every trial starts from that one, wherever it runs, and no later command needs the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebm import networks
from gebm.networks.conventions import inner
from gebm.networks.weights import Half, Reading, read_as_they_are
from gebm.training.plateau_decay import PlateauDecay
from pipeline import config as schema
from pipeline.config.network_shapes import build_shapes
from pipeline.config.networks import NO_DISCRIMINATOR, is_weights
from pipeline.config.validation import validate_before_weights
from pipeline.data import Position, Store
from pipeline.evaluation import metrics
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.part_errors import refusal, refusing
from pipeline.runtime.weights_file import WeightsFile, read_weights
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.checkpoints import Checkpoints

__all__ = ["IMPORTED", "ImportedPair", "forget_files", "read_pair"]

IMPORTED = "imported"
"""Field of a checkpoint's state: where its weights are from."""

_KEYS: Mapping[Half, str] = {"base": "model.base", "energy": "model.energy"}
_AVERAGE = re.compile(r"(^|[._-])(g_?)?(ema|avg|average|averaged)([._-]|$)|_ema", re.IGNORECASE)
_MAX_SHOWN = 5


@dataclass(frozen=True)
class _Taken:
    """A half of a pair, taken of a file.

    Args:
        file: The file.
        group: Keys that lead to the half in it.
        reading: The half.
        state: Its tensors, by the names that they have in the model's module.
        started: Counters that the file lacks.
    """

    file: WeightsFile
    group: str
    reading: Reading
    state: dict[str, Tensor]
    started: int

    @property
    def facts(self) -> dict[str, Any]:
        """Where the half is from."""
        return {
            "url": self.file.url,
            "sha256": self.file.digest,
            "taken": self.group,
            "kind": self.reading.kind,
        }

    def note(self, key: str) -> str:
        """Return a one-line message: what was taken, what was left over, what is missing."""
        taken = self.group or "the whole file"
        average = ", the moving average" if _AVERAGE.search(self.group) else ""
        groups = [group for group in self.file.groups if group and group != self.group]
        others = dict.fromkeys([*(name.partition(".")[0] for name in (*groups, *self.file.rest)), *self.reading.left])
        others.pop(self.group.partition(".")[0], None)
        shown = ", ".join(list(others)[:_MAX_SHOWN]) + (" ..." if len(others) > _MAX_SHOWN else "")
        left = f"; left over: {shown}" if others else "; nothing is left over"
        missing = f"; missing: {self.started} counters of batches, which begin at 0" if self.started else ""
        return f"{key}={self.file.url}: {self.reading.kind}; taken: {taken}{average}{left}{missing}"


@dataclass(frozen=True)
class ImportedPair:
    """A trained generator and, if there is one, its discriminator, which fit a config.

    Args:
        halves: What was taken for the base and for the energy.
    """

    halves: Mapping[Half, _Taken]

    @property
    def notes(self) -> tuple[str, ...]:
        """One message for each half."""
        return tuple(taken.note(_KEYS[half]) for half, taken in self.halves.items())

    @property
    def facts(self) -> dict[str, Any]:
        """Where the halves are from."""
        return {half: taken.facts for half, taken in self.halves.items()}

    @property
    def num_classes(self) -> int | None:
        """Number of classes of a conditional pair."""
        return self.halves["base"].reading.sizes.get("num_classes")

    def require_classes(self, store: Store) -> None:
        """Refuse a store of another number of classes than the pair has.

        Args:
            store: Training data; of a pair without classes, any.

        Raises:
            UserError: It has another number of classes.
        """
        if self.num_classes is None:
            return
        count = len(metrics.require_classes(store))
        if count != self.num_classes:
            raise UserError(
                f"{_KEYS['base']}={self.halves['base'].file.url}: it has {self.num_classes} classes, and the store "
                f"{store.url} has {count}: give a store of the data that it was trained on"
            )

    def write(self, url: str, config: schema.Config, store: Store) -> str:
        """Write the model as a checkpoint, and return its URL.

        Args:
            url: A folder, as of a trial.
            config: The experiment, for which the halves were read.
            store: Training data, whose classes those of a conditional pair are, in their order.
        """
        device = torch.device("cpu")
        classes = None if self.num_classes is None else metrics.classes_of(store, metrics.class_labels(store))
        model = model_to_train(config, device, classes)
        modules: Mapping[Half, nn.Module] = {"base": model.base, "energy": model.energy.network}
        for half, taken in self.halves.items():
            inner(modules[half]).load_state_dict(taken.state)
        decay = config.train.learning_rate_decay
        tests = PlateauDecay(
            torch.zeros(4, 1), factor=decay.factor, every=decay.every, lag=decay.lag, patience=decay.patience
        )
        return Checkpoints(url).save(
            0,
            model=model.state_dict(),
            training={"trainer": make_trainer(model, config, device).state_dict(), "plateau": tests.state_dict()},
            state={
                "position": asdict(Position()),
                "random": {"seed": config.seed, "base_step": 0},
                "lr_scale": 1.0,
                "report": {},
                "config": schema.to_dict(config),
                **({} if classes is None else {"classes": classes.to_dict()}),
                IMPORTED: self.facts,
            },
            score=None,
        )


def forget_files(config: schema.Config) -> None:
    """Have a config no longer name the files that its model was read from.

    Args:
        config: The experiment; its energy is then the family's own, or that of the family that it names.
    """
    config.model.base = None
    if config.model.energy == NO_DISCRIMINATOR or is_weights(config.model.energy):
        config.model.energy = None


def read_pair(config: schema.Config) -> ImportedPair:
    """Read the weights that a config names, and set its settings of the networks to what they say.

    Args:
        config: The experiment; ``model.settings`` is filled in.

    Raises:
        UserError: A file cannot be read, or is no half of such networks; the message says which and why. Or the config
            is not valid, whatever the files say.
    """
    model = config.model
    if model.energy is None:
        more = ""
        if model.networks in networks.NAMES and networks.needs_weights(model.networks):
            others = networks.energies_for(with_classes=networks.is_conditional(model.networks))
            more = f", or networks whose energy is trained on it, of {', '.join(others)}"
        raise UserError(
            f"model.base={model.base} comes without model.energy: add the weights of its discriminator; "
            f"{NO_DISCRIMINATOR} for an energy of its own that is trained from scratch{more}"
        )
    if model.networks not in networks.NAMES:
        raise UserError(f"model.networks={model.networks}: it has to be one of {', '.join(networks.NAMES)}")
    part = networks.NAMES.part(model.networks)
    if networks.is_conditional(model.networks) and part.facts["weights"] is read_as_they_are:
        raise UserError(
            f"model.base={model.base}: model.networks={model.networks} has classes, and the names of its weights do "
            "not say how many; choose networks that are registered with weights=, as imported_conditional is"
        )
    # Gigabytes may be read from here on, and a mistyped key is known without them.
    validate_before_weights(config)
    named: dict[Half, str] = {"base": str(model.base)}
    if is_weights(model.energy):
        named["energy"] = model.energy
    pair = ImportedPair({half: _take(half, url, config) for half, url in named.items()})
    for half, taken in pair.halves.items():
        if (count := taken.reading.sizes.get("num_classes")) != pair.num_classes:
            raise UserError(
                f"{_KEYS[half]}={taken.file.url}: {taken.reading.kind}: it has {count} classes, and the generator has "
                f"{pair.num_classes}; give two that were trained together"
            )
    if networks.is_conditional(model.networks) and pair.num_classes is None:
        raise refusal(part, "it has classes, and what weights= reads has to have sizes with num_classes")
    return pair


def _take(half: Half, url: str, config: schema.Config) -> _Taken:
    """Return the half that a file has: of several that would do, a moving average, or else the first."""
    key = _KEYS[half]
    file = read_weights(url, key)
    if not file.groups:
        raise UserError(f"{key}={url}: it has no tensors by name; give a state_dict")
    part = networks.NAMES.part(config.model.networks)
    readings: dict[str, Reading] = {}
    reasons = []
    for group, tensors in file.groups.items():
        try:
            with refusing(part, passing=(ValueError,)):
                reading = part.facts["weights"](half, tensors)
        except ValueError as error:
            reasons.append(one_line(error, limit=200))
            continue
        if not isinstance(reading, Reading) or not all(isinstance(held, Tensor) for held in reading.state.values()):
            raise refusal(part, "what it is registered with as weights= has to return a Reading of tensors")
        readings[group] = reading
    if not readings:
        # Of the largest mapping, which the weights are.
        largest = max(range(len(reasons)), key=lambda index: len(list(file.groups.values())[index]))
        raise UserError(f"{key}={url}: its tensors are {reasons[largest]}; {_advice(half, config)}")
    fits = {group: _fit(half, reading, config) for group, reading in readings.items()}
    order = sorted(readings, key=lambda group: (bool(fits[group][0]), not _AVERAGE.search(group)))
    # The message is about the candidate that fits best.
    if fits[order[0]][0]:
        order = sorted(readings, key=lambda group: -fits[group][2])
    chosen = order[0]
    problem, state, _ = fits[chosen]
    if problem:
        raise UserError(f"{key}={url}: {problem}; {_advice(half, config)}")
    _adopt_settings(readings[chosen], config, f"{key}={url}")
    started = len(state) - len(readings[chosen].state)
    return _Taken(file, chosen, readings[chosen], state, started)


def _fit(half: Half, reading: Reading, config: schema.Config) -> tuple[str | None, dict[str, Tensor], int]:
    """Return why a half does not fit the config, if it does not; its tensors; and the number of them that fit."""
    model, data = config.model, config.data
    sizes = {
        "latent_dim": ("model.latent_dim", model.latent_dim, "latents of {} numbers"),
        "resolution": ("data.resolution", data.resolution, "images of {0}x{0} pixels"),
        "channels": ("data.channels", data.channels, "{} color channels"),
    }
    for size, (size_key, asked, what) in sizes.items():
        value = reading.sizes.get(size, asked)
        if value != asked:
            return f"{reading.kind}, is for {what.format(value)}, and {size_key}={asked}: set it to {value}", {}, 1
    try:
        pair = build_shapes(config, reading.settings, reading.sizes.get("num_classes"))
    except ValueError as error:
        return f"{reading.kind}: {one_line(error)}", {}, 0
    expected = inner(pair[half == "energy"]).state_dict()
    state = {key: tensor for key, tensor in reading.state.items() if key in expected}
    placed = len(state)
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=tensor.dtype)
    missing = [reading.called(key) for key in expected if key not in state]
    if missing:
        return f"{missing[0]} is missing ({len(missing)} of {len(expected)} are)", state, placed
    if extra := [reading.called(key) for key in reading.state if key not in expected]:
        return f"{extra[0]} is no weight of {model.networks} ({len(extra)} are none)", state, placed
    for key, tensor in expected.items():
        given = state[key]
        if given.shape != tensor.shape:
            shapes = f"{tuple(given.shape)} there, and would be {tuple(tensor.shape)} here"
            return f"{reading.called(key)} is {shapes}", state, placed
        if tensor.is_floating_point() and not (given.is_floating_point() and bool(given.isfinite().all())):
            return f"{reading.called(key)} has entries that are no finite numbers", state, placed
    return None, state, placed


def _adopt_settings(reading: Reading, config: schema.Config, name: str) -> None:
    """Set the settings of the networks that weights say, and refuse those that were named otherwise."""
    settings = config.model.settings
    for key, value in reading.settings.items():
        if key in settings and settings[key] != value:
            raise UserError(f"model.settings.{key}={settings[key]}: {name} has {value}; leave it out")
        settings[key] = value


def _advice(half: Half, config: schema.Config) -> str:
    what = "a generator" if half == "base" else "a discriminator"
    if networks.needs_weights(config.model.networks):
        with_classes = networks.is_conditional(config.model.networks)
        known = networks.published.LAYOUTS.items()
        layouts = ", ".join(name for name, layout in known if layout.has_classes or not with_classes)
        what += " with classes" if with_classes else ""
        return f"give {what} of {layouts}, or networks of your own that read it (plugins=..., model.networks=...)"
    return f"give {what} of model.networks={config.model.networks} as it was built"
