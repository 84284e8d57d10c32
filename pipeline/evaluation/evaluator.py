"""The base against the GEBM: samples along the MCMC chain, and what they score.

The chain starts at the base's own latents, so its zeroth point *is* the base: ``fid_base`` and ``fid_gebm``, or
whatever else the judge measures, compare the same latents before and after sampling.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gebm import GEBM, diagnostics, samplers
from gebm.folding import folded
from gebm.freezing import frozen
from gebm.partition import log_partition_monte_carlo
from pipeline import config as schema
from pipeline.config import precision
from pipeline.evaluation.chains import chain_steps, make_kernel, run_chains
from pipeline.evaluation.oom import halve_batch_on_oom

__all__ = [
    "ChainSamples",
    "Evaluation",
    "SampleScorer",
    "evaluate",
    "resampled",
]

_DIAGNOSED_CHAINS = 64  # R-hat and ESS are taken over so many of the chains ...
_DIAGNOSED_POINTS = 100  # ... and so many places along them


class ChainSamples(NamedTuple):
    """All samples at an end of the chain, in the order of their chains, of all workers together.

    Attributes:
        latents: (N, D), on the CPU, of which the base makes the samples once more where one is to be seen.
        energies: (N,), on the CPU, in nats.
        features: What the judge found in them, each with a row a sample.
    """

    latents: Tensor
    energies: Tensor
    features: dict[str, Tensor]


@dataclass
class Evaluation:
    """What one evaluation found.

    Attributes:
        scores: ``fid_base``, ``fid_gebm`` and what else was asked for, with the sampler's diagnostics.
        chain: Step of the chain -> the judge's first score there, such as the FID.
        frames: Step of the chain -> the same few samples there, as they are shown: images (G, C, H, W) uint8.
        ends: ``base``, where the chain starts, and ``gebm``, where it ends, with all their samples.
        pictures: File name -> its bytes; who draws fills them in.
        notes: What the user should know of it, a line each, such as a batch size that did not fit.
    """

    scores: dict[str, float] = field(default_factory=dict)
    chain: dict[int, float] = field(default_factory=dict)
    frames: dict[int, torch.Tensor] = field(default_factory=dict)
    ends: dict[str, ChainSamples] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class SampleScorer(Protocol):
    """What samples are measured by.

    Attributes:
        primary: The score that is followed along the chain.
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


def evaluate(
    model: GEBM,
    config: schema.Config,
    scorer: SampleScorer,
    *,
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], None] = lambda steps: None,
) -> Evaluation:
    """Score the base and the GEBM, and the way from one to the other.

    Latents and noise are the same at each evaluation of a run, so what changes between two of them is the model; and
    they belong to a chain, so that scores of samples depend neither on the number of workers nor on the batches.

    Args:
        model: The GEBM to sample.
        config: Sampler and evaluation settings.
        scorer: What samples are measured by.
        rank: This worker.
        world_size: Workers, each of which runs its share of the chains.
        advance: Called with the chain-steps done since the last call; less than none if they have to be done again.

    Returns:
        What was found. Scores and chain are the same on every rank, frames are of its own chains. Chains that do not
        fit the device's memory are split until they do, as if ``evaluation.batch_size`` had been that small, and a note
        says so.

    Raises:
        UserError: The chain diverged, or not even one fits.
    """
    fused = folded(model, precision.sampling_dtype(config, model.log_partition.device))
    share = _share(config, world_size)
    found = Evaluation()
    # What workers gather they gather afterwards: each may have to split its chains in another way.
    walk = halve_batch_on_oom(
        functools.partial(_run_local_chains, model, fused, config, scorer, rank, world_size),
        share,
        config.evaluation.batch_size,
        advance=advance,
        say=found.notes.append,
    )
    found.frames = walk.frames
    found.scores.update(walk.diagnostics)
    found.scores["divergences"] = float(_gather(torch.tensor([walk.divergences]), world_size).sum())
    stops = sorted(walk.features)
    for step in stops:
        joined = {
            layer: _gather(rows, world_size)[: config.evaluation.num_samples]
            for layer, rows in walk.features[step].items()
        }
        end = {stops[0]: "base", stops[-1]: "gebm"}.get(step)
        scores = scorer.score(joined, end=end is not None)
        found.chain[step] = scores[scorer.primary]
        if end:
            found.scores.update({f"{name}_{end}": value for name, value in scores.items()})
            latents, energies = (_gather(rows, world_size)[: config.evaluation.num_samples] for rows in walk.ends[end])
            found.ends[end] = ChainSamples(latents, energies, joined)
            if end == "base":
                weighted = {layer: rows[resampled(energies)] for layer, rows in joined.items()}
                found.scores[f"{scorer.primary}_weighted"] = scorer.score(weighted, end=False)[scorer.primary]
    found.scores["log_partition"] = model.log_partition.item()  # the trained one, beside its estimate
    found.scores["log_partition_monte_carlo"], found.scores["log_partition_standard_error"] = walk.log_partition
    return found


