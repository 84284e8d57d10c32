"""``python -m pipeline.evaluate``: score a trained model, its base against its GEBM, along the chain."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from rich.table import Table

from gebm.allocator import disable_malloc_trim
from pipeline import config as schema
from pipeline import tasks
from pipeline.config import precision
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP
from pipeline.config.temperature import BETA, describe_temperature, sampling_beta
from pipeline.evaluation.chains import make_kernel
from pipeline.runtime.filesystem import write_file, write_files
from pipeline.runtime.terminal import make_console
from pipeline.tasks.store import ensure_store
from pipeline.training.model import load_model

__all__ = ["main"]


@command(
    "Score a trained GEBM against its own base, and along the MCMC chain; any sampler setting can be overridden.",
    [
        "python -m pipeline.evaluate checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.evaluate checkpoint=... sampler.num_steps=300 evaluation.chain_points=10",
        "python -m pipeline.evaluate checkpoint=... 'evaluation.metrics=[fid,kid,is,prc]' evaluation.num_samples=50000",
    ],
    groups=(),
    sections={
        "Results": "output=<folder or URL>, by default results/evaluation-<time>.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
)
def main(config: schema.Config, named: dict[str, Any]) -> int:
    """Print the scores, and write them with their pictures."""
    disable_malloc_trim()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, settings = load_model(config.checkpoint, named, device)
    ensure_store(settings)
    task = tasks.make(settings)
    work = task.open(0, 1, device)
    sampler, count = settings.sampler, settings.evaluation.num_samples
    with Progress() as progress:
        bar = progress.add_task(f"{count} samples", total=None)  # a likelihood has no bar of chains

        def advance(steps: int) -> None:
            chains = f"{sampler.name}, {count} chains"
            progress.update(bar, description=chains, total=count * sampler.num_steps, advance=steps)

        found = work.evaluate(model, advance=advance)
    output = config.output or str(Path("results", f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}").absolute())
    beta = sampling_beta(settings, params={})
    temperature = None if beta is None else describe_temperature(beta)
    told = {
        "checkpoint": config.checkpoint,
        "measure": task.measure(work.label),
        **({"extractor": work.label} if work.label else {}),
        **({} if temperature is None else {BETA: beta, "temperature": temperature}),
        "num_samples": count,
        "sampler": asdict(sampler)
        | {"precision": str(precision.sampling_dtype(settings, device)).removeprefix("torch.")},
        "gradients_per_step": make_kernel(sampler, model).gradients_per_step,
        "scores": found.scores,
        "chain": found.chain,
    }
    write_file(f"{output}/evaluation.json", json.dumps(told, indent=1).encode())
    write_files(found.pictures, output)
    console = make_console()
    for note in found.notes:
        console.print(note, highlight=False)
    of_what = [task.measure(work.label), f"{count} samples", *([temperature] if temperature else [])]
    console.print(", ".join(of_what), highlight=False)
    if found.chain:
        # A line of its own, for a table as narrow as this one folds its title.
        console.print(f"along the chain ({temperature}):", highlight=False)
        along = Table()
        along.add_column("MCMC step", justify="right")
        along.add_column(schema.monitored_metrics(settings)[0].removesuffix("_base"), justify="right")
        for step, value in found.chain.items():
            along.add_row(f"{step}" if step else "0 (base)", f"{value:.3f}")
        console.print(along)
    for name, value in found.scores.items():
        console.print(f"{name:<40} {value:.4g}", highlight=False)
    console.print(f"results  {output}", highlight=False)
    return 0


if __name__ == "__main__":
    main()
