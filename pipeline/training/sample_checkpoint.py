"""Samples of a trained model, by MCMC in latent space."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from time import strftime
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from gebm import GEBM, samplers
from gebm.allocator import disable_malloc_trim
from gebm.folding import folded
from pipeline import config as schema
from pipeline import tasks
from pipeline.config import precision
from pipeline.config.kernels import used_settings
from pipeline.config.temperature import describe_temperature
from pipeline.evaluation.chains import find_kernel, run_chains
from pipeline.evaluation.out_of_memory import halve_batch_on_oom
from pipeline.runtime.filesystem import require_writable, write_files, writing
from pipeline.training.build_model import load_model

__all__ = ["sample_checkpoint"]


def sample_checkpoint(url: str | None, overrides: dict[str, Any], output: str | None = None) -> None:
    """Draw samples from a trained model, and write them with pictures and the settings that they came from.

    Args:
        url: Folder of a checkpoint or of a trial.
        overrides: Keys of the config it was trained with that are to have other values, such as ``sampler.step_size``.
        output: Folder or fsspec URL for ``samples.npy``, ``settings.json`` and the pictures (default:
            ``results/samples-<time>``).

    Raises:
        UserError: The output cannot be written, there is no such checkpoint, a key
            makes the model another architecture, or every chain diverged.
    """
    output = output or str(Path("results", f"samples-{strftime('%Y%m%d-%H%M%S')}").absolute())
    require_writable(output)
    disable_malloc_trim()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, config = load_model(url, overrides, device)
    task = tasks.make(config)
    base, samples = map(task.show, _sample(model, config, device))
    array = io.BytesIO()
    np.save(array, samples.numpy(), allow_pickle=False)
    dtype = str(precision.sampling_dtype(config, device)).removeprefix("torch.")
    temperature = describe_temperature(config.sampler.beta)
    settings = {
        "checkpoint": url,
        "seed": config.seed,
        "sampler": used_settings(config.sampler) | {"precision": dtype},
        "temperature": temperature,
    }
    num_shown = min(config.evaluation.grid, len(samples))
    pictures = task.pictures(base[:num_shown], samples[:num_shown])
    files = {"samples.npy": array.getvalue(), "settings.json": json.dumps(settings, indent=1).encode(), **pictures}
    with writing(output):
        write_files(files, output)
    kind = str(samples.dtype).removeprefix("torch.")
    print(f"{len(samples)} samples {tuple(samples.shape[1:])}, {kind} ({temperature}): {output}/samples.npy")
    print(f"the first {num_shown} drawn: {', '.join(f'{output}/{name}' for name in pictures)}")


def _sample(model: GEBM, config: schema.Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the base's samples and the GEBM's from the same latents, on the CPU: (N, ...) each."""
    sampler = config.sampler
    generator = torch.Generator(device).manual_seed(config.seed)
    latents = model.prior.sample(sampler.num_samples, generator)
    seed = int(samplers.philox.draw_key(generator, device))
    fused = folded(model, precision.sampling_dtype(config, device))
    kernel, found = find_kernel(sampler, fused, seed=seed ^ 1)
    if found:
        print("warm-up: " + ", ".join(f"{name.removeprefix('warm_up_')} {value:.4g}" for name, value in found.items()))

    def run_batches(size: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        before, after = [], []
        for z0 in latents.split(size):
            chain = run_chains(
                fused,
                sampler,
                z0,
                seed=seed,
                first_chain=sum(map(len, before)),
                kernel=kernel,
                observe=lambda step, z: advance(len(z) if step else 0),
            )
            with torch.no_grad():
                before.append(model.base(z0).cpu())
                after.append(model.base(chain.z).cpu())
        return torch.cat(before), torch.cat(after)

    with Progress() as progress:
        total = sampler.num_samples * sampler.num_steps
        bar = progress.add_task(f"{sampler.name}, {sampler.num_steps} steps", total=total)
        return halve_batch_on_oom(
            run_batches,
            sampler.num_samples,
            config.evaluation.batch_size,
            advance=lambda steps: progress.advance(bar, steps),
            notify=print,
        )
