"""Samplers of the latent posterior ``nu(z) ~ eta(z) exp(-beta E(B(z)))``.

Every sampler is a kernel, a frozen dataclass with ``init`` and ``step``, and ``run`` drives them all:

>>> import torch
>>> from gebm import samplers
>>> kernel = samplers.make("ula", step_size=1e-2)
>>> chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, torch.zeros(8, 2), 20)
>>> chain.z.shape
torch.Size([8, 2])

``warm_up`` finds a kernel's step size and masses; ``ParallelTempering`` runs a kernel at several temperatures at once;
``state_dict`` and ``load_state_dict`` save and restore chains. A chain's noise is its own (``noise``):
it goes the same way alone, among others, and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from gebm.registry import REQUIRED, Limits, Registry
from gebm.samplers import philox
from gebm.samplers.adaptation import WarmUp, warm_up
from gebm.samplers.base import Kernel, Potential, Prior, StepDecay, value_and_gradient, wide
from gebm.samplers.discriminator_ot import DiscriminatorOptimalTransport
from gebm.samplers.gradient_descent import GradientDescent
from gebm.samplers.hamiltonian import HMC
from gebm.samplers.langevin import MALA, KineticLangevin, UnadjustedLangevin
from gebm.samplers.metropolis import IndependentMetropolis, RandomWalkMetropolis
from gebm.samplers.replayed import ReplayedSteps
from gebm.samplers.runner import Chain, NonFiniteStart, finite_chains, run
from gebm.samplers.serialization import load_state_dict, state_dict
from gebm.samplers.tempering import ParallelTempering

__all__ = [
    "HMC",
    "MALA",
    "NAMES",
    "Chain",
    "DiscriminatorOptimalTransport",
    "GradientDescent",
    "IndependentMetropolis",
    "Kernel",
    "KineticLangevin",
    "ParallelTempering",
    "Potential",
    "Prior",
    "RandomWalkMetropolis",
    "ReplayedSteps",
    "StepDecay",
    "UnadjustedLangevin",
    "WarmUp",
    "finite_chains",
    "NonFiniteStart",
    "load_state_dict",
    "make",
    "philox",
    "register",
    "run",
    "state_dict",
    "value_and_gradient",
    "warm_up",
    "wide",
]

NAMES: Registry[Callable[..., Kernel[Any]]] = Registry(
    "sampler",
    given=("step_size", "friction", "schedule", "prior"),
    facts={"like": None, "exact": False, "bfloat16": False, "inner": ""},
    inner="inner",
)
"""The kernels by the names that configurations use. DDLS, Che et al., NeurIPS 2020, is ULA at ``beta = 1``.

Their facts: the kernel whose step size is of the same kind as theirs (``like``), whether they leave the distribution
invariant at any temperature, without state beyond the position and what is computed from it (``exact``), whether their
noise hides the rounding of bfloat16, and the setting that names another kernel, which they are built of and given
(``inner``).
"""

register = NAMES.register
"""Register a kernel, a frozen dataclass with ``init`` and ``step``; see :class:`Kernel`."""

register("ula", bfloat16=True)(UnadjustedLangevin)
register("kla", bfloat16=True)(KineticLangevin)
register("mala", exact=True)(MALA)
register("hmc", exact=True)(HMC)
register("rwm", exact=True)(RandomWalkMetropolis)
register("imh", like="mala", exact=True)(IndependentMetropolis)
register("dot")(DiscriminatorOptimalTransport)
register("descent")(GradientDescent)
register("ddls", like="ula", bfloat16=True)(UnadjustedLangevin)
_LEVELS = Annotated[str | None, Limits(choices=("mala", "hmc", "rwm"))]
register("tempering", like="mala", inner="kernel", settings={"kernel": _LEVELS})(ParallelTempering)


def make(name: str, **settings: Any) -> Kernel:
    """Build a kernel from its name and from settings that may be meant for several kernels.

    A kernel takes the settings it has and leaves those of other kernels, so that one set of settings serves them all;
    a setting that no kernel has is an error. ``None`` means the kernel's own default.

    Args:
        name: A key of ``NAMES``.
        **settings: Hyper-parameters: ``step_size``, ``friction``, ``schedule``, ``prior``, ``num_leapfrog_steps``,
            ``jitter``, ``initial_velocity``, ``lipschitz``, ``inverse_mass``, ``betas``; and ``kernel``, what
            tempering moves its levels by, a kernel or the name of one that the settings are then for as well: MALA if
            None.

    Returns:
        The kernel.

    Raises:
        ValueError: If the name or a setting is unknown, a setting is missing, or one is out of range.

    Example:
        >>> make("hmc", step_size=0.1, num_leapfrog_steps=5, friction=1.0, schedule=None)
        HMC(step_size=0.1, num_leapfrog_steps=5, inverse_mass=None, jitter=0.0)
        >>> from gebm.priors import StandardNormal
        >>> make("tempering", step_size=0.1, prior=StandardNormal(3), betas=(1.0, 0.0)).kernel
        MALA(step_size=0.1, inverse_mass=None)
    """
    if name not in NAMES:
        raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(NAMES)}")
    known = {parameter for part in NAMES.parts() for parameter in part.parameters}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"no sampler has a setting {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    if others := NAMES.inner(name):
        key = NAMES.part(name).facts["inner"]
        inner = settings.get(key) or others[0]
        settings = {**settings, key: make(inner, **settings) if isinstance(inner, str) else inner}
    own = NAMES.part(name).parameters
    chosen = {key: settings[key] for key in own if settings.get(key) is not None}
    if missing := [key for key, default in own.items() if default is REQUIRED and key not in chosen]:
        raise ValueError(f"sampler {name!r} needs {', '.join(missing)}: give a value")
    return NAMES[name](**chosen)
