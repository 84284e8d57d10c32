"""Protocols of kernels, states and infos, the potential and its gradient, and the step-size schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from gebm.inputs import as_count, as_number
from gebm.precision import unless_chosen

__all__ = [
    "ChainwisePotential",
    "GradientState",
    "Info",
    "Kernel",
    "Potential",
    "Prior",
    "Restarting",
    "State",
    "StateT",
    "StepDecay",
    "as_latents",
    "constants",
    "convert_positive",
    "counter",
    "evaluate",
    "finite_rows",
    "number_chains",
    "potential_at",
    "require_prior",
    "value_and_gradient",
    "wide",
]

Potential = Callable[[Tensor], Tensor]
"""A function ``(N, D) -> (N,)``: minus a log-density up to a constant.

That of the latent posterior is ``U(z) = -log eta(z) + beta E(B(z))`` (Arbel, Zhou and Gretton, ICLR 2021, section 4).
"""


@runtime_checkable
class ChainwisePotential(Protocol):
    """Potential that is another function for each chain, as where chains keep a class.

    A call takes a row for each chain. Whatever evaluates other rows says whose they are.
    """

    @property
    def differs(self) -> bool:
        """Whether chains have other functions at all: without classes they have one and the same."""
        ...

    def __call__(self, z: Tensor) -> Tensor:
        """Map (N, D) to (N,), row i by the function of chain i."""
        ...

    def at(self, rows: Tensor) -> ChainwisePotential:
        """Return the potential of the chains at ``rows`` (M,), which may repeat."""
        ...

    def independent(self, n: int) -> ChainwisePotential:
        """Return a potential of ``n`` rows that are of no chain, the same whichever chains there are."""
        ...


class Prior(Protocol):
    """The latent distribution ``eta`` as kernels need it: its density, and its draws as a map of noise."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """Map standard normal noise (N, D) to latents (N, D), row by row; for ``N(0, I)`` it is the identity."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Map latents (N, D) to their log-densities (N,)."""
        ...


class State(Protocol):
    """State of a set of chains: a NamedTuple of tensors, so that it can be saved and read back."""

    @property
    def z(self) -> Tensor:
        """The positions (N, D)."""
        ...

    @property
    def potential(self) -> Tensor:
        """The potential (N,) that was evaluated last."""
        ...

    @property
    def chain(self) -> Tensor:
        """The chains' numbers (N,), int64 in [0, 2^32): each chain's noise is a function of its own."""
        ...

    @property
    def step(self) -> Tensor:
        """The number of steps taken so far, a 0-dimensional int64 tensor on the CPU."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the tensors."""
        ...

    def _asdict(self) -> dict[str, Any]:
        """Return the tensors by name."""
        ...

    def _replace(self, **tensors: Any) -> Self:
        """Return the state with some of its tensors replaced."""
        ...


StateT = TypeVar("StateT", bound=State)
"""The state of one kind of kernel."""


class Info(Protocol):
    """Measurements of one step: a NamedTuple of tensors (N, ...), at least these two."""

    @property
    def potential(self) -> Tensor:
        """The potential (N,) after the step; not a number where the chain diverged."""
        ...

    @property
    def diverged(self) -> Tensor:
        """Whether the step met a position, a potential or a gradient that is not finite (N,), bool."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the tensors."""
        ...


class Kernel(Protocol[StateT]):
    """A Markov kernel: a frozen dataclass of hyper-parameters with two functions.

    All randomness comes from the generator that is passed to ``step``, and the state holds everything else that the
    next step depends on. A chain can therefore be stopped, saved and resumed bit for bit. Of the generator a step
    takes one key (``gebm.samplers.philox``), from which each chain computes noise of its own: no chain depends on which
    others run in parallel.

    Generic in the type of its state.
    """

    @property
    def gradients_per_step(self) -> int:
        """The number of gradients of the potential that one step evaluates."""
        ...

    def init(self, z: Tensor, potential: Potential) -> StateT:
        """Build the state of chains that start at ``z`` (N, D), numbered from 0."""
        ...

    def step(
        self, state: StateT, potential: Potential, generator: torch.Generator | None = None
    ) -> tuple[StateT, Info]:
        """Take one step of all the chains."""
        ...


