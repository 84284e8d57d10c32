"""Plugins of tests: files that register parts, and a process that has loaded none of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gebm import networks, objectives, samplers
from pipeline.config import metrics, plugins, tasks
from pipeline.data import sources
from pipeline.evaluation.metrics import extractors

REGISTRIES = (
    networks.NAMES,
    samplers.NAMES,
    objectives.NAMES,
    objectives.penalties.NAMES,
    metrics.NAMES,
    extractors.NAMES,
    sources.NAMES,
    tasks.NAMES,
)

NETWORKS = '''
from typing import Annotated

from torch import nn

import gebm


@gebm.networks.register("plain", tasks=("images", "points"))
def plain(resolution: int, channels: int, latent_dim: int, *, depth: Annotated[int, gebm.Limits(ge=1)] = 1):
    """Linear networks.

    Args:
        depth: Layers of the energy.
    """
    shape = (channels, resolution, resolution) if resolution else (channels,)
    size = channels * max(resolution, 1) ** 2
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(size, size), nn.SiLU())]
    base = nn.Sequential(nn.Linear(latent_dim, size), nn.Unflatten(1, shape))
    return base, nn.Sequential(nn.Flatten(), *hidden, nn.Linear(size, 1))
'''

SAMPLER = '''
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch

import gebm
from gebm import samplers
from gebm.samplers import philox
from gebm.samplers.base import GradientState, counter, finite_rows, number_chains


class Info(NamedTuple):
    potential: torch.Tensor
    diverged: torch.Tensor


@gebm.samplers.register("scaled", like="ula")
@dataclass(frozen=True)
class Scaled:
    """Langevin with a scale.

    Args:
        step_size: The step.
        gamma: Scale of the step.
    """

    step_size: float
    gamma: Annotated[float, gebm.Limits(gt=0)] = 1.0

    @property
    def gradients_per_step(self):
        return 1

    def init(self, z, potential):
        return GradientState(z, *samplers.value_and_gradient(potential, z), number_chains(z), counter())

    def step(self, state, potential, generator=None):
        h = self.step_size * self.gamma
        noise = philox.normal(philox.draw_key(generator, state.z.device), state.chain, state.z.shape[1])
        z = state.z - h * state.gradient + (2 * h) ** 0.5 * noise
        value, gradient = samplers.value_and_gradient(potential, z)
        return GradientState(z, value, gradient, state.chain, state.step + 1), Info(
            value, ~finite_rows(z, value, gradient)
        )
'''


METRICS = '''
import torch

from pipeline.evaluation import metrics


@metrics.register("mean_gap", fewest=8)
def mean_gap(samples, data):
    """Distance of the means."""
    gaps = samples.mean(0) - data.mean(0)
    return gaps.norm(), (samples.var(0).sum() / len(samples)).sqrt()


@metrics.register("brightness", better="up", of="images")
def brightness(samples):
    """Mean gray value."""
    return samples.float().mean() / 255
'''

EXTRACTORS = '''
from torch import nn

from pipeline.evaluation import metrics


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.float().flatten(1) @ self.weight


@metrics.extractors.register("linear", channels=1)
def linear(weights):
    """Linear features."""
    return Linear(weights["weight"])


@metrics.extractors.register("drawn", channels=1, logits=True)
def drawn():
    """Random features."""
    return nn.Sequential(nn.Flatten(), Floats(), nn.Linear(64, 6), Twice())


class Floats(nn.Module):
    def forward(self, images):
        return images.float() / 255


class Twice(nn.Module):
    def forward(self, features):
        return features, features
'''


SOURCES = '''
import numpy as np

from pipeline.data import sources


class Stripes:
    classes = ["dark", "bright"]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 7:
            raise ValueError("a bad scan")
        return np.full((8, 8), 40 + 5 * index, np.uint8), np.int64(index >= 20)


@sources.register("stripes")
def stripes():
    """Forty gray squares."""
    return Stripes()


@sources.register("drawn_squares", labels=("even", "odd"))
def drawn_squares(url=None, split=None):
    """Squares, one after the other."""
    for index in range(12 if split is None else 6):
        yield np.full((9, 10, 3), index, np.uint8), index % 2


@sources.register("line", of="rows")
def line():
    """Points on a line."""
    return [[float(index), 2.0 * index] for index in range(50)]
'''


LOSSES = '''
from dataclasses import dataclass
from typing import Annotated

import torch

import gebm
from gebm import objectives, penalties
from gebm.objectives.negatives import BaseDraws


@objectives.register("soft")
@dataclass(frozen=True)
class Soft:
    """Difference of the means.

    Args:
        margin: How far they may be apart.
    """

    margin: Annotated[float, gebm.Limits(gt=0)]
    trains_energy = True
    trains_log_partition = False
    base_learns_from = "energy"
    negatives = BaseDraws()

    def energy_loss(self, energy_data, energy_base, log_partition):
        return (energy_data - energy_base).mean()

    def base_loss(self, energy_base):
        return energy_base.mean()


@penalties.register("slope")
@dataclass(frozen=True)
class Slope:
    """A power of the energy at the data.

    Args:
        weight: Its weight.
        power: The power.
    """

    weight: float = 1.0
    power: Annotated[int, gebm.Limits(ge=1)] = 2

    def draw(self, n, generator=None, step=0):
        return torch.zeros(n)

    def __call__(self, energy, x_data, x_base, position, parameters=()):
        slope = energy(x_data) ** self.power
        return self.weight * slope.mean()
'''


def forget(patch: pytest.MonkeyPatch) -> None:
    """Make this process one that has loaded no plugin, until the patch is undone."""
    patch.setattr(plugins, "_loaded", {})
    for registry in REGISTRIES:
        patch.setattr(registry, "_parts", {part.name: part for part in registry.parts() if part.builtin})
    for name in [name for name in sys.modules if name.startswith("gebm_plugin_")]:
        patch.delitem(sys.modules, name)


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the test begin, and leave, without plugins."""
    monkeypatch.delenv("GEBM_PLUGINS", raising=False)
    forget(monkeypatch)
    yield
    for name in [name for name in sys.modules if name.startswith("gebm_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def load(tmp_path: Path, no_plugins: None) -> Callable[[str], str]:
    """A function that loads a plugin from its source text, and returns its path."""

    def loaded(text: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
        plugins.load([str(path)])
        return str(path)

    return loaded