def resampled(energies: Tensor) -> Tensor:
    """Return which base samples stand for the model: drawn by their weights ``exp(-E)``, without random numbers.

    Systematic resampling (Kitagawa 1996). The model at ``beta`` 1, had by importance weights instead of a chain: the
    two should agree, and where few samples carry the weight neither is to be believed.

    Args:
        energies: Of the base samples (N,), in nats.

    Returns:
        Indices (N,), int64, in order.

    Example:
        >>> resampled(torch.tensor([0.0, 50.0, 0.0, 50.0])).tolist()
        [0, 0, 2, 2]
    """
    bounds = (-energies.double()).softmax(0).cumsum(0)
    count = len(energies)
    places = (torch.arange(count, dtype=torch.float64, device=energies.device) + 0.5) / count
    return torch.searchsorted(bounds, places).clamp(max=count - 1)


class _LocalChains(NamedTuple):
    """What one worker's chains leave behind.

    Attributes:
        features: Step of the chain -> the judge's features of all samples there.
        frames: Step of the chain -> the first samples there, as they are shown.
        ends: ``base`` and ``gebm`` -> latents and energies of all samples there.
        diagnostics: Of the first batch.
        divergences: Chain-steps that diverged.
        log_partition: By Monte Carlo, in nats, and its standard error.
    """

    features: dict[int, dict[str, Tensor]]
    frames: dict[int, Tensor]
    ends: dict[str, tuple[Tensor, Tensor]]
    diagnostics: dict[str, float]
    divergences: int
    log_partition: tuple[float, float]


def _run_local_chains(
    model: GEBM,
    fused: GEBM,
    config: schema.Config,
    scorer: SampleScorer,
    rank: int,
    world_size: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> _LocalChains:
    """Run this worker's chains, so many at once: a function of what it is given, that waits for no other worker.

    Args:
        model: The GEBM.
        fused: As its chains have it.
        config: Sampler and evaluation settings.
        scorer: What samples are measured by.
        rank: This worker.
        world_size: Workers.
        batch_size: Chains at once.
        advance: Called with the chain-steps done since the last call.
    """
    settings, share = config.evaluation, _share(config, world_size)
    seed = config.seed if settings.seed is None else settings.seed
    generator = torch.Generator(model.log_partition.device).manual_seed((seed + 1) * 1_000_003)
    first_of_share = rank * share
    latents = model.prior.sample(share * world_size, generator)[first_of_share : first_of_share + share]
    # Not the latents' seed: noise is a function of it and of the chain's number, and so the first would be the latents.
    noise = int(samplers.philox.draw_key(generator, latents.device))
    stopwatch, divergences = _Stopwatch(latents.device), 0
    thinning = max(1, config.sampler.num_steps // _DIAGNOSED_POINTS)
    stops = chain_steps(config.sampler.num_steps, settings.chain_points)
    parts: dict[int, list[dict[str, Tensor]]] = {stop: [] for stop in stops}
    frames: dict[int, Tensor] = {}
    ends: dict[int, list[tuple[Tensor, Tensor]]] = {stops[0]: [], stops[-1]: []}
    diagnosed: dict[str, float] = {}
    for start in range(0, share, batch_size):
        positions: list[Tensor] = []

        def observe(step: int, z: Tensor, *, first: bool = start == 0, seen: list = positions) -> None:
            if step:
                advance(len(z))
                if first and step % thinning == 0:
                    seen.append(z[:_DIAGNOSED_CHAINS])
            if step in parts:
                stopwatch.stop()
                with torch.no_grad(), frozen(model.base, model.energy):
                    samples = model.base(z)
                    if step in ends:
                        ends[step].append((z.cpu(), model.energy(samples).cpu()))
                    shown = scorer.show(samples)
                parts[step].append(scorer.features(shown))
                kept = frames.get(step, shown[:0].cpu())
                if len(kept) < settings.grid:
                    frames[step] = torch.cat([kept, shown.cpu()])[: settings.grid]
                stopwatch.start()

        z0 = latents[start : start + batch_size]
        stopwatch.start()
        chain = run_chains(fused, config.sampler, z0, seed=noise, first_chain=first_of_share + start, observe=observe)
        divergences += int(chain.divergences.sum())
        stopwatch.stop()
        if start == 0:
            diagnosed = _diagnose(positions, chain, make_kernel(config.sampler, model), stopwatch.seconds)
    diagnosed["chain_steps_per_second"] = share * config.sampler.num_steps / max(stopwatch.seconds, 1e-9)
    estimate, error = log_partition_monte_carlo(
        model, num_samples=min(max(share, 2), 4096), generator=generator, batch_size=batch_size
    )
    features = {
        step: {layer: torch.cat([p[layer] for p in found]) for layer in found[0]} for step, found in parts.items()
    }
    at_ends = {
        name: tuple(torch.cat(rows) for rows in zip(*ends[step], strict=True))
        for name, step in (("base", stops[0]), ("gebm", stops[-1]))
    }
    return _LocalChains(features, frames, at_ends, diagnosed, divergences, (float(estimate), float(error)))


def _share(config: schema.Config, world_size: int) -> int:
    """Chains of each worker: equal shares, so that a gather has one shape."""
    return -(-config.evaluation.num_samples // world_size)


class _Stopwatch:
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
