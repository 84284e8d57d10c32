"""Objectives: pairs of a loss of the energy and a loss of the base, both to be minimized.

All of them are interchangeable in :class:`gebm.training.Trainer`. Losses see numbers per sample, never samples: the
energy's, energies of data and of negatives, which come from the base or, for contrastive divergence, from chains
(:mod:`gebm.objectives.negatives`); the base's, energies of base samples or, for maximum likelihood, log-densities of
data. For the GAN baselines the energy is minus the discriminator's logit, ``E = -D``: low energy means "looks like
data" throughout.

=================  ===========================================  =====================================  ==============
name               the energy learns by                         the base learns by                     needs
=================  ===========================================  =====================================  ==============
``kale_fenchel``   KALE, with a trained log-partition           KALE
``kale_dv``        KALE, with the batch's own log-partition     KALE
``ml``             nothing                                      maximum likelihood                     a base density
``ml_kale``        KALE, with a trained log-partition           maximum likelihood                     a base density
``cd``, ``pcd``    contrastive divergence, chains on latents    KALE
``cd_data``, ...   contrastive divergence, chains on data       KALE                                   a base density
``gan``            the non-saturating GAN                       the same
``hinge``          the hinge GAN                                the same
``wasserstein``    the Wasserstein GAN                          the same                               no energy floor
=================  ===========================================  =====================================  ==============
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gebm.distributed import all_gather_rows
from gebm.objectives.negatives import BaseDraws, DataChain, LatentChain, Negatives
from gebm.registry import Registry
from gebm.samplers import Kernel

__all__ = [
    "KALE",
    "NAMES",
    "ContrastiveDivergence",
    "Hinge",
    "MaximumLikelihood",
    "NonSaturating",
    "Objective",
    "Wasserstein",
    "log_mean_exp",
    "make",
    "needs_density",
    "register",
]


class Objective(Protocol):
    """A pair of losses."""

    @property
    def trains_energy(self) -> bool:
        """Whether there are energy steps at all."""
        ...

    @property
    def trains_log_partition(self) -> bool:
        """Whether the energy's loss depends on the log-partition estimate ``c``."""
        ...

    @property
    def base_learns_from(self) -> Literal["energy", "data"]:
        """What the base's loss is computed of: energies of base samples, or log-densities of data."""
        ...

    @property
    def negatives(self) -> Negatives:
        """The source of the energy's negatives."""
        ...

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return the loss of an energy step, from energies of data (N,) and of negatives (M,)."""
        ...

    def base_loss(self, values: Tensor, /) -> Tensor:
        """Return the loss of a base step, from energies of base samples (M,) or log-densities of data (N,)."""
        ...


class _Adversarial:
    """Objectives of which both parts learn from energies, and whose negatives are the base's own draws."""

    @property
    def trains_energy(self) -> bool:
        """Always."""
        return True

    @property
    def trains_log_partition(self) -> bool:
        """Whether the energy's loss depends on the log-partition estimate ``c``."""
        return False

    @property
    def base_learns_from(self) -> Literal["energy", "data"]:
        """The energies of base samples."""
        return "energy"

    @property
    def negatives(self) -> Negatives:
        """Draws of the base."""
        return BaseDraws()


def needs_density(objective: Objective) -> bool:
    """Return whether an objective needs a base with a density, such as a flow.

    Example:
        >>> [name for name in NAMES if needs_density(make(name))]
        ['ml', 'ml_kale', 'cd_data', 'pcd_data']
    """
    return objective.base_learns_from == "data" or objective.negatives.needs_density


def log_mean_exp(values: Tensor) -> Tensor:
    """Return ``log mean exp`` of the values of all processes together.

    The logarithm of a mean is not the mean of logarithms: under ``torch.distributed`` every process needs the values of
    all. Each must have the same number.

    Args:
        values: This process's values (N,).

    Returns:
        A scalar, the same on every process.

    Example:
        >>> log_mean_exp(torch.tensor([0.0, 0.0]))
        tensor(0.)
    """
    # Each of W processes computes the joined batch's loss, and the gather's backward sums their W equal gradients. Data
    # parallelism then averages over the W processes: what remains is exactly the joined batch's gradient.
    values = all_gather_rows(values)
    return torch.logsumexp(values, 0) - math.log(len(values))


