"""Recorder of one worker's chains: samples along the way, diagnostics and time.

All batches run to the first point at which samples are measured, then all to the next: so the score of all samples at
a point is there before any chain has gone further, and a setting whose score falls behind can be given up.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm import GEBM, diagnostics, samplers
from gebm.freezing import frozen
from gebm.log_partition import log_partition_monte_carlo
from gebm.precision import arithmetic
from pipeline import config as schema
from pipeline.evaluation.base import SampleScorer
from pipeline.evaluation.chains import ChainBatch, chain_steps, describe_found, find_kernel, make_kernel, make_steps
from pipeline.evaluation.shared_results import SharedResults

__all__ = ["ChainRecorder", "LocalChains", "LocalJob", "evaluation_generator", "run_local_chains", "start_latents"]

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
        shared: Results for the same model that another sampler has had computed, or that this one has.
        reached: Called with a step between the chains' ends at which all samples are measured, and their features.
        full_points: Whether samples are kept as shown between the ends as well, for scores that are of those.
    """

    model: GEBM
    fused: GEBM
    config: schema.Config
    scorer: SampleScorer
    rank: int
    world_size: int
    shared: SharedResults
    reached: Callable[[int, dict[str, Tensor]], None]
    full_points: bool = False

    @property
    def num_chains(self) -> int:
        """Chains of each worker: equal shares, so that all workers gather tensors of one shape."""
        return -(-self.config.evaluation.num_samples // self.world_size)

    @property
    def first_chain(self) -> int:
        """Number of this worker's first chain."""
        return self.rank * self.num_chains

    @property
    def kept(self) -> Tensor:
        """Which samples of each worker are kept as they are shown, bool (workers, chains of each)."""
        kept = torch.zeros(self.world_size * self.num_chains, dtype=torch.bool)
        count = self.config.evaluation.num_samples
        kept[:count] = self.scorer.kept_rows(count)
        return kept.view(self.world_size, self.num_chains)


class LocalChains(NamedTuple):
    """Result of one worker's chains.

    Attributes:
        features: Step of the chain -> the scorer's features of all samples there.
        kept: End of the chain -> the samples there that are kept as they are shown (M, ...), where there are any.
        frames: Step of the chain -> the first samples there, as they are shown.
        ends: ``base`` and ``gebm`` -> latents (N, D) and energies (N,) of all samples there.
        diagnostics: R-hat, ESS and the like, of the first batch of chains, and the speed of all.
        divergences: Chain-steps that diverged.
        log_partition: By Monte Carlo, in nats, and its standard error.
        batch_size: Chains that ran at once.
        found_kernel: What the warm-up has found, the same on all workers; empty without one.
        path: How steps were taken, see :class:`gebm.replay.Replays`; None where they were not to be replayed.
        notes: Lines on that.
    """

    features: dict[int, dict[str, Tensor]]
    kept: dict[int, Tensor]
    frames: dict[int, Tensor]
    ends: dict[str, tuple[Tensor, Tensor]]
    diagnostics: dict[str, float]
    divergences: int
    log_partition: tuple[float, float]
    batch_size: int
    found_kernel: dict[str, Any]
    path: str | None
    notes: list[str]


def run_local_chains(job: LocalJob, batch_size: int, advance: Callable[[int], None]) -> LocalChains:
    """Run this worker's chains: a function of its arguments, that waits for no other worker.

    Args:
        job: The model, its settings, and which chains to run.
        batch_size: Chains at once.
        advance: Called with the chain-steps done since the last call.
    """
    start = job.shared.get("start", lambda: _draw_start(job))
    recorder = ChainRecorder(job, advance)
    first, count = job.first_chain, job.num_chains
    # Another seed than that of the chains' own noise.
    kernel, found = find_kernel(job.config.sampler, job.fused, seed=start.noise_seed ^ 1)
    device = job.model.log_partition.device
    steps = make_steps(job.config, device)
    batches = {
        at: ChainBatch(
            job.fused,
            job.config.sampler,
            start.latents[at : at + batch_size],
            seed=start.noise_seed,
            first_chain=first + at,
            kernel=kernel,
            steps=steps,
        )
        for at in range(0, count, batch_size)
    }
    for done, step in itertools.pairwise(recorder.steps):
        for at, batch in batches.items():
            with recorder.batch(at):
                recorder.add_part(batch.run(step - done, recorder.observe))
        if step < recorder.steps[-1]:
            kept = recorder.take_kept(step)
            job.reached(step, recorder.features_at(step) | ({} if kept is None else {"images": kept}))
    for batch in batches.values():
        batch.require_finite()
    speed = count * job.config.sampler.num_steps / max(recorder.seconds, 1e-9)
    return LocalChains(
        {step: recorder.features_at(step) for step in recorder.steps},
        {step: kept for step in recorder.steps if (kept := recorder.take_kept(step)) is not None},
        recorder.frames,
        recorder.ends(),
        {**recorder.diagnose(), "chain_steps_per_second": speed, **found},
        recorder.divergences,
        job.shared.get(("log-partition", batch_size), lambda: _estimate_log_partition(job, start, batch_size)),
        batch_size,
        describe_found(kernel) if job.config.sampler.warm_up_steps else {},
        steps.replays.path if steps.replays.is_wanted_on(device) else None,
        steps.replays.lines,
    )


def evaluation_generator(config: schema.Config) -> torch.Generator:
    """Return the generator that an evaluation draws its samples from: in the same state for each one of a run.

    Args:
        config: ``evaluation.seed``, or else ``seed``.
    """
    seed = config.seed if config.evaluation.seed is None else config.evaluation.seed
    return torch.Generator().manual_seed((seed + 1) * 1_000_003)


def start_latents(model: GEBM, config: schema.Config, world_size: int) -> tuple[Tensor, torch.Generator]:
    """Draw the latents that the chains of all workers start from: the same at each evaluation of a run.

    Args:
        model: The GEBM.
        config: Seed and number of the samples.
        world_size: Number of workers, each of which runs the same number of chains.

    Returns:
        Latents (N, D), and the generator after them.
    """
    generator = evaluation_generator(config)
    count = -(-config.evaluation.num_samples // world_size) * world_size
    return model.sample_latents(count, generator), generator


class _Start(NamedTuple):
    """Start of a worker's chains, and the random numbers after it.

    Attributes:
        latents: First latents of its chains (N, D).
        noise_seed: Seed of the chains' noise.
        random_state: State of the generator that both came from.
    """

    latents: Tensor
    noise_seed: int
    random_state: Tensor


def _draw_start(job: LocalJob) -> _Start:
    """Draw the latents that this worker's chains start from, and what they need of random numbers after it."""
    latents, generator = start_latents(job.model, job.config, job.world_size)
    latents = latents[job.first_chain : job.first_chain + job.num_chains]
    # Not the latents' seed: noise is a function of it and of the chain's number, and so the first would be the latents.
    noise = int(samplers.philox.draw_key(generator, "cpu"))
    return _Start(latents, noise, generator.get_state())


def _estimate_log_partition(job: LocalJob, start: _Start, batch_size: int) -> tuple[float, float]:
    """Return the log-partition by Monte Carlo, in nats, and its standard error."""
    generator = torch.Generator().set_state(start.random_state)
    count = min(max(job.num_chains, 2), 4096)
    estimate, error = log_partition_monte_carlo(
        job.model, num_samples=count, generator=generator, batch_size=batch_size
    )
    return float(estimate), float(error)


class ChainRecorder:
    """Records batches of chains: their samples at a few steps, their divergences, diagnostics and time.

    Args:
        job: The model, whose base and energy map latents to samples and energies, its settings and its scorer.
        advance: Called with the chain-steps done since the last call.

    Attributes:
        steps: Steps at which samples are recorded, from 0 to the chains' end.
        frames: Step of the chain -> the first samples there, as they are shown, at most ``evaluation.grid``.
        divergences: Chain-steps that diverged.
    """

    def __init__(self, job: LocalJob, advance: Callable[[int], None]) -> None:
        num_steps = job.config.sampler.num_steps
        self.steps = chain_steps(num_steps, job.config.evaluation.chain_points)
        self._job, self._advance = job, advance
        device = job.model.log_partition.device
        # Of all batches, and of the first alone, by which the sampler is diagnosed.
        self._stopwatches = {True: _Stopwatch(device), False: _Stopwatch(device)}
        self._thinning = max(1, num_steps // _DIAGNOSED_POINTS)
        self._end_steps = {"base": self.steps[0], "gebm": self.steps[-1]}
        self._features: dict[int, list[dict[str, Tensor]]] = {step: [] for step in self.steps}
        self._ends: dict[int, list[tuple[Tensor, Tensor]]] = {step: [] for step in self._end_steps.values()}
        self._is_kept, self._keeps = job.kept[job.rank], bool(job.kept.any())
        self._kept: dict[int, list[Tensor]] = {}
        self._positions: list[Tensor] = []
        self._infos: list[Any] = []
        self._at = 0
        self.frames: dict[int, Tensor] = {}
        self.divergences = 0

    @property
    def seconds(self) -> float:
        """Time that the chains took, without that of the measurements."""
        return sum(stopwatch.seconds for stopwatch in self._stopwatches.values())

    @contextlib.contextmanager
    def batch(self, at: int) -> Iterator[None]:
        """Record a part of a batch of chains in the block.

        Args:
            at: Number of its first chain, of this worker's.
        """
        self._at = at
        self._stopwatch.start()
        yield
        self._stopwatch.stop()

    def observe(self, step: int, z: Tensor) -> None:
        """Record the batch's latents after a step.

        Args:
            step: Steps done; 0 before the first.
            z: Latents (N, D).
        """
        if step:
            self._advance(len(z))
            if self._is_first_batch and step % self._thinning == 0:
                moving, _ = self._job.model.split_latents(z)
                self._positions.append(moving[:_DIAGNOSED_CHAINS])
        if step in self._features:
            self._stopwatch.stop()
            self._measure(step, z)
            self._stopwatch.start()

    def add_part(self, chain: samplers.Chain) -> None:
        """Count the divergences of a part of the batch, and keep what the first batch is diagnosed by.

        Args:
            chain: The part.
        """
        self.divergences += int(chain.divergences.sum())
        if self._is_first_batch:
            self._infos.append(chain.infos)

    def features_at(self, step: int) -> dict[str, Tensor]:
        """Return the scorer's features of all samples recorded at a step."""
        parts = self._features[step]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

    def take_kept(self, step: int) -> Tensor | None:
        """Return the samples of a step that were kept as they are shown, which are then kept no more."""
        parts = self._kept.pop(step, None)
        return None if parts is None else torch.cat(parts)

    def ends(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return ``base`` and ``gebm`` -> latents (N, D) and energies (N,) of all samples recorded there."""
        ends = {}
        for name, step in self._end_steps.items():
            latents, energies = zip(*self._ends[step], strict=True)
            ends[name] = torch.cat(latents), torch.cat(energies)
        return ends

    def diagnose(self) -> dict[str, float]:
        """Return the diagnostics of the first batch of chains, all of whose parts have been added."""
        infos = type(self._infos[0])(*(torch.cat(entries) for entries in zip(*self._infos, strict=True)))
        # A chain may be too short for R-hat and ESS.
        if len(self._positions) < 4:
            rate = diagnostics.acceptance_rate(infos)
            accepted = {} if rate is None else {"acceptance_rate": rate}
            return {"mean_potential": diagnostics.mean_potential(infos), **accepted}
        kernel = make_kernel(self._job.config.sampler, self._job.model)
        return diagnostics.summary(
            torch.stack(self._positions),
            infos,
            gradients_per_step=kernel.gradients_per_step,
            seconds=self._stopwatches[True].seconds,
        )

    @property
    def _is_first_batch(self) -> bool:
        return self._at == 0

    @property
    def _stopwatch(self) -> _Stopwatch:
        return self._stopwatches[self._is_first_batch]

    def _measure(self, step: int, z: Tensor) -> None:
        frame = self.frames.get(step)
        missing = self._job.config.evaluation.grid - (0 if frame is None else len(frame))
        if step:
            measured = self._measurement(step, z, missing)
        else:
            # All samplers start from the same latents.
            key = "base samples", self._at, len(z)
            measured = self._job.shared.get(key, lambda: self._measurement(step, z, missing))
        if step in self._ends:
            self._ends[step].append((z.cpu(), measured.energies))
        self._features[step].append(measured.features)
        if measured.kept is not None:
            self._kept.setdefault(step, []).append(measured.kept)
        if measured.shown is not None:
            self.frames[step] = measured.shown if frame is None else torch.cat([frame, measured.shown])

    def _measurement(self, step: int, z: Tensor, missing: int) -> _Measurement:
        """Measure the samples, and keep the first of them, those that a picture still lacks."""
        model, scorer = self._job.model, self._job.scorer
        with arithmetic("float32"), torch.no_grad(), frozen(model.base, model.energy):
            samples = model.base(z)
            energies = model.energy(samples).cpu() if step in self._ends else None
            shown = scorer.show(samples)
        kept = None
        if self._keeps and (step in self._ends or self._job.full_points):
            kept = shown[self._is_kept[self._at : self._at + len(z)].to(shown.device)].cpu()
        return _Measurement(energies, scorer.features(shown), kept, shown[:missing].cpu() if missing > 0 else None)


class _Measurement(NamedTuple):
    """Samples of one batch at one step, as they are measured.

    Attributes:
        energies: Their energies (N,), where all of them are needed.
        features: Their features, with N rows each.
        kept: Those that are kept as they are shown, for scores of these; ``None`` where there is no such score.
        shown: The first of them, as they are shown, the number that the picture lacked; None if it was complete.
    """

    energies: Any
    features: dict[str, Tensor]
    kept: Tensor | None
    shown: Tensor | None


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
