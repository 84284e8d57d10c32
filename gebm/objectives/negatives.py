"""Negatives of an energy step: the samples that the energy is raised on, against the data it is lowered on.

- :class:`BaseDraws`: the base itself; KALE and the GANs.
- :class:`LatentChain`: a Markov chain on latent space, towards the model; contrastive divergence for any base.
- :class:`DataChain`: a Markov chain on the data themselves; contrastive divergence for a base with a density.

Several processes draw as one would: each keeps its own rows of what it draws for all. Each is a frozen dataclass of
settings. What a persistent chain remembers, the positions of its walkers, goes in and out
of ``draw``; :class:`gebm.training.Trainer` keeps them and puts them into its ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gebm import samplers
from gebm.classes import ChainPotential
from gebm.distributed import draw_local_rows, rank_and_world_size
from gebm.energies import Density
from gebm.freezing import frozen
from gebm.model import GEBM
from gebm.replay.tape import draw_to

__all__ = ["BaseDraws", "DataChain", "Draw", "LatentChain", "Negatives"]


class Draw(NamedTuple):
    """Result of a draw.

    Attributes:
        x: Negatives (M, ...), without a graph.
        positions: Positions of the chains (M, D), to be passed to the next draw; ``None`` if nothing persists.
    """

    x: Tensor
    positions: Tensor | None


class Negatives(Protocol):
    """A source of negatives."""

    @property
    def needs_density(self) -> bool:
        """Whether the base must have a ``log_prob``."""
        ...

    def draw(
        self,
        gebm: GEBM,
        n: int,
        generator: torch.Generator | None,
        x_data: Tensor,
        positions: Tensor | None = None,
    ) -> Draw:
        """Draw ``n`` negatives of a model, given a batch of data (N, ...), from the positions of the chains."""
        ...


@dataclass(frozen=True)
class BaseDraws:
    """Independent draws from the base.

    Example:
        >>> from torch import nn
        >>> from gebm import GEBM, StandardNormal
        >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
        >>> BaseDraws().draw(model, 5, None, torch.zeros(4, 3)).x.shape
        torch.Size([5, 3])
    """

    needs_density = False

    def draw(
        self,
        gebm: GEBM,
        n: int,
        generator: torch.Generator | None,
        x_data: Tensor,
        positions: Tensor | None = None,
    ) -> Draw:
        """Draw from the base, in evaluation mode.

        Args:
            gebm: The model.
            n: Number of negatives.
            generator: Source of every random number.
            x_data: Not used.
            positions: Not used.

        Returns:
            The samples.
        """
        return Draw(_base_draws(gebm, n, generator), None)


@dataclass(frozen=True)
class _Chain:
    """Settings and starts of both kinds of chains."""

    kernel: samplers.Kernel[Any] = field(default_factory=lambda: samplers.UnadjustedLangevin(step_size=1e-2))
    num_steps: int = 10
    persistent: bool = False
    restart: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"negatives from a chain of {self.num_steps} steps: choose at least 1")
        if not 0 <= self.restart <= 1:
            raise ValueError(f"chains start anew with probability {self.restart}: choose a number from 0 to 1")

    def _starts(
        self, n: int, positions: Tensor | None, fresh: Callable[[int], Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """Return where ``n`` chains start (n, D)."""
        if not self.persistent or positions is None:
            return fresh(n)
        if len(positions) < n:
            positions = torch.cat([positions, fresh(n - len(positions))])
        starts_ND = positions[:n]
        if self.restart == 0:
            return starts_ND

        def draw(source: torch.Generator | None, total: int) -> Tensor:
            return torch.rand(total, generator=source, device=None if source is None else source.device)

        uniform = draw_local_rows(n, lambda total: draw_to(starts_ND.device, generator, partial(draw, total=total)))
        return torch.where((uniform < self.restart)[:, None], fresh(n), starts_ND)


@dataclass(frozen=True)
class LatentChain(_Chain):
    """Ends of chains on latent space, ``x = B(z)`` with the potential ``U(z) = -log eta(z) + E(B(z))``.

    Long and exact, such a chain samples the model, and contrastive divergence is the gradient of the generalized
    likelihood. Started at the prior and short, it is biased towards the base. Persistent (Tieleman, ICML 2008), each
    chain continues from where the last energy step left it; the rest of a kernel's state, velocities and the position
    in a schedule, starts anew, as the potential has moved. A chain that diverges is restarted at the prior.

    A chain keeps its class: where the model has classes, it samples the model given the class, classes are as in the
    data, and the gradient is that of the likelihood given the class.

    Args:
        kernel: A kernel of :mod:`gebm.samplers`.
        num_steps: Steps per energy step.
        persistent: Whether chains continue, instead of starting at the prior each time.
        restart: Probability with which a persistent chain starts at the prior all the same (Du and Mordatch 2019).

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from torch import nn
        >>> from gebm import GEBM, StandardNormal
        >>> model = GEBM(nn.Linear(2, 3), nn.Linear(3, 1), StandardNormal(2))
        >>> draw = LatentChain(samplers.MALA(0.1), num_steps=3, persistent=True).draw(model, 5, None, torch.zeros(4, 3))
        >>> draw.x.shape, draw.positions.shape
        (torch.Size([5, 3]), torch.Size([5, 2]))
    """

    needs_density = False

    def draw(
        self,
        gebm: GEBM,
        n: int,
        generator: torch.Generator | None,
        x_data: Tensor,
        positions: Tensor | None = None,
    ) -> Draw:
        """Run the chains.

        Args:
            gebm: The model.
            n: Number of negatives.
            generator: Source of every random number.
            x_data: Not used.
            positions: Positions of persistent chains (any number, D); the first ``n`` of them continue.

        Returns:
            The samples and, if persistent, the latents.
        """
        # Held here as well as in the potential, so that normalized weights are computed once and not at every step.
        with torch.no_grad(), frozen(gebm.base, gebm.energy):

            def fresh(count: int) -> Tensor:
                return draw_local_rows(count, lambda total: gebm.sample_latents(total, generator))

            potential = ChainPotential(gebm, self._starts(n, positions, fresh, generator))
            chain = samplers.run(
                self.kernel,
                potential,
                potential.z,
                self.num_steps,
                generator=generator,
                prior=gebm.prior,
                first_chain=rank_and_world_size()[0] * n,
            )
            z_ND = potential.join(chain.z)
            return Draw(gebm.decode(z_ND), z_ND if self.persistent else None)


@dataclass(frozen=True)
class DataChain(_Chain):
    """Ends of chains on data space itself, whose potential is minus the model's log-density up to ``A``.

    Contrastive divergence as Hinton (2002) has it: the chains start at the data. For a base with a density only, and
    data that are vectors. Persistent chains as in :class:`LatentChain`; one that diverges is restarted at the base.

    Args:
        kernel: A kernel of :mod:`gebm.samplers`.
        num_steps: Steps per energy step.
        persistent: Whether chains continue, instead of starting afresh each time.
        restart: Probability with which a persistent chain starts afresh all the same.
        start: Where chains start: ``"data"``, the batch's, or ``"base"``, draws from the base.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from gebm import GEBM, StandardNormal, networks
        >>> base, energy = networks.make("gaussian", resolution=0, channels=2, latent_dim=2)
        >>> model = GEBM(base, energy, StandardNormal(2))
        >>> DataChain(num_steps=3).draw(model, 5, None, torch.zeros(4, 2)).x.shape
        torch.Size([5, 2])
    """

    start: Literal["data", "base"] = "data"

    needs_density = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("data", "base"):
            raise ValueError(f"a chain on data cannot start at '{self.start}': choose 'data' or 'base'")

    def draw(
        self,
        gebm: GEBM,
        n: int,
        generator: torch.Generator | None,
        x_data: Tensor,
        positions: Tensor | None = None,
    ) -> Draw:
        """Run the chains.

        Args:
            gebm: The model; its base has a density.
            n: Number of negatives.
            generator: Source of every random number.
            x_data: Data (N, D), where chains start that start at the data; over again from the first if N < n.
            positions: Positions of persistent chains (any number, D); the first ``n`` of them continue.

        Returns:
            The samples and, if persistent, the same as positions.

        Raises:
            ValueError: If the base has no density or the data are no vectors.
        """

        def fresh(count: int) -> Tensor:
            if self.start == "base":
                return _base_draws(gebm, count, generator)
            return x_data[torch.arange(count, device=x_data.device) % len(x_data)]

        with torch.no_grad(), frozen(gebm.base, gebm.energy):
            x0_ND = self._starts(n, positions, fresh, generator)
            x_ND = samplers.run(
                self.kernel,
                gebm.data_potential,
                x0_ND,
                self.num_steps,
                generator=generator,
                prior=_BaseAsPrior(gebm),
                first_chain=rank_and_world_size()[0] * n,
            ).z
            return Draw(x_ND, x_ND if self.persistent else None)


def _base_draws(gebm: GEBM, n: int, generator: torch.Generator | None) -> Tensor:
    """Return this process's ``n`` of the draws (n, ...) that all processes make from the base together."""
    with frozen(gebm.base):
        return gebm.decode(draw_local_rows(n, lambda total: gebm.sample_latents(total, generator)))


@dataclass(frozen=True)
class _BaseAsPrior:
    """The base as the distribution on data space where a diverged chain restarts."""

    is_network = True

    gebm: GEBM

    def from_noise(self, noise: Tensor) -> Tensor:
        """Map standard normal noise (N, D) to base samples (N, D)."""
        return self.gebm.decode(self.gebm.prior.from_noise(noise))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the base's log-densities (N,)."""
        assert isinstance(self.gebm.base, Density)
        return self.gebm.base.log_prob(z)
