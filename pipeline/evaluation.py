"""The base against the GEBM: samples along the MCMC chain, and what they score.

The chain starts at the base's own latents, so its zeroth point *is* the base: ``fid_base`` and ``fid_gebm``, or
whatever else the judge measures, compare the same latents before and after sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gebm import GEBM, diagnostics, samplers
from gebm.folding import folded
from gebm.model import frozen
from gebm.partition import log_partition_monte_carlo
from pipeline import config as schema
from pipeline import precision
from pipeline.errors import UserError

__all__ = ["Evaluation", "Judge", "chain_steps", "evaluate", "make_kernel", "run_chains"]

_DIAGNOSED_CHAINS = 64  # R-hat and ESS are taken over so many of the chains ...
_DIAGNOSED_POINTS = 100  # ... and so many places along them


@dataclass
class Evaluation:
    """What one evaluation found.

    Attributes:
        scores: ``fid_base``, ``fid_gebm`` and what else was asked for, with the sampler's diagnostics.
        chain: step of the chain -> the judge's first score there, such as the FID.
        frames: step of the chain -> the same few samples there, as they are shown: images (G, C, H, W) uint8.
        pictures: file name -> its bytes; who draws fills them in.
    """

    scores: dict[str, float] = field(default_factory=dict)
    chain: dict[int, float] = field(default_factory=dict)
    frames: dict[int, torch.Tensor] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


class Judge(Protocol):
    """What samples are measured by.

    Attributes:
        primary: the score that is followed along the chain.
    """

    primary: str

    def show(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples as a base makes them, in the form in which they are measured and drawn: (N, ...)."""
        ...

    def features(self, shown: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the scores are computed from, each with a row a sample, on the CPU."""
        ...

    def score(self, features: dict[str, torch.Tensor], *, end: bool) -> dict[str, float]:
        """The primary score, and at an end of the chain all the others."""
        ...


def make_kernel(sampler: schema.Sampler, model: GEBM) -> samplers.Kernel:
    """The kernel that the config names, with its step-size schedule."""
    schedule = samplers.StepDecay(factor=sampler.decay, every=sampler.decay_every) if sampler.decay != 1.0 else None
    return samplers.make(
        sampler.name, step_size=sampler.step_size, friction=sampler.friction, schedule=schedule, prior=model.prior
    )


def chain_steps(num_steps: int, points: int) -> list[int]:
    """Where along a chain to measure: its start, its end, and evenly in between.

    Example:
        >>> chain_steps(100, 4), chain_steps(3, 5)
        ([0, 25, 50, 75, 100], [0, 1, 2, 3])
    """
    return sorted({round(point * num_steps / points) for point in range(points + 1)})


def run_chains(
    model: GEBM,
    sampler: schema.Sampler,
    z0: torch.Tensor,
    *,
    seed: int,
    first_chain: int = 0,
    observe: Callable[[int, torch.Tensor], None],
) -> samplers.Chain:
    """Run chains side by side; one that diverges starts again from the prior, and is counted.

    Args:
        model: the GEBM, best as :func:`gebm.folding.folded` makes it.
        sampler: the kernel and its settings.
        z0: where they start (N, D); they share the device's memory.
        seed: of the noise, another than the latents'. With it and its number, a chain is the same whatever runs
            beside it.
        first_chain: the number of the first of them.
        observe: called with the step and the latents (N, D), before the first step and after each.

    Returns:
        The chain's end.

    Raises:
        UserError: every chain has diverged at every step, so what is left is the prior's.
    """
    # Held fixed out here as well as in the potential, so that normalised weights are computed once and not every step.
    with frozen(model.base, model.energy):
        observe(0, z0)
        chain = samplers.run(
            make_kernel(sampler, model),
            lambda z: model.potential(z, beta=sampler.beta),
            z0,
            sampler.num_steps,
            generator=torch.Generator(z0.device).manual_seed(seed),
            every=1,
            callback=lambda step, state: observe(step, state.z),
            prior=model.prior,
            first_chain=first_chain,
        )
    if bool((chain.divergences >= sampler.num_steps).all()):
        raise UserError(f"all {len(z0)} chains diverged: lower sampler.step_size or sampler.beta")
    return chain


def evaluate(
    model: GEBM,
    config: schema.Config,
    judge: Judge,
    *,
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], None] = lambda steps: None,
) -> Evaluation:
    """Score the base and the GEBM, and the way from one to the other.

    Latents and noise are the same at each evaluation of a run, so what changes between two of them is the model; and
    they belong to a chain, so that scores of samples depend neither on the number of workers nor on the batches.

    Args:
        model: the GEBM to sample.
        config: sampler and evaluation settings.
        judge: what samples are measured by.
        rank: this worker.
        world_size: workers, each of which runs its share of the chains.
        advance: called with the chain-steps done since the last call.

    Returns:
        What was found. Scores and chain are the same on every rank, frames are of its own chains.

    Raises:
        UserError: the chain diverged.
    """
    settings = config.evaluation
    share = -(-settings.num_samples // world_size)  # equal shares, so that a gather has one shape
    seed = (config.seed + 1) * 1_000_003
    walked = folded(model, precision.of_sampling(config, model.log_partition.device))
    generator = torch.Generator(model.log_partition.device).manual_seed(seed)
    first = rank * share
    latents = model.prior.sample(share * world_size, generator)[first : first + share]
    # Not the latents' seed: noise is a function of it and of the chain's number, and so the first would be the latents.
    noise = int(samplers.noise.draw_key(generator, latents.device))
    walking, divergences = _Watch(latents.device), 0
    stops = chain_steps(config.sampler.num_steps, settings.chain_points)
    thinning = max(1, config.sampler.num_steps // _DIAGNOSED_POINTS)
    found = Evaluation()
    parts: dict[int, list[dict[str, torch.Tensor]]] = {stop: [] for stop in stops}
    for start in range(0, share, settings.batch_size):
        positions: list[torch.Tensor] = []

        def observe(step: int, z: torch.Tensor, *, first: bool = start == 0, seen: list = positions) -> None:
            if step:
                advance(len(z))
                if first and step % thinning == 0:
                    seen.append(z[:_DIAGNOSED_CHAINS])
            if step in parts:
                walking.stop()
                with torch.no_grad(), frozen(model.base):
                    shown = judge.show(model.base(z))
                parts[step].append(judge.features(shown))
                kept = found.frames.get(step, shown[:0].cpu())
                if len(kept) < settings.grid:
                    found.frames[step] = torch.cat([kept, shown.cpu()])[: settings.grid]
                walking.start()

        z0 = latents[start : start + settings.batch_size]
        walking.start()
        chain = run_chains(walked, config.sampler, z0, seed=noise, first_chain=first + start, observe=observe)
        divergences += int(chain.divergences.sum())
        walking.stop()
        if start == 0:
            found.scores.update(_diagnose(positions, chain, make_kernel(config.sampler, model), walking.seconds))
    found.scores["chain_steps_per_second"] = share * config.sampler.num_steps / max(walking.seconds, 1e-9)
    found.scores["divergences"] = float(_gather(torch.tensor([divergences]), world_size).sum())
    for step in stops:
        joined = {
            layer: _gather(torch.cat([part[layer] for part in parts[step]]), world_size)[: settings.num_samples]
            for layer in parts[step][0]
        }
        end = {stops[0]: "base", stops[-1]: "gebm"}.get(step)
        scores = judge.score(joined, end=end is not None)
        found.chain[step] = scores[judge.primary]
        if end:
            found.scores.update({f"{name}_{end}": value for name, value in scores.items()})
    estimate, error = log_partition_monte_carlo(
        model, num_samples=min(max(share, 2), 4096), generator=generator, batch_size=settings.batch_size
    )
    found.scores["log_partition_monte_carlo"] = float(estimate)
    found.scores["log_partition_standard_error"] = float(error)
    return found


class _Watch:
    """Seconds between starts and stops: what chains take, without what looks at them."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._began, self._device = 0.0, None, device

    def start(self) -> None:
        """Go on."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Stand still; a watch that stands still does so on."""
        if self._began is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds += time.monotonic() - self._began
        self._began = None


def _diagnose(
    positions: list[Tensor], chain: samplers.Chain, kernel: samplers.Kernel, seconds: float
) -> dict[str, float]:
    """Diagnostics of the first chains' latents; a chain too short to have any has none."""
    if len(positions) < 4:
        return {"mean_potential": diagnostics.mean_potential(chain.infos)}
    return diagnostics.summary(
        torch.stack(positions), chain.infos, gradients_per_step=kernel.gradients_per_step, seconds=seconds
    )


def _gather(rows: torch.Tensor, world_size: int) -> torch.Tensor:
    if world_size == 1:
        return rows
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else rows.device
    mine = rows.to(device).contiguous()
    everyone = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(everyone, mine)
    return torch.cat(everyone).to(rows.device)
