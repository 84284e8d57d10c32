"""``python -m pipeline.sample``: draw samples from a trained model."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from gebm import samplers
from gebm.allocator import disable_malloc_trim
from gebm.folding import folded
from pipeline import config as schema
from pipeline import tasks
from pipeline.config import precision
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP
from pipeline.config.temperature import describe_temperature
from pipeline.evaluation.chains import run_chains
from pipeline.evaluation.oom import halve_batch_on_oom
from pipeline.runtime.filesystem import write_file
from pipeline.training.model import load_model

__all__ = ["main"]


@command(
    "Draw samples from a trained GEBM by MCMC in latent space; any sampler setting can be overridden.",
    [
        "python -m pipeline.sample checkpoint=results/<sweep>/trials/000",
        "python -m pipeline.sample checkpoint=... sampler.name=kla sampler.step_size=1e-3 sampler.num_samples=1000",
        "python -m pipeline.sample checkpoint=s3://bucket/run/trials/000 output=s3://bucket/samples seed=7",
    ],
    groups=(),
    sections={
        "Results": "output=<folder or URL>, by default results/samples-<time>.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
)
def main(config: schema.Config, named: dict[str, Any]) -> int:
    """Write ``samples.npy``, pictures of them, and the settings they came from."""
    disable_malloc_trim()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, settings = load_model(config.checkpoint, named, device)
    task = tasks.make(settings)
    sampler, count = settings.sampler, settings.sampler.num_samples
    generator = torch.Generator(device).manual_seed(settings.seed)
    latents = model.prior.sample(count, generator)
    noise = int(samplers.philox.draw_key(generator, device))
    of_networks = precision.sampling_dtype(settings, device)
    fused = folded(model, of_networks)

    def work(size: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        before, after = [], []
        for z0 in latents.split(size):
            chain = run_chains(
                fused,
                sampler,
                z0,
                seed=noise,
                first_chain=sum(map(len, before)),
                observe=lambda step, z: advance(len(z) if step else 0),
            )
            with torch.no_grad():
                before.append(model.base(z0).cpu())
                after.append(model.base(chain.z).cpu())
        return torch.cat(before), torch.cat(after)

    with Progress() as progress:
        bar = progress.add_task(f"{sampler.name}, {sampler.num_steps} steps", total=count * sampler.num_steps)
        parts = halve_batch_on_oom(
            work,
            count,
            settings.evaluation.batch_size,
            advance=lambda steps: progress.advance(bar, steps),
            notify=print,
        )
    base, samples = map(task.show, parts)
    output = config.output or str(Path("results", f"samples-{time.strftime('%Y%m%d-%H%M%S')}").absolute())
    array = io.BytesIO()
    np.save(array, samples.numpy(), allow_pickle=False)
    shown = settings.evaluation.grid
    used = asdict(sampler) | {"precision": str(of_networks).removeprefix("torch.")}
    temperature = describe_temperature(sampler.beta)
    told = {"checkpoint": config.checkpoint, "seed": settings.seed, "sampler": used, "temperature": temperature}
    pictures = task.pictures(base[:shown], samples[:shown])
    files = {"samples.npy": array.getvalue(), "settings.json": json.dumps(told, indent=1).encode(), **pictures}
    for name, content in files.items():
        write_file(f"{output}/{name}", content)
    kind = str(samples.dtype).removeprefix("torch.")
    print(f"{len(samples)} samples {tuple(samples.shape[1:])}, {kind} ({temperature}): {output}/samples.npy")
    print(f"the first {min(shown, len(samples))} drawn: {', '.join(f'{output}/{name}' for name in pictures)}")
    return 0


if __name__ == "__main__":
    main()
