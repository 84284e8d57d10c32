"""What regularises the energy.

L2 of the weights is not here: it is the energy optimiser's, ``gebm.training.adam(weight_decay=...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GradientPenalty"]


@dataclass(frozen=True)
class GradientPenalty:
    """Mean squared gradient of the energy between data and base, ``weight * mean ||grad_x E(x~)||^2``.

    The points ``x~ = t x_data + (1 - t) x_base`` lie on segments between pairs of samples (Gulrajani et al. 2017), one
    uniform ``t`` per pair. The gradient is drawn to zero (Arbel, Zhou and Gretton, ICLR 2021), not to one.

    Args:
        weight: ``lambda``. Zero costs nothing: no gradient is computed.

    Raises:
        ValueError: If the weight is negative.

    Example:
        >>> x_data, x_base = torch.ones(4, 2), torch.zeros(4, 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> penalty = GradientPenalty(0.5)
        >>> penalty(lambda x: 3 * x[:, 0], x_data, x_base, penalty.draw(4, generator))
        tensor(4.5000)
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"the penalty's weight is {self.weight}: choose zero or more")

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the uniform positions on the segments.

        Args:
            n: How many segments.
            generator: Source of every random number.

        Returns:
            Positions (n,) in [0, 1), on the generator's device.
        """
        return torch.rand(n, generator=generator, device="cpu" if generator is None else generator.device)

    def __call__(self, energy: Callable[[Tensor], Tensor], x_data: Tensor, x_base: Tensor, position: Tensor) -> Tensor:
        """Return the penalty, differentiable in the energy's parameters.

        Args:
            energy: Maps (N, ...) to (N,).
            x_data: Data (N, ...); of more data than positions the first are taken.
            x_base: Base samples (N, ...); likewise.
            position: Where on its segment each point lies (N,), 0 at the base sample and 1 at the data.

        Returns:
            A scalar.
        """
        if self.weight == 0:
            return x_data.new_zeros(())
        n = len(position)
        t = position.to(x_data).reshape(n, *[1] * (x_data.dim() - 1))
        with torch.enable_grad():
            x = torch.lerp(x_base[:n].detach(), x_data[:n].detach(), t).requires_grad_(True)
            (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        return self.weight * gradient.float().square().flatten(1).sum(1).mean()
