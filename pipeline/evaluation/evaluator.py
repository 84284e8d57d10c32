"""Scores of the base against the GEBM, and of the samples along the MCMC chain between them.

The chain starts at the base's own latents, so its zeroth point *is* the base: ``fid_base`` and ``fid_gebm``, or
whatever else the scorer measures, compare the same latents before and after sampling.
"""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from torch import Tensor

from gebm import GEBM
from gebm.folding import folded
from pipeline import config as schema
from pipeline.config import precision
from pipeline.config.scores import STANDARD_ERROR, at_end
from pipeline.evaluation.base import ChainSamples, Evaluation, EvaluationRun, SampleScorer
from pipeline.evaluation.local_chains import LocalChains, LocalJob, run_local_chains
from pipeline.evaluation.out_of_memory import halve_batch_on_oom
from pipeline.evaluation.shared_results import on_first_rank
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
    run: EvaluationRun | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Score the base and the GEBM, and the samples on the way from one to the other.

    Latents and noise are the same at each evaluation of a run, so what changes between two of them is the model; and
    they belong to a chain, so that scores of samples depend neither on the number of workers nor on the batches.

    Args:
        model: The GEBM to sample.
        config: Sampler and evaluation settings.
        scorer: Metrics of the samples.
        run: Its progress, and what it shares with others.
        rank: This worker.
        world_size: Number of workers, each of which runs its share of the chains.

    Returns:
        Scores and chain, the same on every rank, and frames of the rank's own chains. Chains that do not fit the
        device's memory are split until they do, as if ``evaluation.batch_size`` had been that small, and a note says
        so.

    Raises:
        UserError: All chains diverged, or not even one fits.
    """
    evaluation, run = Evaluation(), run or EvaluationRun()
    score_name = config.sweep.metric.removesuffix("_gebm")
    # A search that gives up chains by another score than the primary one needs it at each point.
    full_points = run.reached is not None and score_name != scorer.primary and world_size == 1
    dtype = precision.sampling_dtype(config, model.log_partition.device)

    def score_point(step: int, features: dict[str, Tensor]) -> None:
        if world_size > 1:
            return
        is_known = step in evaluation.chain
        scores = scorer.score(features, end=full_points)
        evaluation.add_point(step, scores, scorer.primary)
        # Chains that did not fit the memory run again from their start.
        if run.reached is not None and not is_known:
            run.reached(step, scores[score_name])

    fused = run.shared.get(("folded", dtype), lambda: folded(model, dtype))
    job = LocalJob(model, fused, config, scorer, rank, world_size, run.shared, score_point, full_points)
    # Workers gather only after all have run: each may have to split its chains in another way.
    chains = halve_batch_on_oom(
        functools.partial(run_local_chains, job),
        job.num_chains,
        config.evaluation.batch_size,
        advance=run.advance,
        notify=evaluation.notes.append,
    )
    evaluation.frames, evaluation.found_kernel = chains.frames, chains.found_kernel
    evaluation.sampler_path = chains.path
    evaluation.notes += chains.notes
    evaluation.scores.update(chains.diagnostics)
    evaluation.scores["divergences"] = float(_gather(torch.tensor([chains.divergences]), world_size).sum())
    _score_chain(evaluation, chains, job)
    evaluation.scores |= measure_travel(
        *(model.split_latents(evaluation.ends[end].latents)[0] for end in ("base", "gebm"))
    )
    evaluation.warnings += judge_travel(evaluation.scores, config.sampler)
    # The trained log-partition, next to its estimate.
    evaluation.scores["log_partition"] = model.log_partition.item()
    name = "log_partition_monte_carlo"
    evaluation.scores[name], evaluation.scores[f"{name}{STANDARD_ERROR}"] = chains.log_partition
    return evaluation


def resampled(energies: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return which base samples stand for the model: drawn by their weights ``exp(-E)``, without random numbers.

    Systematic resampling (Kitagawa 1996). The model at ``beta`` 1, had by importance weights instead of a chain: the
    two should agree, and where few samples carry the weight neither is to be believed. A chain keeps its class, so
    samples with classes are drawn within each: of the model given the class, and each class keeps its number of
    samples.

    Args:
        energies: Of the base samples (N,), in nats.
        labels: Their classes (N,), int64; ``None`` without classes.

    Returns:
        Indices (N,), int64, the i-th of a sample of the i-th sample's class; of one class they are in order.

    Example:
        >>> resampled(torch.tensor([0.0, 50.0, 0.0, 50.0])).tolist()
        [0, 0, 2, 2]
        >>> resampled(torch.tensor([0.0, 50.0, 40.0, 50.0]), torch.tensor([0, 0, 1, 1])).tolist()
        [0, 0, 2, 2]
    """
    if labels is None:
        return _resampled_of_one_class(energies)
    drawn = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        drawn[rows] = rows[_resampled_of_one_class(energies[rows])]
    return drawn


