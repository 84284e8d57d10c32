"""MCMC chains in latent space: their kernel, the steps at which they are measured, and their run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from gebm import GEBM, samplers
from gebm.freezing import frozen
from pipeline import config as schema
from pipeline.config.kernels import kernel_settings
from pipeline.runtime.errors import UserError

__all__ = [
    "chain_steps",
    "make_kernel",
    "run_chains",
]


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
        used.name, step_size=used.step_size, friction=used.friction, schedule=schedule, prior=model.prior
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


def run_chains(
    model: GEBM,
    sampler: schema.Sampler,
    z0: Tensor,
    *,
    seed: int,
    first_chain: int = 0,
    observe: Callable[[int, Tensor], None],
) -> samplers.Chain:
    """Run chains side by side; one that diverges restarts from the prior, and is counted.

    Args:
        model: The GEBM, best as :func:`gebm.folding.folded` makes it.
        sampler: The kernel and its settings.
        z0: Initial latents (N, D); they share the device's memory.
        seed: Of the noise, another than the latents'. With it and its number, a chain is the same whatever runs
            next to it.
        first_chain: The number of the first of them.
        observe: Called with the step and the latents (N, D), before the first step and after each.

    Returns:
        The chain's end.

    Raises:
        UserError: Every chain has diverged at every step, so what is left is the prior's.
    """
    # Frozen out here as well as in the potential, so that normalized weights are computed once and not every step.
    with frozen(model.base, model.energy):
        observe(0, z0)
        chain = samplers.run(
            make_kernel(sampler, model),
            lambda z: model.potential(z, beta=sampler.beta),
            z0,
            sampler.num_steps,
            generator=Generator(z0.device).manual_seed(seed),
            every=1,
            callback=lambda step, state: observe(step, state.z),
            prior=model.prior,
            first_chain=first_chain,
        )
    if bool((chain.divergences >= sampler.num_steps).all()):
        raise UserError(f"all {len(z0)} chains diverged: lower sampler.step_size or sampler.beta")
    return chain
