"""What is minimised. Each objective is a pair: a loss of the energy and a loss of the base, both over energies alone.

All of them are interchangeable in :class:`gebm.training.Trainer`. For the GAN baselines the energy is minus the
discriminator's logit, ``E = -D``: low energy means "looks like data" throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed.nn.functional as distributed_functional
from torch import Tensor, distributed
from torch.nn import functional as F

__all__ = ["KALE", "NAMES", "Hinge", "NonSaturating", "Objective", "Wasserstein", "log_mean_exp", "make"]


class Objective(Protocol):
    """A pair of losses.

    Attributes:
        trains_log_partition: Whether the energy's loss depends on the log-partition estimate ``c``.
    """

    trains_log_partition: bool

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return what an energy step minimises, from energies of data (N,) and of base samples (M,)."""
        ...

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return what a base step minimises, from energies of base samples (M,)."""
        ...


def log_mean_exp(values: Tensor) -> Tensor:
    """Return ``log mean exp`` of the values of all processes together.

    The logarithm of a mean is not the mean of logarithms: under ``torch.distributed`` every process needs the values of
    all. They must have as many each.

    Args:
        values: This process's values (N,).

    Returns:
        A scalar, the same on every process.

    Example:
        >>> log_mean_exp(torch.tensor([0.0, 0.0]))
        tensor(0.)
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        # Each of W processes computes the joined batch's loss, and the gather's backward sums their W equal gradients.
        # Data parallelism then averages over the W processes: what remains is exactly the joined batch's gradient.
        values = torch.cat(distributed_functional.all_gather(values.contiguous()))
    return values.logsumexp(0) - math.log(len(values))


@dataclass(frozen=True)
class KALE:
    """KL Approximate Lower-bound Estimate (Arbel, Zhou and Gretton, ICLR 2021).

    The energy maximises, with ``c`` the log-partition estimate,

    - Fenchel form: ``F(E, c) = -E_P[E + c] - E_B[exp(-(E + c))] + 1``, whose batch gradients are unbiased, or
    - Donsker-Varadhan form: ``-E_P[E] - log E_B[exp(-E)]`` with the batch's own mean in the logarithm, which is biased
      and leaves ``c`` untrained.

    Both are at most ``KL(P || B)``. The base minimises ``-log mean exp(-E)``: its gradient is that of the energies,
    weighted by self-normalised ``exp(-E)``.

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
        """Return minus the lower bound of ``KL(P || B)``.

        Args:
            energy_data: Energies of data (N,).
            energy_base: Energies of base samples (M,).
            log_partition: ``c``, a scalar; the Donsker-Varadhan form does not look at it.

        Returns:
            A scalar, in nats.
        """
        if self.form == "fenchel":
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
class NonSaturating:
    """The GAN of Goodfellow et al. (2014) with the non-saturating generator loss; ``E`` is minus the logit.

    Example:
        >>> NonSaturating().base_loss(torch.zeros(2))
        tensor(0.6931)
    """

    trains_log_partition = False

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return the cross-entropy ``-log s(-E_data) - log(1 - s(-E_base))``, with ``s`` the sigmoid."""
        return F.softplus(energy_data).mean() + F.softplus(-energy_base).mean()

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``-log s(-E_base)``."""
        return F.softplus(energy_base).mean()


@dataclass(frozen=True)
class Hinge:
    """The hinge GAN (Miyato et al. 2018); ``E`` is minus the logit.

    Example:
        >>> Hinge().energy_loss(torch.tensor([-2.0]), torch.tensor([0.5]), None)
        tensor(0.5000)
    """

    trains_log_partition = False

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return ``max(0, 1 + E_data) + max(0, 1 - E_base)``."""
        return F.relu(1 + energy_data).mean() + F.relu(1 - energy_base).mean()

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``E_base``."""
        return energy_base.mean()


@dataclass(frozen=True)
class Wasserstein:
    """The Wasserstein GAN (Arjovsky et al. 2017); ``E`` is minus the critic.

    The loss does not know the energy's zero, which is free to drift: give the model ``energy_floor=-inf`` with it.

    Example:
        >>> Wasserstein().energy_loss(torch.tensor([-2.0]), torch.tensor([0.5]), None)
        tensor(-2.5000)
    """

    trains_log_partition = False

    def energy_loss(self, energy_data: Tensor, energy_base: Tensor, log_partition: Tensor | None) -> Tensor:
        """Return ``E_data - E_base``."""
        return energy_data.mean() - energy_base.mean()

    def base_loss(self, energy_base: Tensor) -> Tensor:
        """Return ``E_base``."""
        return energy_base.mean()


NAMES: dict[str, Callable[[], Objective]] = {
    "kale_fenchel": lambda: KALE("fenchel"),
    "kale_dv": lambda: KALE("donsker_varadhan"),
    "gan": NonSaturating,
    "hinge": Hinge,
    "wasserstein": Wasserstein,
}


def make(name: str) -> Objective:
    """Return an objective by its name.

    Args:
        name: A key of ``NAMES``.

    Returns:
        The objective.

    Raises:
        ValueError: If there is no such name.

    Example:
        >>> make("kale_dv")
        KALE(form='donsker_varadhan')
    """
    if name not in NAMES:
        raise ValueError(f"no objective is called '{name}': choose one of {', '.join(NAMES)}")
    return NAMES[name]()
