"""``python -m pipeline.sample``: draw images from a trained model."""

from __future__ import annotations

import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from pipeline import config as schema
from pipeline import figures, metrics
from pipeline.command import verb
from pipeline.evaluation import run_chains
from pipeline.files import write_file
from pipeline.trial import load_model

__all__ = ["main"]


@verb(
    "Draw images from a trained GEBM by MCMC in latent space; any sampler setting can be overridden.",
    [
        "python -m pipeline.sample checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.sample checkpoint=... sampler.name=kla sampler.step_size=1e-3 sampler.num_samples=1000",
        "python -m pipeline.sample checkpoint=s3://bucket/run/trials/000 output=s3://bucket/samples seed=7",
    ],
)
def main(config: schema.Config, named: dict[str, Any]) -> int:
    """Write ``grid.png``, ``samples.npy`` and the settings they came from."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, settings = load_model(config.checkpoint, named, device)
    sampler, count = settings.sampler, settings.sampler.num_samples
    generator = torch.Generator(device).manual_seed(settings.seed)
    latents = model.prior.sample(count, generator)
    bases, images = [], []
    with Progress() as progress:
        task = progress.add_task(f"{sampler.name}, {sampler.num_steps} steps", total=count * sampler.num_steps)

        def advance(step: int, z: torch.Tensor) -> None:
            progress.advance(task, len(z) if step else 0)

        for z0 in latents.split(settings.evaluation.batch_size):
            chain = run_chains(model, sampler, z0, generator=generator, observe=advance)
            with torch.no_grad():
                bases.append(metrics.to_uint8(model.base(z0)).cpu())
                images.append(metrics.to_uint8(model.base(chain.z)).cpu())
    samples, before = torch.cat(images), torch.cat(bases)
    output = config.output or str(Path("results", f"samples-{time.strftime('%Y%m%d-%H%M%S')}").absolute())
    array = io.BytesIO()
    np.save(array, samples.numpy(), allow_pickle=False)
    shown = settings.evaluation.grid
    told = {"checkpoint": config.checkpoint, "seed": settings.seed, "sampler": asdict(sampler)}
    for name, content in {
        "grid.png": figures.png(figures.grid(samples[:shown], columns=8)),
        "base_and_gebm.png": figures.png(figures.side_by_side(before[:shown], samples[:shown])),
        "samples.npy": array.getvalue(),
        "settings.json": json.dumps(told, indent=1).encode(),
    }.items():
        write_file(f"{output}/{name}", content)
    print(f"{len(samples)} images {tuple(samples.shape[1:])}, uint8: {output}/samples.npy")
    print(f"the first {min(shown, len(samples))}: {output}/grid.png, beside the base's: {output}/base_and_gebm.png")
    return 0


if __name__ == "__main__":
    main()
