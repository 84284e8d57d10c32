"""Recorder of one worker's chains: samples along the way, diagnostics and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gebm import GEBM, diagnostics, samplers
from gebm.freezing import frozen
from gebm.log_partition import log_partition_monte_carlo
from pipeline import config as schema
from pipeline.evaluation.base import SampleScorer
from pipeline.evaluation.chains import chain_steps, make_kernel, run_chains

__all__ = ["ChainRecorder", "LocalChains", "LocalJob", "run_local_chains"]

# R-hat and ESS are computed over this many chains, at this many positions along each.
_DIAGNOSED_CHAINS = 64
_DIAGNOSED_POINTS = 100


@dataclass(frozen=True)
class LocalJob:
    """One worker's part of an evaluation.

    Attributes:
        model: The GEBM.
        fused: The same model as its chains run it, see :func:`gebm.folding.folded`.
        config: Sampler and evaluation settings.
        scorer: Metrics of the samples.
        rank: This worker.
        world_size: Number of workers.
    """

    model: GEBM
    fused: GEBM
    config: schema.Config
    scorer: SampleScorer
    rank: int
    world_size: int

    @property
    def num_chains(self) -> int:
        """Chains of each worker: equal shares, so that all workers gather tensors of one shape."""
        return -(-self.config.evaluation.num_samples // self.world_size)

    @property
    def first_chain(self) -> int:
        """Number of this worker's first chain."""
        return self.rank * self.num_chains


class LocalChains(NamedTuple):
    """Result of one worker's chains.

    Attributes:
        features: Step of the chain -> the scorer's features of all samples there.
        frames: Step of the chain -> the first samples there, as they are shown.
        ends: ``base`` and ``gebm`` -> latents (N, D) and energies (N,) of all samples there.
        diagnostics: R-hat, ESS and the like, of the first batch of chains, and the speed of all.
        divergences: Chain-steps that diverged.
        log_partition: By Monte Carlo, in nats, and its standard error.
    """

    features: dict[int, dict[str, Tensor]]
    frames: dict[int, Tensor]
    ends: dict[str, tuple[Tensor, Tensor]]
    diagnostics: dict[str, float]
    divergences: int
    log_partition: tuple[float, float]


def run_local_chains(job: LocalJob, batch_size: int, advance: Callable[[int], None]) -> LocalChains:
    """Run this worker's chains: a function of its arguments, that waits for no other worker.

    Args:
        job: The model, its settings, and which chains to run.
        batch_size: Chains at once.
        advance: Called with the chain-steps done since the last call.
    """
    model, config = job.model, job.config
    seed = config.seed if config.evaluation.seed is None else config.evaluation.seed
    generator = torch.Generator(model.log_partition.device).manual_seed((seed + 1) * 1_000_003)
    first, count = job.first_chain, job.num_chains
    latents = model.prior.sample(count * job.world_size, generator)[first : first + count]
    # Not the latents' seed: noise is a function of it and of the chain's number, and so the first would be the latents.
    noise = int(samplers.philox.draw_key(generator, latents.device))
    recorder = ChainRecorder(model, config, job.scorer, advance)
    for start in range(0, count, batch_size):
        recorder.start_batch()
        chain = run_chains(
            job.fused,
            config.sampler,
            latents[start : start + batch_size],
            seed=noise,
            first_chain=first + start,
            observe=recorder.observe,
        )
        recorder.end_batch(chain)
    speed = count * config.sampler.num_steps / max(recorder.seconds, 1e-9)
    estimate, error = log_partition_monte_carlo(
        model, num_samples=min(max(count, 2), 4096), generator=generator, batch_size=batch_size
    )
    return LocalChains(
        recorder.features(),
        recorder.frames,
        recorder.ends(),
        {**recorder.diagnostics, "chain_steps_per_second": speed},
        recorder.divergences,
        (float(estimate), float(error)),
    )


