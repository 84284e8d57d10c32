"""Energies over a network: bounded from below, relative to a base that has a density, or none."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from gebm import samplers
from gebm.freezing import frozen
from gebm.inputs import as_number, cast_to, one_per_sample, require_module, require_same_dimension

__all__ = ["BoundedEnergy", "Density", "NoEnergy", "RelativeEnergy", "log_density"]


@runtime_checkable
class Density(Protocol):
    """A base with a density, such as a normalizing flow."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Map samples (N, D) to their log-densities (N,), in nats."""
        ...


class BoundedEnergy(nn.Module):
    """An energy network bounded from below, ``max(E(x), floor)``, and returned in full precision.

    Without the bound a single sample of very low energy carries the whole mean of ``exp(-E)`` (Arbel, Zhou and
    Gretton, ICLR 2021, use -10).

    Args:
        network: Maps samples (N, ...) to (N,) or (N, 1).
        floor: The least energy. Minus infinity for the Wasserstein baseline, whose critic has no zero.

    Example:
        >>> import torch
        >>> energy = BoundedEnergy(nn.Identity(), floor=-10.0)
        >>> energy(torch.tensor([[-12.0], [3.0]]))
        tensor([-10.,   3.])
    """

    def __init__(self, network: nn.Module, floor: float = -10.0) -> None:
        super().__init__()
        require_module("energy", network)
        self.floor = as_number("the energy's floor", floor)
        if not self.floor < math.inf:
            raise ValueError(f"the energy's floor is {floor!r}: choose a number, or minus infinity for none")
        self.network = network

    def extra_repr(self) -> str:
        """Return the settings that ``repr`` shows."""
        return f"floor={self.floor}"

    def forward(self, x: Tensor) -> Tensor:
        """Return one energy per sample.

        Args:
            x: Samples (N, ...).

        Returns:
            Energies (N,), float32 or wider.

        Raises:
            TypeError: If the network returns no tensor.
            ValueError: If the network does not return one number per sample.
        """
        energy_N = one_per_sample(self.network(cast_to(self.network, x)), len(x), "the energy network")
        # exp(-E) multiplies a rounding error of E: what follows, losses and potentials, is never in half precision.
        return energy_N.to(samplers.wide(energy_N.dtype)).clamp(min=self.floor)


class RelativeEnergy(nn.Module):
    """An energy written relative to a base with a density ``b``: ``E(x) = D(x) + log b(x)``.

    Then ``exp(-E) dB = exp(-D) dx``: the model has the density ``exp(-D(x) - A)``, and both it and ``A`` are the same
    whichever base they are written with (Arbel, Zhou and Gretton, ICLR 2021, density estimation).

    The base is no part of this module and its parameters are none of it: what trains the energy trains ``D``. Nor does
    any gradient reach the base through ``log b``, which is a fixed function of ``x`` here; in a base step the base
    learns through its samples alone, weighted as the paper's section 3 has it.

    Args:
        network: ``D``; maps samples (N, ...) to (N,) or (N, 1).
        base: The base, with ``log_prob``.

    Raises:
        ValueError: If the base has no ``log_prob``, or ``D`` is a flow's of another dimension.

    Example:
        >>> from gebm import networks
        >>> base = networks.flows.GaussianFlow(2)
        >>> energy = RelativeEnergy(nn.Linear(2, 1), base)
        >>> [name for name, _ in energy.named_parameters()]
        ['network.weight', 'network.bias']
    """

    def __init__(self, network: nn.Module, base: nn.Module) -> None:
        super().__init__()
        if not isinstance(base, Density):
            raise ValueError(f"an energy relative to {type(base).__name__} needs its log_prob: use a normalizing flow")
        require_same_dimension("energy", network, "base", base)
        self.network = network
        # In a tuple, the base is no submodule. It follows to another device or type all the same: as the model's base.
        self._base: tuple[nn.Module] = (base,)

    @property
    def base(self) -> nn.Module:
        """The base that the energy is relative to."""
        return self._base[0]

    def with_base(self, base: nn.Module) -> RelativeEnergy:
        """Return the energy relative to another base; ``D`` is shared, not copied."""
        return RelativeEnergy(self.network, base)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (N, ...) to energies (N,), differentiable in ``x`` and in the parameters of ``D``."""
        base = self.base
        assert isinstance(base, Density)
        with frozen(base):
            log_base_N = log_density(base, x)
        return one_per_sample(self.network(x), len(x), "the energy network") + log_base_N


class NoEnergy(nn.Module):
    """The energy of a model that has none, zero everywhere: its samples are the base's.

    Example:
        >>> import torch
        >>> NoEnergy()(torch.ones(2, 3))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros (N,) for samples (N, ...), with a gradient that is zero too."""
        return 0.0 * x.flatten(1).sum(1)


def log_density(base: Density, x: Tensor) -> Tensor:
    """Return a base's log-densities (N,) of samples (N, ...)."""
    x = cast_to(base, x) if isinstance(base, nn.Module) else x
    return one_per_sample(base.log_prob(x), len(x), "the base's log_prob")
