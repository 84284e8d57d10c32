"""Scores of a trained model: its base against its GEBM, along the chain."""

from __future__ import annotations

import json
from pathlib import Path
from time import strftime
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gebm import GEBM
from gebm.allocator import disable_malloc_trim
from pipeline import config as schema
from pipeline import tasks
from pipeline.config import precision
from pipeline.config.kernels import used_settings
from pipeline.config.own_choices import DATA_KEYS
from pipeline.config.scores import STANDARD_ERROR, difference, format_score, plus_minus
from pipeline.config.temperature import BETA, describe_temperature, sampling_beta
from pipeline.evaluation.base import EvaluationRun
from pipeline.evaluation.chains import make_kernel
from pipeline.evaluation.evaluator import Evaluation
from pipeline.runtime.filesystem import require_writable, write_file, write_files, writing
from pipeline.runtime.terminal import make_console
from pipeline.tasks.base import TaskWorker
from pipeline.tasks.open_store import ensure_store
from pipeline.training.build_model import load_model
from pipeline.training.checkpoint_format import require_same_classes

__all__ = ["evaluate_checkpoint"]


def evaluate_checkpoint(url: str | None, overrides: dict[str, Any], output: str | None = None) -> None:
    """Score a trained model, print the scores, and write them with their figures.

    Args:
        url: Folder of a checkpoint or of a trial.
        overrides: Keys of the config it was trained with that are to have other values.
        output: Folder or fsspec URL for ``evaluation.json`` and the figures (default: ``results/evaluation-<time>``).

    Raises:
        UserError: The output cannot be written, there is no such checkpoint or store, or a key
            makes the model another architecture.
    """
    output = output or str(Path("results", f"evaluation-{strftime('%Y%m%d-%H%M%S')}").absolute())
    require_writable(output)
    disable_malloc_trim()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, config, classes, _ = load_model(url, overrides, device, needed=(*DATA_KEYS, "evaluation.weights"))
    ensure_store(config)
    task = tasks.make(config)
    worker = task.open(0, 1, device)
    require_same_classes(str(url), classes, worker.classes)
    evaluation = _evaluate(worker, model, config)
    beta = sampling_beta(config, params={})
    temperature = None if beta is None else describe_temperature(beta)
    measure = task.measure(worker.label)
    payload = {
        "checkpoint": url,
        "measure": measure,
        **({"extractor": worker.label} if worker.label else {}),
        **({} if temperature is None else {BETA: beta, "temperature": temperature}),
        "num_samples": config.evaluation.num_samples,
        "sampler": used_settings(config.sampler) | {"precision": precision.sampling_precision(config, device)},
        "gradients_per_step": make_kernel(config.sampler, model).gradients_per_step,
        **({} if worker.classes is None else {"classes": list(worker.classes.names)}),
        "scores": evaluation.scores,
        "chain": evaluation.chain,
        "warnings": evaluation.warnings,
    }
    # What took hours is on the screen, whatever becomes of the disk.
    console = make_console()
    _print_scores(console, evaluation, config, measure, temperature)
    with writing(output):
        write_file(f"{output}/evaluation.json", json.dumps(payload, indent=1).encode())
        write_files(evaluation.pictures, output)
    console.print(f"results  {output}", highlight=False)


def _evaluate(worker: TaskWorker, model: GEBM, config: schema.Config) -> Evaluation:
    """Evaluate a model under a progress bar of its chains."""
    sampler, num_samples = config.sampler, config.evaluation.num_samples
    with Progress() as progress:
        # Without a total: a likelihood has no chains to count.
        bar = progress.add_task(f"{num_samples} samples", total=None)

        def advance(steps: int) -> None:
            chains = f"{sampler.name}, {num_samples} chains"
            progress.update(bar, description=chains, total=num_samples * sampler.num_steps, advance=steps)

        return tasks.evaluate(config, worker, model, EvaluationRun(advance))


def _print_scores(
    console: Console, evaluation: Evaluation, config: schema.Config, measure: str, temperature: str | None
) -> None:
    for note in (*evaluation.notes, *(f"warning: {warning}" for warning in evaluation.warnings)):
        console.print(note, highlight=False, soft_wrap=True)
    setup = [measure, f"{config.evaluation.num_samples} samples", *([temperature] if temperature else [])]
    console.print(", ".join(setup), highlight=False)
    if evaluation.chain:
        # On a line of its own: a table as narrow as this one would fold its title.
        console.print(f"along the chain ({temperature}):", highlight=False)
        table = Table()
        table.add_column("MCMC step", justify="right")
        table.add_column(schema.monitored_metrics(config)[0].removesuffix("_base"), justify="right")
        for step, point in evaluation.chain.items():
            table.add_row(f"{step}" if step else "0 (base)", plus_minus(*point))
        console.print(table)
    for name in evaluation.scores:
        if not name.endswith(STANDARD_ERROR):
            console.print(f"{name:<40} {format_score(evaluation.scores, name)}", highlight=False)
    base, gebm = schema.monitored_metrics(config)
    if (added := difference(evaluation.scores, base, gebm)) is not None:
        name = f"{base.removesuffix('_base')}, added by energy and chain"
        console.print(f"{name:<40} {plus_minus(*added)}", highlight=False)