@dataclass(frozen=True)
class KALE(_Adversarial):
    """KL Approximate Lower-bound Estimate (Arbel, Zhou and Gretton, ICLR 2021, section 3).

    The energy maximizes, with ``c`` the log-partition estimate,

    - Fenchel form: ``F(E, c) = -E_P[E + c] - E_B[exp(-(E + c))] + 1``, whose batch gradients are unbiased, or
    - Donsker-Varadhan form: ``-E_P[E] - log E_B[exp(-E)]`` with the batch's own mean in the logarithm, which is biased
      and leaves ``c`` untrained.

    Both are at most ``KL(P || B)`` in expectations over ``P`` and ``B``. What a batch gives is an estimate: of the
    Donsker-Varadhan form too high on average, more so where few samples carry the weight. The base minimizes
    ``-log mean exp(-E)``: its gradient is that of the energies, weighted by self-normalized ``exp(-E)`` (section 3, the
    gradient of KALE).

    Args:
        form: ``"fenchel"`` or ``"donsker_varadhan"``.

    Raises:
        ValueError: If the form is another.

    Example:
        >>> energy_data, energy_base = torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 2.0])
        >>> lower_bound = -KALE("fenchel").energy_loss(energy_data, energy_base, torch.tensor(0.0))
        >>> bool(lower_bound <= -KALE("donsker_varadhan").energy_loss(energy_data, energy_base, None))
        True
    """

    form: Literal["fenchel", "donsker_varadhan"] = "fenchel"

    def __post_init__(self) -> None:
        if self.form not in ("fenchel", "donsker_varadhan"):
            raise ValueError(f"KALE has no form '{self.form}': choose 'fenchel' or 'donsker_varadhan'")

    @property
    def trains_log_partition(self) -> bool:
        """Whether ``c`` is trained: in the Fenchel form."""
        return self.form == "fenchel"

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return minus the batch's estimate of the lower bound of ``KL(P || B)``.

        Args:
            energy_data: Energies of data (N,).
            energy_base: Energies of base samples (M,).
            log_partition: ``c``, a scalar; the Donsker-Varadhan form does not look at it.

        Returns:
            A scalar, in nats.

        Raises:
            ValueError: If the Fenchel form is given no ``c``.
        """
        if self.form == "fenchel":
            if log_partition is None:
                raise ValueError("the Fenchel form needs the log-partition estimate: pass c")
            return (energy_data + log_partition).mean() + (-(energy_base + log_partition)).exp().mean() - 1
        return energy_data.mean() + log_mean_exp(-energy_base)

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``-log mean exp(-E)``, over the batches of all processes together.

        Args:
            energy_base: Energies of base samples (M,).

        Returns:
            A scalar, in nats.
        """
        return -log_mean_exp(-energy_base)


@dataclass(frozen=True)
class NonSaturating(_Adversarial):
    """The GAN of Goodfellow et al. (2014) with the non-saturating generator loss; ``E`` is minus the logit.

    Example:
        >>> NonSaturating().base_loss(torch.zeros(2))
        tensor(0.6931)
    """

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return the cross-entropy ``-log s(-E_data) - log(1 - s(-E_base))``, with ``s`` the sigmoid."""
        return F.softplus(energy_data).mean() + F.softplus(-energy_base).mean()

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``-log s(-E_base)``."""
        return F.softplus(energy_base).mean()


