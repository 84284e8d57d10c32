"""Normalizing flows, for vectors: bases with a density, and energies whose log-partition is known.

A flow maps ``z ~ N(0, I)`` to data, invertibly, and so has a density. As a base it gives the model one; as minus an
energy, up to a constant, it makes the log-partition of ``exp(-D) dx`` known, to hold an estimate against (Arbel, Zhou
and Gretton, ICLR 2021, density estimation).

Each flow starts as the identity, so that base, energy and reweighting begin where the data are if those are whitened.
Computed in float32 even inside an autocast region: energies are differences of log-densities, and inverses
accumulate rounding errors over all layers. All but the Gaussian need the package ``zuko``, once they are built.

============  ===================================  ==========================  =====================
name          one layer                            sampling, in passes         density, in passes
============  ===================================  ==========================  =====================
``gaussian``  affine, full covariance              1                           1
``realnvp``   affine coupling                      1 per layer                 1 per layer
``nsf``       rational-quadratic spline coupling   1 per layer                 1 per layer
``maf``       affine, autoregressive               dimension per layer         1 per layer
============  ===================================  ==========================  =====================
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebm.energies import RelativeEnergy
from gebm.inputs import network_dtype
from gebm.networks.mlp import MLPEnergy

__all__ = ["FLOWS", "MAF", "NSF", "FlowBase", "FlowEnergy", "GaussianFlow", "RealNVP", "RelativeEnergy", "make"]


class FlowBase(nn.Module, ABC):
    """An invertible map of ``N(0, I)``, with the density of its image. What each flow is: ``forward`` and ``inverse``.

    Args:
        dim: Dimension ``D`` of data and latents alike.

    Raises:
        ValueError: If the dimension is below 1.

    Example:
        >>> flow = GaussianFlow(3)
        >>> flow.log_prob(flow(torch.zeros(4, 3))).shape
        torch.Size([4])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"the dimension of a flow is {dim}: choose at least 1")
        self.dim = dim

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, D) to data (N, D)."""

    @abstractmethod
    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, D) to latents (N, D), and return with them ``log |det dz/dx|`` (N,)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, by the change of variables.

        Args:
            x: Data (N, D).

        Returns:
            Log-densities (N,), in nats, float32 or wider.

        Raises:
            ValueError: If the data are of another dimension.
        """
        z_ND, log_det_N = self.inverse(x)
        return log_det_N - 0.5 * (z_ND.square().sum(1) + self.dim * math.log(2 * math.pi))

    def _rows(self, rows: Tensor) -> Tensor:
        """Return the rows (N, D) in the type of the weights, float32 or float64, or refuse them."""
        if rows.dim() != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"a {type(self).__name__} of {self.dim} dimensions maps (N, {self.dim}), not {tuple(rows.shape)}"
            )
        dtype = network_dtype(self) or torch.float32
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a {type(self).__name__} is computed in float32 or float64, and its weights are {dtype}: call .float()"
            )
        return rows.to(dtype)