def _resampled_of_one_class(energies: Tensor) -> Tensor:
    bounds = (-energies.double()).softmax(0).cumsum(0)
    count = len(energies)
    quantiles = (torch.arange(count, dtype=torch.float64, device=energies.device) + 0.5) / count
    return torch.searchsorted(bounds, quantiles).clamp(max=count - 1)


def _score_chain(evaluation: Evaluation, chains: LocalChains, job: LocalJob) -> None:
    """Score the samples of all workers at each recorded step, and in full at both ends, on the first worker."""
    scorer, count = job.scorer, job.config.evaluation.num_samples
    steps = sorted(chains.features)
    end_names = {steps[0]: "base", steps[-1]: "gebm"}
    for step in steps:
        features = {layer: _gather(rows, job.world_size)[:count] for layer, rows in chains.features[step].items()}
        end = end_names.get(step)
        if end is None:
            # One worker alone has scored it when its chains had come that far.
            if step not in evaluation.chain:
                score = functools.partial(scorer.score, features, end=False)
                evaluation.add_point(step, on_first_rank(score, job.rank, job.world_size), scorer.primary)
            continue
        latents, energies = (_gather(rows, job.world_size)[:count] for rows in chains.ends[end])
        samples = evaluation.ends[end] = ChainSamples(latents, energies, features)
        kept = {"images": _gather_kept(chains.kept[step], job)} if step in chains.kept else {}
        if end == "base":
            # All samplers start from the same samples. The first worker alone remembers their scores: what the others
            # have computed before may differ, with their batches.
            _, classes = job.model.split_latents(latents)
            labels = None if classes is None else classes.argmax(1)
            score_base = functools.partial(_score_base, scorer, samples, labels, kept)
            share = functools.partial(job.shared.get, ("base scores", chains.batch_size), score_base)
            scores, weighted = on_first_rank(share, job.rank, job.world_size)
            evaluation.scores[f"{scorer.primary}_weighted"] = weighted
        else:
            score = functools.partial(scorer.score, features | kept, end=True)
            scores = on_first_rank(score, job.rank, job.world_size)
        evaluation.add_point(step, scores, scorer.primary)
        evaluation.scores.update({at_end(name, end): value for name, value in scores.items()})
    evaluation.chain = dict(sorted(evaluation.chain.items()))


def _score_base(
    scorer: SampleScorer, samples: ChainSamples, labels: Tensor | None, kept: dict[str, Tensor]
) -> tuple[dict[str, float], float]:
    """Return the scores of the base, and the primary score of its samples weighted by their energies."""
    drawn = resampled(samples.energies, labels)
    weighted = {layer: rows[drawn] for layer, rows in samples.features.items()}
    return scorer.score(samples.features | kept, end=True), scorer.score(weighted, end=False)[scorer.primary]


def _gather_kept(rows: Tensor, job: LocalJob) -> Tensor:
    """Return the samples that all workers have kept, of which some have one more than others."""
    counts = job.kept.sum(1)
    most = int(counts.max())
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    return _gather(padded, job.world_size)[(torch.arange(most) < counts[:, None]).flatten()]


def _gather(rows: Tensor, world_size: int) -> Tensor:
    """Return the rows of all workers, in the order of their ranks, on the device of this worker's rows."""
    if world_size == 1:
        return rows
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else rows.device
    local = rows.to(device).contiguous()
    gathered = [torch.empty_like(local) for _ in range(world_size)]
    dist.all_gather(gathered, local)
    return torch.cat(gathered).to(rows.device)