@dataclass(frozen=True)
class Hinge(_Adversarial):
    """The hinge GAN (Miyato et al. 2018); ``E`` is minus the logit.

    Example:
        >>> Hinge().energy_loss(torch.tensor([-2.0]), torch.tensor([0.5]), None)
        tensor(0.5000)
    """

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return ``max(0, 1 + E_data) + max(0, 1 - E_base)``."""
        return F.relu(1 + energy_data).mean() + F.relu(1 - energy_base).mean()

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``E_base``."""
        return energy_base.mean()


@dataclass(frozen=True)
class Wasserstein(_Adversarial):
    """The Wasserstein GAN (Arjovsky et al. 2017); ``E`` is minus the critic.

    The loss does not know the energy's zero, which is free to drift: give the model ``energy_floor=-inf`` with it.
    What makes it a Wasserstein distance is a critic that is 1-Lipschitz, by spectral normalization or, as WGAN-GP
    (Gulrajani et al. 2017), by the penalty ``GradientPenalty(10.0, target=1.0)``.

    Example:
        >>> Wasserstein().energy_loss(torch.tensor([-2.0]), torch.tensor([0.5]), None)
        tensor(-2.5000)
    """

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return ``E_data - E_base``."""
        return energy_data.mean() - energy_base.mean()

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``E_base``."""
        return energy_base.mean()


@dataclass(frozen=True)
class MaximumLikelihood:
    """The base by maximum likelihood, ``-mean log b(x_data)``; the energy by another objective, or not at all.

    For bases with a density. With ``energy=KALE()`` it is the energy-based model over a base trained for itself: what
    the base learns does not depend on the energy, and the energy corrects the base as it is (Arbel, Zhou and Gretton,
    ICLR 2021, compare both ways). Without, there are no energy steps, and the base's ``log_prob`` is the whole model.

    Args:
        energy: What the energy learns by; none leaves it as it is.

    Example:
        >>> MaximumLikelihood().trains_energy, MaximumLikelihood(KALE()).trains_energy
        (False, True)
        >>> MaximumLikelihood().base_loss(torch.tensor([-1.0, -3.0]))
        tensor(2.)
    """

    energy: Objective | None = None

    @property
    def base_learns_from(self) -> Literal["energy", "data"]:
        """The log-densities of data."""
        return "data"

    @property
    def trains_energy(self) -> bool:
        """Whether there are energy steps: if the energy has an objective."""
        return self.energy is not None

    @property
    def trains_log_partition(self) -> bool:
        """Whether ``c`` is trained: if the energy's objective does."""
        return self.energy is not None and self.energy.trains_log_partition

    @property
    def negatives(self) -> Negatives:
        """Those of the energy's objective."""
        return BaseDraws() if self.energy is None else self.energy.negatives

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return the loss of the energy's objective.

        Args:
            energy_data: Energies of data (N,).
            energy_base: Energies of negatives (M,).
            log_partition: ``c``, a scalar.

        Returns:
            A scalar.

        Raises:
            ValueError: If the energy is not trained.
        """
        if self.energy is None:
            raise ValueError("maximum likelihood alone trains no energy: give it an objective of the energy's")
        return self.energy.energy_loss(energy_data, energy_base, log_partition)

    def base_loss(self, values: Tensor) -> Tensor:
        """Return the negative log-likelihood.

        Args:
            values: Log-densities of data under the base (N,).

        Returns:
            A scalar, in nats.
        """
        return -values.mean()


@dataclass(frozen=True)
class ContrastiveDivergence:
    """Contrastive divergence: the energy is lowered on data and raised on samples of the model from short chains.

    ``E_P[E] - E_Q[E]`` has the gradient of minus the generalized log-likelihood, where ``Q`` is the model; the chains
    of ``negatives`` stand for ``Q`` (Hinton 2002), persistent ones the better the slower the energy moves (Tieleman
    2008). The log-partition never enters: estimate it afterwards, :mod:`gebm.log_partition`. Chains on latents keep
    their class: of a model of classes the likelihood is that of the data given their classes, which leaves a constant
    of each class free.

    The base's half is KALE's, ``-log mean exp(-E)``: also under contrastive divergence the base is that of a
    generalized energy-based model, and its likelihood's gradient is the weighted one.

    Args:
        negatives: Chains on latent space or on data space, of any kernel, persistent or not.

    Example:
        >>> ContrastiveDivergence().energy_loss(torch.tensor([-2.0]), torch.tensor([0.5]), None)
        tensor(-2.5000)
        >>> from gebm import samplers
        >>> objective = ContrastiveDivergence(DataChain(samplers.HMC(0.1), num_steps=5, persistent=True))
        >>> objective.negatives.persistent
        True
    """

    negatives: Negatives = field(default_factory=LatentChain)

    @property
    def trains_energy(self) -> bool:
        """Always."""
        return True

    @property
    def trains_log_partition(self) -> bool:
        """Never: the loss does not depend on it."""
        return False

    @property
    def base_learns_from(self) -> Literal["energy", "data"]:
        """The energies of base samples."""
        return "energy"

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return ``E_data - E_negatives``.

        Args:
            energy_data: Energies of data (N,).
            energy_base: Energies of negatives (M,).
            log_partition: Not used.

        Returns:
            A scalar, in nats.
        """
        return energy_data.mean() - energy_base.mean()

    def base_loss(self, values: Tensor) -> Tensor:
        """Return KALE's ``-log mean exp(-E)``, over the batches of all processes together.

        Args:
            values: Energies of base samples (M,).

        Returns:
            A scalar, in nats.
        """
        return -log_mean_exp(-values)


