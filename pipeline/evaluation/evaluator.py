"""Scores of the base against the GEBM, and of the samples along the MCMC chain between them.

The chain starts at the base's own latents, so its zeroth point *is* the base: ``fid_base`` and ``fid_gebm``, or
whatever else the scorer measures, compare the same latents before and after sampling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from gebm import GEBM
from gebm.folding import folded
from pipeline import config as schema
from pipeline.config import precision
from pipeline.config.scores import at_end
from pipeline.evaluation.base import ChainSamples, Evaluation, SampleScorer
from pipeline.evaluation.local_chains import LocalChains, LocalJob, run_local_chains
from pipeline.evaluation.out_of_memory import halve_batch_on_oom
from pipeline.evaluation.shared_results import SharedResults
from pipeline.evaluation.travel import judge_travel, measure_travel

__all__ = [
    "ChainSamples",
    "Evaluation",
    "SampleScorer",
    "evaluate",
    "resampled",
]


def evaluate(
    model: GEBM,
    config: schema.Config,
    scorer: SampleScorer,
    *,
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], None] = lambda steps: None,
    shared: SharedResults | None = None,
    reached: Callable[[int, float], None] | None = None,
) -> Evaluation:
    """Score the base and the GEBM, and the samples on the way from one to the other.

    Latents and noise are the same at each evaluation of a run, so what changes between two of them is the model; and
    they belong to a chain, so that scores of samples depend neither on the number of workers nor on the batches.

    Args:
        model: The GEBM to sample.
        config: Sampler and evaluation settings.
        scorer: Metrics of the samples.
        rank: This worker.
        world_size: Number of workers, each of which runs its share of the chains.
        advance: Called with the chain-steps done since the last call; with a negative number if they have to be
            done again.
        shared: Results of the same model, at other settings of the sampler; this evaluation adds its own (default:
            none are kept).
        reached: Called with a step between the chains' ends and the score of ``sweep.metric`` there, before any chain
            runs on. With several workers it is not called, since a score needs all of them.

    Returns:
        Scores and chain, the same on every rank, and frames of the rank's own chains. Chains that do not fit the
        device's memory are split until they do, as if ``evaluation.batch_size`` had been that small, and a note says
        so.

    Raises:
        UserError: All chains diverged, or not even one fits.
    """
    evaluation, shared = Evaluation(), shared or SharedResults()
    dtype = precision.sampling_dtype(config, model.log_partition.device)

    def score_point(step: int, features: dict[str, Tensor]) -> None:
        if world_size > 1:
            return
        kept = {layer: rows[: config.evaluation.num_samples] for layer, rows in features.items()}
        evaluation.add_point(step, scorer.score(kept, end=False), scorer.primary)
        if reached is not None:
            name = config.sweep.metric.removesuffix("_gebm")
            is_primary = name == scorer.primary
            reached(step, evaluation.chain[step] if is_primary else scorer.score(kept, end=True)[name])

    fused = shared.get(("folded", dtype), lambda: folded(model, dtype))
    job = LocalJob(model, fused, config, scorer, rank, world_size, shared, score_point)
    # Workers gather only after all have run: each may have to split its chains in another way.
    chains = halve_batch_on_oom(
        functools.partial(run_local_chains, job),
        job.num_chains,
        config.evaluation.batch_size,
        advance=advance,
        notify=evaluation.notes.append,
    )
    evaluation.frames = chains.frames
    evaluation.scores.update(chains.diagnostics)
    evaluation.scores["divergences"] = float(_gather(torch.tensor([chains.divergences]), world_size).sum())
    _score_chain(evaluation, chains, job)
    evaluation.scores |= measure_travel(evaluation.ends["base"].latents, evaluation.ends["gebm"].latents)
    evaluation.warnings += judge_travel(evaluation.scores, config.sampler)
    # The trained log-partition, next to its estimate.
    evaluation.scores["log_partition"] = model.log_partition.item()
    estimate, error = chains.log_partition
    evaluation.scores["log_partition_monte_carlo"], evaluation.scores["log_partition_standard_error"] = estimate, error
    return evaluation


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
    quantiles = (torch.arange(count, dtype=torch.float64, device=energies.device) + 0.5) / count
    return torch.searchsorted(bounds, quantiles).clamp(max=count - 1)


def _score_chain(evaluation: Evaluation, chains: LocalChains, job: LocalJob) -> None:
    """Score the samples of all workers at each recorded step, and in full at both ends."""
    scorer, count = job.scorer, job.config.evaluation.num_samples
    steps = sorted(chains.features)
    end_names = {steps[0]: "base", steps[-1]: "gebm"}
    for step in steps:
        features = {layer: _gather(rows, job.world_size)[:count] for layer, rows in chains.features[step].items()}
        end = end_names.get(step)
        if end is None:
            # One worker alone has scored it when its chains had come that far.
            if step not in evaluation.chain:
                evaluation.add_point(step, scorer.score(features, end=False), scorer.primary)
            continue
        latents, energies = (_gather(rows, job.world_size)[:count] for rows in chains.ends[end])
        samples = evaluation.ends[end] = ChainSamples(latents, energies, features)
        if end == "base":
            # All samplers start from the same samples.
            key = "base scores", chains.batch_size
            scores, weighted = job.shared.get(key, functools.partial(_score_base, scorer, samples))
            evaluation.scores[f"{scorer.primary}_weighted"] = weighted
        else:
            scores = scorer.score(features, end=True)
        evaluation.add_point(step, scores, scorer.primary)
        evaluation.scores.update({at_end(name, end): value for name, value in scores.items()})
    for points in (evaluation.chain, evaluation.chain_standard_error):
        ordered = sorted(points.items())
        points.clear()
        points.update(ordered)


def _score_base(scorer: SampleScorer, samples: ChainSamples) -> tuple[dict[str, float], float]:
    """Return the scores of the base, and the primary score of its samples weighted by their energies."""
    weighted = {layer: rows[resampled(samples.energies)] for layer, rows in samples.features.items()}
    return scorer.score(samples.features, end=True), scorer.score(weighted, end=False)[scorer.primary]


def _gather(rows: Tensor, world_size: int) -> Tensor:
    """Return the rows of all workers, in the order of their ranks, on the device of this worker's rows."""
    if world_size == 1:
        return rows
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else rows.device
    local = rows.to(device).contiguous()
    gathered = [torch.empty_like(local) for _ in range(world_size)]
    dist.all_gather(gathered, local)
    return torch.cat(gathered).to(rows.device)
