"""Generalized energy-based models, after Arbel, Zhou and Gretton (ICLR 2021).

A model has two trained parts. The *base* turns a latent draw into a sample, an image or a vector, as a GAN's generator
does; the *energy* says which of those samples to keep, and with which weight. Both together are the model,
``Q(dx) = exp(-E(x)) B(dx) / Z``.

Where to look:

- :mod:`gebm.model`: the model itself, the latent potential that samplers walk on, and its density where the base has
  one; :mod:`gebm.priors` and :mod:`gebm.energies`: its prior and its energy.
- :mod:`gebm.objectives`: the losses: KALE in both forms, maximum likelihood, contrastive divergence, and the GAN
  losses as baselines.
- :mod:`gebm.objectives.negatives`: the samples that an energy step raises the energy on: the base's, or the ends of
  chains.
- :mod:`gebm.objectives.penalties`: regularizers of the energy.
- :mod:`gebm.training.gradient_guard`: bounds of the energy's gradients against single batches.
- :mod:`gebm.objectives.losses`, :mod:`gebm.training.optimizers`, :mod:`gebm.training`: the loss of an energy step and
  of a base step, Adam, and the alternation between the two.
- :mod:`gebm.training.energy_phase`: the energy trained alone at the end, until held-out data say enough; how much it
  knows.
- :mod:`gebm.networks`: base and energy side by side, a file per family: images, vectors, and flows, which have a
  density.
- :mod:`gebm.classes`: models of classes, whose latents and samples carry their class.
- :mod:`gebm.samplers`: Markov chains on the latent space, all driven by one function.
- :mod:`gebm.registry`: how networks, samplers, objectives and penalties of your own get a name.
- :mod:`gebm.inputs`: what is accepted as a batch, as parameters and as arguments, and what is refused.
- :mod:`gebm.log_partition`: estimators of the log-partition function.
- :mod:`gebm.replay`: steps that are recorded once and replayed, on a GPU as CUDA graphs.
- :mod:`gebm.allocator`: memory that a process on the CPU keeps when it is freed, for speed.
- :mod:`gebm.samplers.diagnostics`: whether the chains have mixed. Not imported here, since it needs one package more
  than torch.

Example:
    >>> import itertools, torch, gebm
    >>> _ = torch.manual_seed(0)
    >>> base, energy = gebm.networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=4)
    >>> model = gebm.GEBM(base, energy, gebm.StandardNormal(4))
    >>> trainer = gebm.Trainer(
    ...     model,
    ...     objective=gebm.KALE(),
    ...     penalty=gebm.GradientPenalty(0.1),
    ...     energy_optimizer=gebm.adam([*model.energy.parameters(), model.log_partition], lr=1e-4),
    ...     base_optimizer=gebm.adam(model.base.parameters(), lr=1e-4),
    ...     alternation=gebm.Alternation(energy_steps=2, warmup_energy_steps=2),
    ... )
    >>> generator = torch.Generator().manual_seed(0)
    >>> images = itertools.repeat(torch.zeros(8, 1, 8, 8))
    >>> info = trainer.step(images, generator)
    >>> kernel = gebm.samplers.make("ula", step_size=1e-3)
    >>> trainer.sampling_model().sample(5, kernel, num_steps=3, generator=generator).shape
    torch.Size([5, 1, 8, 8])

    Density estimation: the base a Gaussian, trained by maximum likelihood, and an energy relative to it, trained by
    KALE. What the log-partition comes to is known here, minus the offset, and the trained ``c`` can be
    compared with it, as can an estimate that needs no training.

    >>> base, energy = gebm.networks.make("gaussian", resolution=0, channels=2, latent_dim=2, offset=0.5)
    >>> model = gebm.GEBM(base, energy, gebm.StandardNormal(2))
    >>> trainer = gebm.Trainer(
    ...     model,
    ...     objective=gebm.objectives.make("ml_kale"),
    ...     penalty=gebm.penalties.make("none"),
    ...     energy_optimizer=gebm.adam([*model.energy.parameters(), model.log_partition], lr=1e-3),
    ...     base_optimizer=gebm.adam(model.base.parameters(), lr=1e-3),
    ... )
    >>> vectors = itertools.repeat(torch.randn(64, 2, generator=generator))
    >>> info = trainer.step(vectors, generator)
    >>> kernel = gebm.samplers.MALA(0.5)
    >>> estimate = gebm.log_partition_annealed(model, 64, kernel, betas=[0.5, 1.0], generator=generator)
    >>> bool(abs(estimate.log_partition - -0.5) < 0.1)
    True
    >>> model.log_prob(torch.zeros(3, 2), estimate.log_partition).shape
    torch.Size([3])
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from gebm import classes, networks, objectives, registry, samplers
from gebm.allocator import disable_malloc_trim, malloc_trim
from gebm.energies import BoundedEnergy, NoEnergy, RelativeEnergy
from gebm.folding import folded
from gebm.freezing import frozen
from gebm.log_partition import (
    PartitionEstimate,
    annealing_schedule,
    initialize_log_partition,
    log_partition_annealed,
    log_partition_monte_carlo,
)
from gebm.model import GEBM
from gebm.objectives import (
    KALE,
    ContrastiveDivergence,
    Hinge,
    MaximumLikelihood,
    NonSaturating,
    Objective,
    Wasserstein,
    negatives,
    penalties,
)
from gebm.objectives.negatives import BaseDraws, DataChain, LatentChain, Negatives
from gebm.objectives.penalties import L2, R1, R2, GradientPenalty, Lazy, NoPenalty, Penalty
from gebm.priors import StandardNormal
from gebm.registry import Limits
from gebm.training import Alternation, StepInfo, Trainer, gradient_guard
from gebm.training.energy_phase import EnergyPhase, EnergyQuality, PhaseResult, energies_of, energy_quality
from gebm.training.gradient_guard import ArbelTransform, ClipGradients, GradientGuard, NoGuard
from gebm.training.optimizers import Schedule, adam


def __getattr__(name: str) -> ModuleType:
    """Import ``gebm.diagnostics`` on its first use."""
    if name == "diagnostics":
        return import_module("gebm.samplers.diagnostics")
    raise AttributeError(f"module 'gebm' has no attribute {name!r}")


__all__ = [
    "GEBM",
    "KALE",
    "L2",
    "R1",
    "R2",
    "Alternation",
    "ArbelTransform",
    "BaseDraws",
    "BoundedEnergy",
    "ClipGradients",
    "ContrastiveDivergence",
    "DataChain",
    "EnergyPhase",
    "EnergyQuality",
    "GradientGuard",
    "GradientPenalty",
    "Hinge",
    "LatentChain",
    "Lazy",
    "Limits",
    "MaximumLikelihood",
    "Negatives",
    "NoEnergy",
    "NoGuard",
    "NoPenalty",
    "NonSaturating",
    "Objective",
    "PartitionEstimate",
    "Penalty",
    "PhaseResult",
    "RelativeEnergy",
    "Schedule",
    "StandardNormal",
    "StepInfo",
    "Trainer",
    "Wasserstein",
    "adam",
    "annealing_schedule",
    "classes",
    "disable_malloc_trim",
    "energies_of",
    "energy_quality",
    "folded",
    "frozen",
    "gradient_guard",
    "initialize_log_partition",
    "log_partition_annealed",
    "log_partition_monte_carlo",
    "malloc_trim",
    "negatives",
    "networks",
    "objectives",
    "penalties",
    "registry",
    "samplers",
]