def _contrastive(chain: Callable[..., Negatives], persistent: bool) -> Callable[..., ContrastiveDivergence]:
    def build(kernel: Kernel[Any] | None = None, num_steps: int | None = None) -> ContrastiveDivergence:
        given = {"kernel": kernel, "num_steps": num_steps}
        settings = {name: value for name, value in given.items() if value is not None}
        return ContrastiveDivergence(chain(persistent=persistent, **settings))

    return build


NAMES: Registry[Callable[..., Objective]] = Registry("objective", given=("kernel", "num_steps"))
"""The objectives by their names; those with chains are given a kernel and their length."""

register = NAMES.register
"""Register an objective: a class, or a function of ``kernel`` and ``num_steps`` where it has chains."""

register("kale_fenchel")(lambda: KALE("fenchel"))
register("kale_dv")(lambda: KALE("donsker_varadhan"))
register("gan")(NonSaturating)
register("hinge")(Hinge)
register("wasserstein")(Wasserstein)
register("ml")(lambda: MaximumLikelihood())
register("ml_kale")(lambda: MaximumLikelihood(KALE("fenchel")))
register("cd")(_contrastive(LatentChain, persistent=False))
register("pcd")(_contrastive(LatentChain, persistent=True))
register("cd_data")(_contrastive(DataChain, persistent=False))
register("pcd_data")(_contrastive(DataChain, persistent=True))


def make(name: str, *, kernel: Kernel[Any] | None = None, num_steps: int | None = None, **settings: Any) -> Objective:
    """Return an objective by its name.

    Args:
        name: A key of ``NAMES``. ``"cd"`` and ``"pcd"`` run their chains on latent space, ``"cd_data"`` and
            ``"pcd_data"`` on data space.
        kernel: A kernel of :mod:`gebm.samplers` for the chains of contrastive divergence; (default: ULA with steps of
            1e-2). Objectives without chains ignore it.
        num_steps: Their length (default: 10).
        **settings: Settings that the objective has of its own.

    Returns:
        The objective.

    Raises:
        ValueError: If there is no such name or setting, or the number of steps is out of range.

    Example:
        >>> make("kale_dv")
        KALE(form='donsker_varadhan')
        >>> make("pcd", num_steps=20).negatives.num_steps
        20
    """
    given = {"kernel": kernel, "num_steps": num_steps}
    return NAMES.build(name, settings, **{key: value for key, value in given.items() if value is not None})