class ChainRecorder:
    """Records batches of chains: their samples at a few steps, their divergences, diagnostics and time.

    Args:
        model: The GEBM; its base and energy map latents to samples and energies.
        config: Sampler and evaluation settings.
        scorer: Metrics of the samples.
        advance: Called with the chain-steps done since the last call.

    Attributes:
        frames: Step of the chain -> the first samples there, as they are shown, at most ``evaluation.grid``.
        diagnostics: Of the first batch; empty before its end.
        divergences: Chain-steps that diverged, of all batches that ended.
    """

    def __init__(
        self, model: GEBM, config: schema.Config, scorer: SampleScorer, advance: Callable[[int], None]
    ) -> None:
        num_steps = config.sampler.num_steps
        steps = chain_steps(num_steps, config.evaluation.chain_points)
        self._model, self._config, self._scorer, self._advance = model, config, scorer, advance
        self._stopwatch = _Stopwatch(model.log_partition.device)
        self._thinning = max(1, num_steps // _DIAGNOSED_POINTS)
        self._end_steps = {"base": steps[0], "gebm": steps[-1]}
        self._features: dict[int, list[dict[str, Tensor]]] = {step: [] for step in steps}
        self._ends: dict[int, list[tuple[Tensor, Tensor]]] = {step: [] for step in self._end_steps.values()}
        self._positions: list[Tensor] = []
        self._is_first_batch = True
        self.frames: dict[int, Tensor] = {}
        self.diagnostics: dict[str, float] = {}
        self.divergences = 0

    @property
    def seconds(self) -> float:
        """Time that the chains took, without that of the measurements."""
        return self._stopwatch.seconds

    def start_batch(self) -> None:
        """Start the clock of the next batch of chains."""
        self._stopwatch.start()

    def observe(self, step: int, z: Tensor) -> None:
        """Record the batch's latents after a step.

        Args:
            step: Steps done; 0 before the first.
            z: Latents (N, D).
        """
        if step:
            self._advance(len(z))
            if self._is_first_batch and step % self._thinning == 0:
                self._positions.append(z[:_DIAGNOSED_CHAINS])
        if step in self._features:
            self._stopwatch.stop()
            self._measure(step, z)
            self._stopwatch.start()

    def end_batch(self, chain: samplers.Chain) -> None:
        """Stop the clock, count divergences, and compute the diagnostics of the first batch.

        Args:
            chain: The end of the batch's chains.
        """
        self.divergences += int(chain.divergences.sum())
        self._stopwatch.stop()
        if self._is_first_batch:
            self.diagnostics = self._diagnose(chain)
            self._positions.clear()
        self._is_first_batch = False

    def features(self) -> dict[int, dict[str, Tensor]]:
        """Return step of the chain -> the scorer's features of all samples recorded there."""
        return {
            step: {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
            for step, parts in self._features.items()
        }

    def ends(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return ``base`` and ``gebm`` -> latents (N, D) and energies (N,) of all samples recorded there."""
        ends = {}
        for name, step in self._end_steps.items():
            latents, energies = zip(*self._ends[step], strict=True)
            ends[name] = torch.cat(latents), torch.cat(energies)
        return ends

    def _measure(self, step: int, z: Tensor) -> None:
        model = self._model
        with torch.no_grad(), frozen(model.base, model.energy):
            samples = model.base(z)
            if step in self._ends:
                self._ends[step].append((z.cpu(), model.energy(samples).cpu()))
            shown = self._scorer.show(samples)
        self._features[step].append(self._scorer.features(shown))
        frame, size = self.frames.get(step, shown[:0].cpu()), self._config.evaluation.grid
        if len(frame) < size:
            self.frames[step] = torch.cat([frame, shown.cpu()])[:size]

    def _diagnose(self, chain: samplers.Chain) -> dict[str, float]:
        # A chain may be too short for R-hat and ESS.
        if len(self._positions) < 4:
            rate = diagnostics.acceptance_rate(chain.infos)
            accepted = {} if rate is None else {"acceptance_rate": rate}
            return {"mean_potential": diagnostics.mean_potential(chain.infos), **accepted}
        kernel = make_kernel(self._config.sampler, self._model)
        return diagnostics.summary(
            torch.stack(self._positions),
            chain.infos,
            gradients_per_step=kernel.gradients_per_step,
            seconds=self._stopwatch.seconds,
        )


class _Stopwatch:
    """Seconds between starts and stops, with the device's queue drained at each stop."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._started: float | None = None
        self._device = device

    def start(self) -> None:
        """Start, or start anew."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """Stop and add the time since the start; a stopped watch stays as it is."""
        if self._started is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds += time.monotonic() - self._started
        self._started = None
