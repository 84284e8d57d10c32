"""Generalized energy-based models, after Arbel, Zhou and Gretton (ICLR 2021).

A model has two trained parts. The *base* turns a latent draw into an image, as a GAN's generator does; the *energy*
says which of those images to keep, and with which weight. Both together are the model,
``Q(dx) = exp(-E(x)) B(dx) / Z``.

Where to look:

- :mod:`gebm.model`: the model itself, its prior, and the latent potential that samplers walk on.
- :mod:`gebm.objectives`: what is minimised: KALE in both forms, and the GAN losses as baselines.
- :mod:`gebm.penalties`: what keeps the energy smooth.
- :mod:`gebm.training`: one energy step, one base step, and the alternation between them.
- :mod:`gebm.networks`: base and energy side by side, a file per family.
- :mod:`gebm.samplers`: Markov chains on the latent space, all driven by one function.
- :mod:`gebm.partition`: estimators of the log-partition function.
- :mod:`gebm.diagnostics`: whether the chains have mixed. Not imported here, since it needs one package more than torch.

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
"""

from __future__ import annotations

from gebm import networks, samplers
from gebm.model import GEBM, BoundedEnergy, StandardNormal, frozen
from gebm.objectives import KALE, Hinge, NonSaturating, Objective, Wasserstein
from gebm.partition import log_partition_monte_carlo
from gebm.penalties import GradientPenalty
from gebm.training import Alternation, StepInfo, Trainer, adam, initialise_log_partition

__all__ = [
    "GEBM",
    "KALE",
    "Alternation",
    "BoundedEnergy",
    "GradientPenalty",
    "Hinge",
    "NonSaturating",
    "Objective",
    "StandardNormal",
    "StepInfo",
    "Trainer",
    "Wasserstein",
    "adam",
    "frozen",
    "initialise_log_partition",
    "log_partition_monte_carlo",
    "networks",
    "samplers",
]
