"""Regularizers of the energy.

A penalty is drawn and then computed: ``draw`` makes its random numbers, or returns ``None`` where none is due at this
step, and the call returns the scalar that is added to the energy's loss. Each is a function of the energy alone and
none knows of the objective, so that any goes with any. L2 of the weights is here and, without any cost, the energy
optimizer's: ``gebm.training.optimizers.adam(weight_decay=...)`` adds the gradient of half of it.

- drawn to zero between data and base (:class:`GradientPenalty`), as Arbel, Zhou and Gretton (ICLR 2021) have it;
- drawn to one there (``GradientPenalty(10.0, target=1.0)``), which makes the Wasserstein baseline WGAN-GP;
- drawn to zero at the data (:class:`R1`) or at the base samples (:class:`R2`);
- of the weights (:class:`L2`), or nothing (:class:`NoPenalty`);
- any of them only every ``n`` steps (:class:`Lazy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from gebm.inputs import as_number
from gebm.registry import Limits, Registry

__all__ = ["L2", "NAMES", "R1", "R2", "GradientPenalty", "Lazy", "NoPenalty", "Penalty", "make", "register"]

Energy = Callable[[Tensor], Tensor]


class Penalty(Protocol):
    """A term that is added to the energy's loss."""

    def draw(self, n: int, generator: torch.Generator | None = None, step: int = 0) -> Tensor | None:
        """Draw the positions of ``n`` points, or return ``None`` if no penalty is due at this energy step."""
        ...

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return the penalty, a scalar, at what was drawn; ``parameters`` are the energy's."""
        ...


