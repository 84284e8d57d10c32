"""Gradient guards: bound what one batch can do to the energy, between the backward pass and Adam's step.

The Fenchel form of KALE holds ``exp(-(E + c))`` of single base samples, so one sample can have a gradient a thousand
times that of any other batch. Adam (Kingma and Ba 2015) keeps the square of it in its second moment, and with
``beta2 = 0.999`` all steps of the next thousand are the smaller for it: the energy stops learning. A guard changes the
gradients of the energy's weights and of the log-partition ``c`` in place:

- :class:`ClipGradients` scales each of the two to a norm of at most ``max_norm`` (Pascanu, Mikolov and Bengio 2013);
- :class:`ArbelTransform` is what the authors' code of *Generalized Energy Based Models* (Arbel, Zhou and Gretton, ICLR
  2021) does by default: ``2 g / (1 + g^2)`` for each entry of the energy's gradient, ``g / (1 - g)`` for that of ``c``;
- :class:`NoGuard` leaves them alone, as Algorithm 1 is written.

The base's gradients are never touched: they are weighted by self-normalized weights, which are at most one.

A guard of ``c`` has a price. With ``m`` the mean of ``exp(-(E + c))`` over a batch, the gradient is ``1 - m``, and
``c`` settles at the log-partition ``A``, where ``E[m] = 1``, only if nothing bounds it. Clipped to one it settles where
``E[max(1 - m, -1)] = 0``, and under the authors' transform where ``E[1 / m] = 1``: both below ``A``, the more so the
more a batch's weights vary. For batches of 128 whose energies are normal with a standard deviation of 2 nats, it is
0.04 nats (clipped) and 0.17 (transformed) below; of 3 nats, 0.50 and 0.88. Before ``c`` is used as ``log Z``, as by
:meth:`gebm.GEBM.log_prob`, call :func:`gebm.initialize_log_partition`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gebm.inputs import as_number

__all__ = ["NAMES", "ArbelTransform", "ClipGradients", "GradientGuard", "NoGuard", "make"]


class GradientGuard(Protocol):
    """Changes gradients in place, without waiting for the device."""

    def __call__(self, energy: Iterable[Tensor], log_partition: Tensor) -> None:
        """Bound the gradients of the energy's parameters and of ``c``; those that have none are left out."""
        ...


@dataclass(frozen=True)
class NoGuard:
    """Leave the gradients as they are."""

    def __call__(self, energy: Iterable[Tensor], log_partition: Tensor) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class ClipGradients:
    """Scale the energy's gradient, and that of ``c`` by itself, to a norm of at most ``max_norm``.

    After any batch the sum of Adam's second moments is larger by at most ``(1 - beta2) * max_norm ** 2``, whatever the
    batch's loss was. A gradient that is not finite becomes zero. ``c`` settles below the log-partition; see the top of
    this module.

    Args:
        max_norm: The largest Euclidean norm, over all parameters together.

    Raises:
        ValueError: If the norm is not positive.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3e4, 4e4])
        >>> ClipGradients()([weight], torch.zeros(()))
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_norm", as_number("max_norm", self.max_norm))
        if not self.max_norm > 0:
            raise ValueError(f"gradients are clipped to a norm of {self.max_norm}: choose a positive one")

    def __call__(self, energy: Iterable[Tensor], log_partition: Tensor) -> None:
        """Clip both gradients."""
        for parameters in (list(energy), [log_partition]):
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not gradients:
                continue
            norm = torch.nn.utils.get_total_norm(gradients)
            # Times one where the norm is within bounds: a batch that needs no guard has the very same gradient. A norm
            # that is not a number makes all entries so, and then zero.
            factor = torch.where(norm <= self.max_norm, torch.ones_like(norm), self.max_norm / norm)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]  (torch documents it)
            _zero_nonfinite(gradients)


@dataclass(frozen=True)
class ArbelTransform:
    """The authors' transform: entry by entry, ``2 g / (1 + g^2)`` for the energy and ``g / (1 - g)`` for ``c``.

    No entry of the energy's is larger than one, and a very large one becomes a very small one. The gradient of the
    Fenchel form with respect to ``c``, ``1 - mean exp(-(E + c))``, is below one; what would not be finite becomes zero.

    ``c`` settles below the log-partition; see the top of this module. If it starts more than 17 nats above, the mean is
    lost in the rounding of ``1 - mean``, the transformed gradient is infinite and becomes zero, and ``c`` never moves:
    set it by :func:`gebm.initialize_log_partition` first.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> weight.grad = torch.tensor([0.1, 1.0, 1e4])
        >>> ArbelTransform()([weight], torch.zeros(()))
        >>> weight.grad
        tensor([1.9802e-01, 1.0000e+00, 2.0000e-04])
    """

    def __call__(self, energy: Iterable[Tensor], log_partition: Tensor) -> None:
        """Transform both gradients."""
        gradients = [parameter.grad for parameter in energy if parameter.grad is not None]
        for gradient in gradients:
            gradient.copy_(2 * gradient / (1 + gradient.square()))
        if log_partition.grad is not None:
            gradients.append(log_partition.grad)
            log_partition.grad.copy_(log_partition.grad / (1 - log_partition.grad))
        _zero_nonfinite(gradients)


def _zero_nonfinite(gradients: list[Tensor]) -> None:
    for gradient in gradients:
        gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


NAMES: dict[str, Callable[[], GradientGuard]] = {"none": NoGuard, "clip": ClipGradients, "arbel": ArbelTransform}


def make(name: str) -> GradientGuard:
    """Return a guard by its name.

    Args:
        name: A key of ``NAMES``.

    Returns:
        The guard.

    Raises:
        ValueError: If there is no such name.

    Example:
        >>> make("clip")
        ClipGradients(max_norm=1.0)
    """
    if name not in NAMES:
        raise ValueError(f"no gradient guard is called '{name}': choose one of {', '.join(NAMES)}")
    return NAMES[name]()