@runtime_checkable
class Restarting(Protocol):
    """Kernel with a method of its own to restart lost chains: one whose ``init`` computes more than they need.

    Of another kernel, a state of position, potential and gradient alone restarts by itself, and any other by ``init``.
    """

    def restart(self, state: Any, z: Tensor) -> Any:
        """Return the state of chains at draws (N, D), of whose potential nothing is known: infinite, and flat.

        Args:
            state: State of the chains before; what belongs to no single chain is kept.
            z: The draws. All chains have one, and only those that were lost take it.
        """
        ...


class GradientState(NamedTuple):
    """The state of a kernel that remembers the gradient at its position.

    Attributes:
        z: Positions (N, D).
        potential: Potential at ``z`` (N,).
        gradient: Gradient of the potential at ``z`` (N, D).
        chain: Numbers of the chains (N,), int64.
        step: Number of steps taken, 0-dimensional int64 on the CPU.
    """

    z: Tensor
    potential: Tensor
    gradient: Tensor
    chain: Tensor
    step: Tensor


@dataclass(frozen=True)
class StepDecay:
    """A step size that falls by a constant factor at regular intervals.

    Called with the number of steps a chain has taken, it returns the factor of the step size. The default is the
    schedule of the image experiments of Arbel, Zhou and Gretton (ICLR 2021, section 6): times 0.1 every 200 steps. That
    is of a step in squared units of ``z``, as ULA's; KLA's step is the root of it, and falls by ``0.1 ** 0.5``.

    Args:
        factor: Factor of the step size at each change, in (0, 1].
        every: Number of steps between two changes.

    Raises:
        ValueError: If ``factor`` or ``every`` is out of range.

    Example:
        >>> decay = StepDecay(factor=0.5, every=200)
        >>> decay(0), decay(199), decay(200), decay(400)
        (1.0, 1.0, 0.5, 0.25)
    """

    factor: float = 0.1
    every: int = 200

    def __post_init__(self) -> None:
        convert_positive(self, "factor")
        if self.factor > 1:
            raise ValueError(f"factor must be at most 1 for the step size to decay, not {self.factor}")
        object.__setattr__(self, "every", as_count("every", self.every))

    def __call__(self, step: int | Tensor) -> float:
        """Return the multiplier of the step size for a chain that has taken ``step`` steps."""
        return float(self.factor ** (int(step) // self.every))


def convert_positive(settings: object, *names: str) -> None:
    """Convert fields of a frozen dataclass to Python's own numbers, which compare, print and save.

    Args:
        settings: The dataclass.
        *names: Its fields, each a positive number: Python's, numpy's, or a tensor of no dimension.

    Raises:
        ValueError: If one is no positive, finite number.

    Example:
        >>> StepDecay(factor=torch.tensor(0.5))
        StepDecay(factor=0.5, every=200)
        >>> StepDecay(factor=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: factor must be a positive, finite number, not -1.0
    """
    for name in names:
        value = getattr(settings, name)
        try:
            number = as_number(name, value)
        except TypeError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be a positive, finite number, not {value!r}")
        object.__setattr__(settings, name, number)


def counter() -> Tensor:
    """Return the step counter of a new chain; on the CPU, so that reading it never waits for a GPU.

    Example:
        >>> counter()
        tensor(0)
    """
    return torch.zeros((), dtype=torch.int64)


def as_latents(z: Tensor) -> Tensor:
    """Return starting positions in float32 or wider, detached from any graph.

    Args:
        z: Starting positions (N, D), of any floating-point type.

    Returns:
        The same positions (N, D): of a narrower type, such as bfloat16, in float32, in which a chain's small steps
        do not round to nothing.

    Raises:
        TypeError: If ``z`` is no tensor.
        ValueError: If ``z`` is not a matrix.

    Example:
        >>> as_latents(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype, as_latents(torch.zeros(2, 3).double()).dtype
        (torch.float32, torch.float64)
    """
    if not isinstance(z, Tensor) or z.is_complex():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"chains start from a tensor of real numbers (N, D), not from {kind}")
    if z.ndim != 2:
        raise ValueError(f"chains start from positions of shape (N, D), not {tuple(z.shape)}: flatten each latent")
    return z.detach().to(wide(z.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type that a chain is computed in: float32, or what is wider.

    Example:
        >>> wide(torch.bfloat16), wide(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def number_chains(z: Tensor) -> Tensor:
    """Return the numbers of chains that are counted from 0, the default.

    Args:
        z: Starting positions (N, D).

    Returns:
        Numbers (N,), int64, where ``z`` is.

    Example:
        >>> number_chains(torch.zeros(3, 2))
        tensor([0, 1, 2])
    """
    return torch.arange(len(z), device=z.device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def constants(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor that is made once, so that no step copies them to the device again.

    Args:
        numbers: The numbers (D,).
        dtype: Their type.
        device: Where they are needed.

    Returns:
        The tensor (D,), shared by all who ask for it: not to be changed.

    Example:
        >>> constants((1.0, 0.5), torch.float64, torch.device("cpu"))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def finite_rows(*tensors: Tensor) -> Tensor:
    """Return which chains have finite entries only.

    Args:
        *tensors: Tensors (N, ...), one at least.

    Returns:
        Whether all entries of a row are finite, in all the tensors (N,), bool.

    Example:
        >>> finite_rows(torch.zeros(3), torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [0.0, float("inf")]]))
        tensor([ True, False, False])
    """
    finite = [tensor.isfinite() if tensor.ndim == 1 else tensor.isfinite().flatten(1).all(1) for tensor in tensors]
    return functools.reduce(torch.logical_and, finite)


def potential_at(potential: Potential, rows: Tensor) -> Potential:
    """Return the potential of the chains at ``rows`` (M,); most potentials are the same function for every chain.

    Example:
        >>> potential = lambda z: z.square().sum(1) / 2
        >>> potential_at(potential, torch.tensor([2])) is potential
        True
    """
    return potential.at(rows) if isinstance(potential, ChainwisePotential) else potential


def require_prior(prior: Prior) -> None:
    """Raise a one-line ValueError unless ``prior`` has the methods of ``Prior``.

    Example:
        >>> require_prior(3)
        Traceback (most recent call last):
        ...
        ValueError: prior must have from_noise and log_prob; int lacks from_noise, log_prob
    """
    if lacking := [name for name in ("from_noise", "log_prob") if not hasattr(prior, name)]:
        raise ValueError(f"prior must have from_noise and log_prob; {type(prior).__name__} lacks {', '.join(lacking)}")


def evaluate(potential: Potential, z: Tensor) -> Tensor:
    """Evaluate a potential without any gradient.

    Args:
        potential: Maps (N, D) to (N,).
        z: Positions (N, D).

    Returns:
        The potential (N,), of the type of ``z``, float32 or wider.

    Raises:
        ValueError: If the potential is not of shape (N,).

    Example:
        >>> evaluate(lambda z: z.square().sum(1) / 2, torch.ones(3, 2))
        tensor([1., 1., 1.])
    """
    with unless_chosen(), torch.no_grad():
        return _checked(potential(z), z).to(wide(z.dtype))


def value_and_gradient(potential: Potential, z: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a potential and its gradient in ``z``, and differentiates nothing else.

    The parameters of a network inside the potential are left alone: they receive no gradient, and they may be frozen.
    It works under ``torch.no_grad`` and under ``torch.inference_mode``.

    Args:
        potential: Maps (N, D) to (N,); each entry may depend on its own row only.
        z: Positions (N, D).

    Returns:
        The potential (N,) and its gradient (N, D), both of the type of ``z``, float32 or wider.

    Raises:
        ValueError: If the potential is not of shape (N,), or is cut off from ``z``.

    Example:
        >>> value, gradient = value_and_gradient(lambda z: z.square().sum(1) / 2, torch.tensor([[1.0, 2.0]]))
        >>> value, gradient
        (tensor([2.5000]), tensor([[1., 2.]]))
    """
    # The clone makes an ordinary tensor of one that was born in inference mode, which autograd would refuse.
    with unless_chosen(), torch.inference_mode(False), torch.enable_grad():
        leaf = z.detach().clone().requires_grad_(True)
        value = _checked(potential(leaf), leaf)
        if not value.requires_grad:
            raise ValueError("the potential does not depend on z through autograd: remove the detach or no_grad in it")
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().to(wide(z.dtype)), gradient.to(wide(z.dtype))


def _checked(value: Any, z: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a potential maps (N, D) to (N,), but this one returned {type(value).__name__}")
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"a potential maps (N, D) to (N,), but this one maps {tuple(z.shape)} to {tuple(value.shape)}: squeeze it"
        )
    return value