@dataclass(frozen=True)
class _Weighted:
    """Penalties with a weight."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", as_number("the penalty's weight", self.weight))
        if not self.weight >= 0:
            raise ValueError(f"the penalty's weight is {self.weight}: choose zero or more")

    def draw(self, n: int, generator: torch.Generator | None = None, step: int = 0) -> Tensor | None:
        """Draw nothing: this penalty is not random, and due at every step.

        Args:
            n: Number of points.
            generator: Not used.
            step: Energy steps done before.

        Returns:
            Zeros (n,).
        """
        return torch.zeros(n)


@dataclass(frozen=True)
class GradientPenalty(_Weighted):
    """Mean squared gradient of the energy between data and base, ``weight * mean (||grad_x E(x~)|| - target)^2``.

    The points ``x~ = t x_data + (1 - t) x_base`` lie on segments between pairs of samples (Gulrajani et al. 2017), one
    uniform ``t`` per pair. The gradient is drawn to zero (Arbel, Zhou and Gretton, ICLR 2021); Gulrajani et al. draw
    it to one, with weight 10.

    Args:
        weight: ``lambda``. Zero costs nothing: no gradient is computed.
        target: Norm that the gradient is drawn to.

    Raises:
        ValueError: If the weight or the target is negative.

    Example:
        >>> x_data, x_base = torch.ones(4, 2), torch.zeros(4, 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> penalty = GradientPenalty(0.5)
        >>> penalty(lambda x: 3 * x[:, 0], x_data, x_base, penalty.draw(4, generator))
        tensor(4.5000)
        >>> penalty = GradientPenalty(0.5, target=1.0)
        >>> penalty(lambda x: 3 * x[:, 0], x_data, x_base, penalty.draw(4, generator))
        tensor(2.)
    """

    target: Annotated[float, Limits(ge=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "target", as_number("the gradient's target", self.target))
        if not self.target >= 0:
            raise ValueError(f"the gradient's target is {self.target}: a norm is zero or more")

    def draw(self, n: int, generator: torch.Generator | None = None, step: int = 0) -> Tensor | None:
        """Draw the uniform positions on the segments.

        Args:
            n: Number of segments.
            generator: Source of every random number.
            step: Energy steps done before; every step has a penalty.

        Returns:
            Positions (n,) in [0, 1), on the generator's device.
        """
        return torch.rand(n, generator=generator, device="cpu" if generator is None else generator.device)

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return the penalty, differentiable in the energy's parameters.

        Args:
            energy: Maps (N, ...) to (N,).
            x_data: Data (N, ...); of more data than positions the first are taken.
            x_base: Base samples (N, ...); likewise.
            position: Position of each point on its segment (N,), 0 at the base sample and 1 at the data.
            parameters: Not used.

        Returns:
            A scalar.
        """
        if self.weight == 0:
            return x_data.new_zeros(())
        n = len(position)
        t = position.to(x_data).reshape(n, *[1] * (x_data.dim() - 1))
        gradient_ND = _gradient(energy, torch.lerp(x_base[:n].detach(), x_data[:n].detach(), t))
        if self.target == 0:  # the square of a norm has a gradient where the norm has none
            return self.weight * gradient_ND.square().sum(1).mean()
        return self.weight * (gradient_ND.norm(dim=1) - self.target).square().mean()


@dataclass(frozen=True)
class R1(_Weighted):
    """Half the mean squared gradient of the energy at the data, ``weight / 2 * mean ||grad_x E(x_data)||^2``.

    Mescheder, Geiger and Nowozin, *Which training methods for GANs do actually converge?*, ICML 2018.

    Args:
        weight: ``gamma``. Zero costs nothing: no gradient is computed.

    Raises:
        ValueError: If the weight is negative.

    Example:
        >>> x_data, x_base = torch.ones(4, 2), torch.zeros(4, 2)
        >>> R1(0.5)(lambda x: 3 * x[:, 0], x_data, x_base, torch.zeros(4))
        tensor(2.2500)
    """

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return the penalty at all the data (N, ...), differentiable in the energy's parameters."""
        if self.weight == 0:
            return x_data.new_zeros(())
        return self.weight / 2 * _gradient(energy, x_data.detach()).square().sum(1).mean()


@dataclass(frozen=True)
class R2(_Weighted):
    """Half the mean squared gradient of the energy at the base samples, ``weight / 2 * mean ||grad_x E(x_base)||^2``.

    The other half of :class:`R1` (Mescheder, Geiger and Nowozin, ICML 2018). Under contrastive divergence it is taken
    at the negatives, wherever these come from.

    Args:
        weight: ``gamma``. Zero costs nothing: no gradient is computed.

    Raises:
        ValueError: If the weight is negative.

    Example:
        >>> x_data, x_base = torch.ones(4, 2), torch.zeros(4, 2)
        >>> R2(0.5)(lambda x: 3 * x[:, 0], x_data, x_base, torch.zeros(4))
        tensor(2.2500)
    """

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return the penalty at all the base samples (N, ...), differentiable in the energy's parameters."""
        if self.weight == 0:
            return x_data.new_zeros(())
        return self.weight / 2 * _gradient(energy, x_base.detach()).square().sum(1).mean()


@dataclass(frozen=True)
class L2(_Weighted):
    """Sum of the squared weights of the energy, ``weight * ||psi||^2``.

    Single numbers are left out, as ``gebm.training.optimizers.adam`` leaves them out. A spectrally normalized layer
    divides its weight's size away again: there this sets how fast the weight turns, not how large the energy is.

    Args:
        weight: Its factor.

    Raises:
        ValueError: If the weight is negative.

    Example:
        >>> x = torch.zeros(4, 2)
        >>> L2(0.5)(lambda x: x[:, 0], x, x, torch.zeros(4), parameters=[torch.ones(2, 2), torch.tensor(7.0)])
        tensor(2.)
    """

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return the penalty of the parameters; it looks at nothing else."""
        squares = [parameter.square().sum() for parameter in parameters if parameter.dim() > 0]
        return self.weight * torch.stack(squares).sum() if squares else x_data.new_zeros(())


@dataclass(frozen=True)
class NoPenalty:
    """No penalty at all.

    Example:
        >>> NoPenalty().draw(4) is None
        True
    """

    def draw(self, n: int, generator: torch.Generator | None = None, step: int = 0) -> Tensor | None:
        """Return ``None``: it is never due."""
        return None

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return zero."""
        return x_data.new_zeros(())


@dataclass(frozen=True)
class Lazy:
    """A penalty at every n-th energy step only, with n times the weight (Karras et al. 2020, lazy regularization).

    On average over the steps it is the plain penalty, and where the plain one takes a second backward pass at each
    step, this takes one in ``every``. Karras et al. adjust Adam's rate and betas for it, too, which is left to the code
    that builds the optimizer. The random numbers it draws are the plain penalty's.

    Args:
        penalty: The penalty.
        every: Energy steps from one to the next; the first step has one.

    Raises:
        ValueError: If ``every`` is below 1.

    Example:
        >>> x_data, x_base = torch.ones(4, 2), torch.zeros(4, 2)
        >>> penalty = Lazy(R1(0.5), every=3)
        >>> [penalty.draw(4, step=step) is not None for step in range(4)]
        [True, False, False, True]
        >>> penalty(lambda x: 3 * x[:, 0], x_data, x_base, torch.zeros(4))
        tensor(6.7500)
    """

    penalty: Penalty
    every: int = 16

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"a penalty every {self.every} energy steps: choose at least 1")

    def draw(self, n: int, generator: torch.Generator | None = None, step: int = 0) -> Tensor | None:
        """Draw what the penalty draws, and return it if it is due.

        Args:
            n: Number of points.
            generator: Source of every random number.
            step: Energy steps done before.

        Returns:
            The draws of the penalty, or ``None``.
        """
        position = self.penalty.draw(n, generator, step)
        return position if step % self.every == 0 else None

    def __call__(
        self, energy: Energy, x_data: Tensor, x_base: Tensor, position: Tensor, parameters: Iterable[Tensor] = ()
    ) -> Tensor:
        """Return ``every`` times the penalty."""
        return self.every * self.penalty(energy, x_data, x_base, position, parameters)


