"""MCMC chains in latent space: their kernel, the steps at which they are measured, and their run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Generator, Tensor

from gebm import GEBM, samplers
from gebm.classes import ChainPotential
from gebm.freezing import frozen
from gebm.samplers.runner import Steps, plain_steps
from pipeline import config as schema
from pipeline.config.kernels import kernel_settings
from pipeline.config.precision import chain_arithmetic, sampling_precision
from pipeline.runtime.errors import UserError

__all__ = [
    "WARM_UP_CHAINS",
    "ChainBatch",
    "chain_steps",
    "describe_found",
    "find_kernel",
    "make_kernel",
    "make_steps",
    "run_chains",
]


WARM_UP_CHAINS = 64
"""Chains of a warm-up."""

_NO_START = (
    "none of {count} chains can start, since the energy or its gradient is not finite there: take an earlier "
    "checkpoint, or train with lower learning rates"
)


def make_kernel(sampler: schema.Sampler, model: GEBM) -> samplers.Kernel:
    """Return the kernel that the config names, with its step-size schedule.

    Args:
        sampler: Settings of the kernel.
        model: The GEBM, whose prior is the proposal of an independent sampler.
    """
    used = kernel_settings(sampler)
    schedule = None
    if used.decay is not None and used.decay_every is not None and used.decay != 1.0:
        schedule = samplers.StepDecay(factor=used.decay, every=used.decay_every)
    return samplers.make(
        used.name,
        step_size=used.step_size,
        friction=used.friction,
        schedule=schedule,
        prior=model.prior,
        **used.settings,
    )


def find_kernel(sampler: schema.Sampler, model: GEBM, *, seed: int) -> tuple[samplers.Kernel, dict[str, float]]:
    """Return the kernel as its chains use it, warmed up where the config says so, and the settings that were found.

    The chains of a warm-up learn from one another. So they are others than those that are measured, and the same
    whatever the number of workers and the size of a batch.

    Args:
        sampler: Settings of the kernel.
        model: The GEBM, best as :func:`gebm.folding.folded` makes it.
        seed: Of the warm-up's latents and noise.

    Raises:
        UserError: No chain can start.
    """
    kernel = make_kernel(sampler, model)
    if not sampler.warm_up_steps:
        return kernel, {}
    generator = Generator().manual_seed(seed)
    potential = ChainPotential(model, model.sample_latents(WARM_UP_CHAINS, generator), sampler.beta)
    try:
        with frozen(model.base, model.energy), warnings.catch_warnings():
            # Whether it has converged is among what it found.
            warnings.simplefilter("ignore", UserWarning)
            warm = samplers.warm_up(
                kernel,
                potential,
                potential.z,
                sampler.warm_up_steps,
                generator=generator,
            )
    except samplers.NonFiniteStart:
        raise UserError(_NO_START.format(count=WARM_UP_CHAINS)) from None
    last = warm.history.acceptance[-max(1, sampler.warm_up_steps // 10) :]
    found = {
        "warm_up_step_size": float(warm.kernel.step_size),
        "warm_up_acceptance": float(last.mean()),
        "warm_up_r_hat": float(warm.r_hat.nan_to_num(nan=math.inf).max()),
    }
    masses = getattr(warm.kernel, "inverse_mass", None)
    if masses is not None:
        found |= {"warm_up_least_variance": min(masses), "warm_up_largest_variance": max(masses)}
    return warm.kernel, {name: value for name, value in found.items() if math.isfinite(value)}


def describe_found(kernel: samplers.Kernel) -> dict[str, Any]:
    """Return what a warm-up has set of a kernel, see :mod:`pipeline.config.warm_up`.

    Args:
        kernel: A kernel that was warmed up, of :func:`find_kernel`.
    """
    step_size, masses = float(cast(Any, kernel).step_size), getattr(kernel, "inverse_mass", None)
    numbers = [step_size, *map(float, masses or ())]
    # Of a warm-up that failed nothing is worth keeping.
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        return {}
    return {"step_size": step_size, **({} if masses is None else {"inverse_mass": numbers[1:]})}


def make_steps(config: schema.Config, device: torch.device) -> samplers.ReplayedSteps:
    """Return the way that the config has chains take their steps, to be shared by all chains of one model.

    Args:
        config: Experiment, of which ``sampler`` and ``task`` are read.
        device: Where the networks are.
    """
    sampler = config.sampler
    return samplers.ReplayedSteps(
        str(sampler.cuda_graphs).lower(), sampling_precision(config, device), str(sampler.compile).lower()
    )


def chain_steps(num_steps: int, points: int) -> list[int]:
    """Return the steps at which a chain is measured: its start, its end, and evenly in between.

    Args:
        num_steps: Length of the chain.
        points: Measurements after the start; fewer where the chain is shorter.

    Example:
        >>> chain_steps(100, 4), chain_steps(3, 5)
        ([0, 25, 50, 75, 100], [0, 1, 2, 3])
    """
    return sorted({round(point * num_steps / points) for point in range(points + 1)})


class ChainBatch:
    """Chains side by side, which run in parts; wherever they are cut, they are the same chains bit for bit.

    One that diverges restarts from the prior, and is counted.

    Args:
        model: The GEBM, best as :func:`gebm.folding.folded` makes it.
        sampler: The kernel and its settings.
        z0: Initial latents (N, D), or with classes, which the chains keep, (N, D + K); they share the device's
            memory.
        seed: Of the noise, another than the latents'. With it and its number, a chain is the same whatever runs
            next to it.
        first_chain: The number of the first of them.
        kernel: Their kernel (default: as the sampler's settings make it).
        steps: How they take their steps (default: one by one).
    """

    def __init__(
        self,
        model: GEBM,
        sampler: schema.Sampler,
        z0: Tensor,
        *,
        seed: int,
        first_chain: int = 0,
        kernel: samplers.Kernel | None = None,
        steps: Steps = plain_steps,
    ) -> None:
        self._model, self._sampler, self._first_chain = model, sampler, first_chain
        self._potential = ChainPotential(model, z0, sampler.beta)
        self._z0: Tensor | None = z0
        self._state: Any = None
        self._kernel = kernel or make_kernel(sampler, model)
        self._steps = steps
        self._generator = Generator().manual_seed(seed)
        self._divergences = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)

    def run(self, num_steps: int, observe: Callable[[int, Tensor], None]) -> samplers.Chain:
        """Run the chains on, from their start or from where they are.

        Args:
            num_steps: Number of further steps.
            observe: Called with the step and the latents, as ``z0``, before the first step and after each.

        Returns:
            This part of the chains.

        Raises:
            UserError: No chain can start.
        """
        model, potential = self._model, self._potential
        # Frozen out here as well as in the potential, so that normalized weights are computed once and not every step.
        try:
            with chain_arithmetic(self._sampler), frozen(model.base, model.energy):
                if self._z0 is not None:
                    observe(0, self._z0)
                chain = samplers.run(
                    self._kernel,
                    potential,
                    None if self._z0 is None else potential.z,
                    num_steps,
                    generator=self._generator,
                    every=1,
                    callback=lambda step, state: observe(step, potential.join(state.z)),
                    state=self._state,
                    prior=model.prior,
                    first_chain=self._first_chain,
                    steps=self._steps,
                )
        except samplers.NonFiniteStart:
            raise UserError(_NO_START.format(count=len(self._divergences))) from None
        self._z0, self._state = None, chain.state
        self._divergences += chain.divergences
        return chain._replace(z=potential.join(chain.z))

    def require_finite(self) -> None:
        """Refuse chains all of which have diverged at every second step or more: their samples are the prior's.

        Raises:
            UserError: They have.
        """
        # The step after a restart has no drift yet, and often survives.
        if bool((2 * self._divergences >= self._sampler.num_steps).all()):
            count = len(self._divergences)
            raise UserError(f"all {count} chains diverged: lower sampler.step_size or sampler.beta")


def run_chains(
    model: GEBM,
    sampler: schema.Sampler,
    z0: Tensor,
    *,
    seed: int,
    first_chain: int = 0,
    kernel: samplers.Kernel | None = None,
    steps: Steps = plain_steps,
    observe: Callable[[int, Tensor], None],
) -> samplers.Chain:
    """Run chains side by side; one that diverges restarts from the prior, and is counted.

    Args:
        model: The GEBM, best as :func:`gebm.folding.folded` makes it.
        sampler: The kernel and its settings.
        z0: Initial latents (N, D), or with classes, which the chains keep, (N, D + K); they share the device's
            memory.
        seed: Of the noise, another than the latents'. With it and its number, a chain is the same whatever runs
            next to it.
        first_chain: The number of the first of them.
        kernel: Their kernel (default: as the sampler's settings make it).
        steps: How they take their steps (default: one by one).
        observe: Called with the step and the latents, as ``z0``, before the first step and after each.

    Returns:
        The chain's end.

    Raises:
        UserError: Every chain has diverged at every second step or more, so their samples are the prior's.
    """
    batch = ChainBatch(model, sampler, z0, seed=seed, first_chain=first_chain, kernel=kernel, steps=steps)
    chain = batch.run(sampler.num_steps, observe)
    batch.require_finite()
    return chain
