"""Models, data and trainers that the tests of training share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gebm import GEBM, KALE, Alternation, GradientPenalty, StandardNormal, Trainer, adam, networks

__all__ = [
    "SHORT",
    "changed",
    "digits_model",
    "family_model",
    "flow_model",
    "images",
    "linear_model",
    "snapshot",
    "trainer_of",
    "vectors",
]

SHORT = Alternation(energy_steps=2, warmup_energy_steps=3, warmup_base_steps=1, warmup_every=4)


def family_model(name: str = "dcgan", **settings: object) -> GEBM:
    """Smallest model of a registered family, the same at each call; a class-conditional one has three classes."""
    torch.manual_seed(0)
    part = networks.NAMES.part(name)
    # Imported networks have widths of their own for base and energy, and a Gaussian has none.
    widths = [key for key in ("base_width", "energy_width") if key in part.settings] or ["width"]
    sizes = {} if name == "gaussian" else dict.fromkeys(widths, 4)
    frequencies = [1.0, 2.0, 3.0] if networks.is_conditional(name) else None
    if frequencies is not None:
        sizes["num_classes"] = len(frequencies)
    resolution = min(part.facts["resolutions"], default=0)
    base, energy = networks.make(name, resolution=resolution, channels=3, latent_dim=3, **sizes, **settings)
    return GEBM(base, energy, StandardNormal(3), class_frequencies=frequencies)


def images(start: int = 0, batch_size: int = 8) -> Iterator[Tensor]:
    """Batches by their number: the same from any start."""
    for number in itertools.count(start):
        generator = torch.Generator().manual_seed(number)
        yield torch.rand(batch_size, 1, 8, 8, generator=generator) * 2 - 1


def digits_model(seed: int = 0) -> GEBM:
    torch.manual_seed(seed)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=8)
    return GEBM(base, energy, StandardNormal(4))


def linear_model(base: nn.Module | None = None, energy: nn.Module | None = None, latent_dim: int = 2) -> GEBM:
    """A model of networks that are not ours."""
    torch.manual_seed(0)
    return GEBM(base or nn.Linear(2, 2), energy or nn.Linear(2, 1), StandardNormal(latent_dim))


def trainer_of(model: GEBM, lr: float = 1e-3, **overrides) -> Trainer:
    arguments = {
        "objective": KALE(),
        "penalty": GradientPenalty(0.1),
        "energy_optimizer": adam([*model.energy.parameters(), model.log_partition], lr),
        "base_optimizer": adam(model.base.parameters(), lr),
        "alternation": SHORT,
    }
    return Trainer(model, **arguments | overrides)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def flow_model(seed: int = 0, name: str = "realnvp", **settings) -> GEBM:
    torch.manual_seed(seed)
    base, energy = networks.make(name, resolution=0, channels=2, latent_dim=2, width=8, **settings)
    return GEBM(base, energy, StandardNormal(2))


def vectors(start: int = 0, batch_size: int = 8) -> Iterator[Tensor]:
    """Batches of a shifted and stretched Gaussian by their number: the same from any start."""
    for number in itertools.count(start):
        noise = torch.randn(batch_size, 2, generator=torch.Generator().manual_seed(number))
        yield noise @ torch.tensor([[1.2, 0.3], [0.0, 0.7]]) + torch.tensor([0.5, -0.25])