NAMES: Registry[Callable[..., Penalty]] = Registry("penalty", given=("weight",))
"""The penalties by their names: of a weight, where they have one."""

register = NAMES.register
"""Register a penalty: a class or a function of its ``weight``."""

register("none")(NoPenalty)
register("gradient")(GradientPenalty)
register("wgan_gp")(partial(GradientPenalty, weight=10.0, target=1.0))
register("r1")(R1)
register("r2")(R2)
register("l2")(L2)


def make(name: str, weight: float | None = None, every: int = 1, **settings: Any) -> Penalty:
    """Return a penalty by its name.

    Args:
        name: A key of ``NAMES``.
        weight: Its weight (default: 1, or the published 10 of ``"wgan_gp"``). ``"none"`` has none.
        every: Energy steps from one to the next; above 1 it is a :class:`Lazy` one.
        **settings: Settings that the penalty has of its own.

    Returns:
        The penalty.

    Raises:
        ValueError: If there is no such name or setting, or a setting is out of range.

    Example:
        >>> make("wgan_gp")
        GradientPenalty(weight=10.0, target=1.0)
        >>> make("r1", 0.5, every=16)
        Lazy(penalty=R1(weight=0.5), every=16)
        >>> make("gradient", 0.5, target=1.0)
        GradientPenalty(weight=0.5, target=1.0)
    """
    penalty = NAMES.build(name, settings, **({} if weight is None else {"weight": weight}))
    return penalty if every == 1 else Lazy(penalty, every)


def _gradient(energy: Energy, x: Tensor) -> Tensor:
    """Return the gradient of the energy at points (N, ...), as rows (N, D), float32 or wider, with a graph."""
    with torch.enable_grad():
        x = x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).flatten(1)