class GaussianFlow(FlowBase):
    """The Gaussian ``N(m, L L')`` with a trained mean and a trained, full covariance: ``x = m + L z``.

    ``L`` is lower triangular; of its diagonal the logarithm is trained.

    Args:
        dim: Dimension ``D``.

    Example:
        >>> GaussianFlow(2)(torch.ones(1, 2))
        tensor([[1., 1.]], grad_fn=<AddBackward0>)
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))

    @property
    def factor(self) -> Tensor:
        """The Cholesky factor ``L`` (D, D) of the covariance."""
        return self.lower.tril(-1) + self.log_diagonal.exp().diag()

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, D) to data (N, D)."""
        with _full_precision(z):
            return self.mean + self._rows(z) @ self.factor.T

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, D) to latents (N, D), and return with them ``log |det dz/dx|`` (N,)."""
        with _full_precision(x):
            centered_ND = self._rows(x) - self.mean
            z_ND = torch.linalg.solve_triangular(self.factor, centered_ND.T, upper=False).T
            return z_ND, -self.log_diagonal.sum().expand(len(x))


class _LayeredFlow(FlowBase):
    """A flow of several layers of zuko's.

    Args:
        dim: Dimension ``D``.
        layers: Given zuko and the number of each layer, build that layer, which maps from data towards latents.
        num_layers: How many.
    """

    def __init__(self, dim: int, layer: Callable[[ModuleType, int], nn.Module], num_layers: int) -> None:
        super().__init__(dim)
        if dim < 2 or num_layers < 1:
            raise ValueError(f"a flow of {num_layers} layers in dimension {dim}: choose at least 1 layer, dimension 2")
        zuko = _zuko()
        self.transform = zuko.lazy.LazyComposedTransform(*(layer(zuko, index) for index in range(num_layers)))
        for network in (layer.hyper for layer in self.transform.transforms):
            # What a layer does to a coordinate is the last linear map's output; with all of it zero, it does nothing.
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, D) to data (N, D)."""
        with _full_precision(z):
            return self.transform().inv(self._rows(z))

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, D) to latents (N, D), and return with them ``log |det dz/dx|`` (N,)."""
        with _full_precision(x):
            return self.transform().call_and_ladj(self._rows(x))


class _CouplingFlow(_LayeredFlow):
    """A flow of couplings, each of which moves every other coordinate by a map that the rest chooses.

    Even and odd coordinates are apart from the first layer to the last. Zuko's own coupling finds them by its mask at
    each call, which a GPU's host waits for.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, D) to data (N, D)."""
        with _full_precision(z):
            halves = _split(self._rows(z))
            for layer, index in reversed(self._couplings()):
                fixed, moved = halves[index % 2], halves[(index + 1) % 2]
                halves[(index + 1) % 2] = layer.meta(None, fixed).inv(moved)
            return _interleave(halves)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, D) to latents (N, D), and return with them ``log |det dz/dx|`` (N,)."""
        with _full_precision(x):
            halves = _split(self._rows(x))
            log_dets = []
            for layer, index in self._couplings():
                fixed, moved = halves[index % 2], halves[(index + 1) % 2]
                halves[(index + 1) % 2], log_det_N = layer.meta(None, fixed).call_and_ladj(moved)
                log_dets.append(log_det_N)
            return _interleave(halves), functools.reduce(torch.add, log_dets)

    def _couplings(self) -> list[tuple[Any, int]]:
        """Return the layers with their numbers, from data towards latents."""
        return [(layer, index) for index, layer in enumerate(self.transform.transforms)]


class RealNVP(_CouplingFlow):
    """Real NVP: affine couplings, each of which moves every other coordinate (Dinh, Sohl-Dickstein and Bengio 2017).

    Even and odd coordinates take turns. Shift and scale come from a network with two hidden layers.

    Args:
        dim: Dimension ``D``, at least 2.
        width: Hidden units per layer.
        num_layers: Couplings.

    Raises:
        ValueError: If the dimension or the number of couplings is out of range.
        ImportError: If zuko is not installed.

    Example:
        >>> flow = RealNVP(3, width=8)
        >>> z = torch.randn(4, 3)
        >>> torch.allclose(flow.inverse(flow(z))[0], z, atol=1e-5)
        True
    """

    def __init__(self, dim: int, width: int = 100, num_layers: int = 5) -> None:
        def layer(zuko: ModuleType, index: int) -> nn.Module:
            return zuko.flows.GeneralCouplingTransform(dim, mask=_checkered(dim, index), **_hidden(width))

        super().__init__(dim, layer, num_layers)


class NSF(_CouplingFlow):
    """Neural spline flow: rational-quadratic splines in couplings (Durkan, Bekasov, Murray and Papamakarios 2019).

    Outside of [-5, 5] a spline is the identity: whiten the data.

    Args:
        dim: Dimension ``D``, at least 2.
        width: Hidden units per layer.
        num_layers: Couplings.
        bins: Pieces of each spline.

    Raises:
        ValueError: If the dimension or the number of couplings is out of range.
        ImportError: If zuko is not installed.

    Example:
        >>> NSF(3, width=8).log_prob(torch.zeros(4, 3)).shape
        torch.Size([4])
    """

    def __init__(self, dim: int, width: int = 100, num_layers: int = 5, bins: int = 8) -> None:
        def layer(zuko: ModuleType, index: int) -> nn.Module:
            return zuko.flows.GeneralCouplingTransform(
                dim,
                mask=_checkered(dim, index),
                univariate=zuko.transforms.MonotonicRQSTransform,
                shapes=[(bins,), (bins,), (bins - 1,)],
                **_hidden(width),
            )

        super().__init__(dim, layer, num_layers)


class MAF(_LayeredFlow):
    """Masked autoregressive flow: each coordinate is moved by what came before it (Papamakarios et al. 2017).

    Its density takes one pass per layer; a sample, and so every energy step and every step of a chain in latent space,
    takes one pass per dimension. The order of the coordinates is reversed from layer to layer.

    Args:
        dim: Dimension ``D``, at least 2.
        width: Hidden units per layer.
        num_layers: Autoregressive layers.

    Raises:
        ValueError: If the dimension or the number of layers is out of range.
        ImportError: If zuko is not installed.

    Example:
        >>> MAF(3, width=8)(torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(self, dim: int, width: int = 100, num_layers: int = 5) -> None:
        def layer(zuko: ModuleType, index: int) -> nn.Module:
            order = torch.arange(dim) if index % 2 == 0 else torch.arange(dim).flip(0)
            return zuko.flows.MaskedAutoregressiveTransform(dim, order=order, **_hidden(width))

        super().__init__(dim, layer, num_layers)


class FlowEnergy(nn.Module):
    """Minus a flow's log-density plus a constant: ``D(x) = -log f(x) + offset``.

    Since ``f`` integrates to one, the log-partition of ``exp(-D) dx`` is minus the offset, whatever the flow has
    learned. Training does not use it, so its estimate can be compared with it (Arbel, Zhou and Gretton, ICLR 2021,
    density estimation).

    Args:
        flow: The flow ``f``.
        offset: The constant, in nats; fixed.

    Example:
        >>> energy = FlowEnergy(GaussianFlow(2), offset=1.5)
        >>> round(energy(torch.zeros(1, 2)).item() - 1.5, 3)  # log(2 pi) of the standard normal
        1.838
        >>> energy.known_log_partition
        tensor(-1.5000)
    """

    offset: Tensor

    def __init__(self, flow: FlowBase, offset: float = 0.0) -> None:
        super().__init__()
        self.flow = flow
        self.dim = flow.dim
        self.register_buffer("offset", torch.tensor(float(offset)))

    @property
    def known_log_partition(self) -> Tensor:
        """The true ``A`` of ``exp(-D) dx``, a scalar in nats."""
        return -self.offset

    def forward(self, x: Tensor) -> Tensor:
        """Map data (N, D) to energies (N,)."""
        return self.offset - self.flow.log_prob(x)


FLOWS: dict[str, Callable[..., FlowBase]] = {
    "gaussian": lambda dim, width=None: GaussianFlow(dim),
    "realnvp": RealNVP,
    "maf": MAF,
    "nsf": NSF,
}
"""The flows by the names that configurations use; the Gaussian ignores the width."""


def make(
    name: str,
    resolution: int,
    channels: int,
    latent_dim: int,
    width: int | None = None,
    energy: str | None = None,
    offset: float = 0.0,
) -> tuple[FlowBase, nn.Module]:
    """Build a flow as base and an energy for vectors of ``channels`` entries; see :func:`gebm.networks.make`.

    Args:
        name: A key of ``FLOWS``.
        resolution: Means nothing for vectors.
        channels: Dimension of the data.
        latent_dim: The same: a flow is invertible.
        width: Hidden units per layer (default: 100).
        energy: By default minus the log-density of a second flow of the family, written relative to the base;
            ``"mlp"`` for an MLP that multiplies the base's density.
        offset: Constant in the flow's energy; minus the true log-partition.

    Returns:
        The base and the energy.

    Raises:
        ValueError: If the dimensions differ or there is no such energy.

    Example:
        >>> base, energy = make("gaussian", resolution=0, channels=2, latent_dim=2, offset=0.5)
        >>> energy(base(torch.zeros(1, 2)))  # two equal flows: what is left is the offset
        tensor([0.5000], grad_fn=<AddBackward0>)
    """
    if latent_dim != channels:
        raise ValueError(
            f"{name} is invertible, but the latent dimension is {latent_dim} and that of the data {channels}: "
            f"make them equal"
        )
    if energy not in (None, "mlp"):
        raise ValueError(f"{name} has no energy '{energy}': choose 'mlp', or none for a flow relative to the base")
    sizes = {} if width is None else {"width": width}
    base = FLOWS[name](channels, **sizes)
    if energy == "mlp" and offset != 0:
        raise ValueError(f"offset={offset}: an energy='mlp' has no known log-partition to move; leave the offset out")
    if energy == "mlp":
        # A flow is a good base already, and what is left to correct is small and sharp.
        return base, MLPEnergy(channels, **{"width": 100, **sizes}, normalized=False)
    return base, RelativeEnergy(FlowEnergy(FLOWS[name](channels, **sizes), offset), base)


def makers() -> dict[str, Callable[..., tuple[nn.Module, nn.Module]]]:
    """Return :func:`make` for each family, as :data:`gebm.networks.NAMES` has them."""
    return {name: partial(make, name) for name in FLOWS}


def _checkered(dim: int, index: int) -> Tensor:
    """Return which coordinates (D,) the coupling of this number leaves alone."""
    return torch.arange(dim) % 2 == index % 2


def _split(rows: Tensor) -> list[Tensor]:
    """Return the even and the odd coordinates of rows (N, D)."""
    return [rows[:, 0::2], rows[:, 1::2]]


def _interleave(halves: list[Tensor]) -> Tensor:
    """Return rows (N, D) of their even and their odd coordinates."""
    even, odd = halves
    dim = even.shape[1] + odd.shape[1]
    if dim % 2:
        odd = F.pad(odd, (0, 1))
    return torch.stack([even, odd], 2).flatten(1)[:, :dim]


def _hidden(width: int) -> dict[str, object]:
    # Smooth, since samplers and penalties differentiate log-densities; and bounded, so that far out every layer is
    # affine: where a log-scale grows without end, one outlier among the test rows outweighs all the others.
    return {"hidden_features": (width, width), "activation": nn.Tanh}


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _zuko() -> ModuleType:
    try:
        import zuko
    except ImportError as error:
        raise ImportError("this flow needs the package zuko: install it, or choose 'gaussian'") from error
    return zuko
