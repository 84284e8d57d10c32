"""Samples of a trained model, by MCMC in latent space."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from time import strftime
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from gebm import GEBM, samplers
from gebm.allocator import disable_malloc_trim
from gebm.folding import folded
from gebm.precision import arithmetic
from pipeline import config as schema
from pipeline import tasks
from pipeline.config import precision
from pipeline.config.kernels import used_settings
from pipeline.config.temperature import describe_temperature
from pipeline.data.classes import Classes
from pipeline.evaluation import plots
from pipeline.evaluation.chains import find_kernel, make_steps, run_chains
from pipeline.evaluation.out_of_memory import halve_batch_on_oom
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import require_writable, write_files, writing
from pipeline.runtime.printable import printable_name
from pipeline.training.build_model import load_model

__all__ = ["sample_checkpoint"]

# Classes that are printed.
_MAX_NAMED = 10


def sample_checkpoint(
    url: str | None, overrides: dict[str, Any], output: str | None = None, class_name: str | None = None
) -> None:
    """Draw samples from a trained model, and write them with pictures and the settings that they came from.

    Args:
        url: Folder of a checkpoint or of a trial.
        overrides: Keys of the config it was trained with that are to have other values, such as ``sampler.step_size``.
        output: Folder or fsspec URL for ``samples.npy``, ``settings.json`` and the pictures (default:
            ``results/samples-<time>``).
        class_name: Name or number of the class of all samples (default: all classes, in the data's proportions).

    Raises:
        UserError: The output cannot be written, there is no such checkpoint or class, a key
            makes the model another architecture, or every chain diverged.
    """
    output = output or str(Path("results", f"samples-{strftime('%Y%m%d-%H%M%S')}").absolute())
    require_writable(output)
    disable_malloc_trim()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, config, classes, _ = load_model(url, overrides, device)
    label = None if class_name is None else _label(classes, class_name, url)
    task = tasks.make(config)
    latents = _draw_latents(model, config, label)
    _, drawn = model.split_latents(latents.start)
    labels = None if drawn is None else drawn.argmax(1).cpu()
    base, samples = map(task.show, _sample(model, config, device, latents))
    temperature = describe_temperature(config.sampler.beta)
    settings = {
        "checkpoint": url,
        "seed": config.seed,
        "sampler": used_settings(config.sampler) | {"precision": precision.sampling_precision(config, device)},
        "temperature": temperature,
        **({} if label is None or classes is None else {"class": classes.names[label]}),
    }
    shown = plots.class_rows(labels, min(config.evaluation.grid, len(samples)))
    pictures = task.pictures(plots.arranged(base, shown), plots.arranged(samples, shown))
    files = {"samples.npy": _npy(samples), "settings.json": json.dumps(settings, indent=1).encode(), **pictures}
    if labels is not None:
        files["labels.npy"] = _npy(labels)
    with writing(output):
        write_files(files, output)
    kind = str(samples.dtype).removeprefix("torch.")
    print(f"{len(samples)} samples {tuple(samples.shape[1:])}, {kind} ({temperature}): {output}/samples.npy")
    if classes is not None and labels is not None:
        print(f"of {_describe(classes, labels)}: {output}/labels.npy")
    which = f"the first {len(shown)}" if labels is None else f"{int((shown >= 0).sum())}, a class a row,"
    print(f"{which} drawn: {', '.join(f'{output}/{name}' for name in pictures)}")


class _Latents(NamedTuple):
    """Where chains start, with their classes, and the seed of their noise."""

    start: Tensor
    noise_seed: int


def _draw_latents(model: GEBM, config: schema.Config, label: int | None) -> _Latents:
    """Draw the chains' start; of another class it is the same but for that."""
    generator = torch.Generator().manual_seed(config.seed)
    latents = model.sample_latents(config.sampler.num_samples, generator, label)
    return _Latents(latents, int(samplers.philox.draw_key(generator, "cpu")))


def _sample(model: GEBM, config: schema.Config, device: torch.device, drawn: _Latents) -> tuple[Tensor, Tensor]:
    """Return the base's samples and the GEBM's from the same latents, on the CPU: (N, ...) each."""
    sampler, (latents, seed) = config.sampler, drawn
    fused = folded(model, precision.sampling_dtype(config, device))
    kernel, found = find_kernel(sampler, fused, seed=seed ^ 1)
    if found:
        print("warm-up: " + ", ".join(f"{name.removeprefix('warm_up_')} {value:.4g}" for name, value in found.items()))

    lines: list[str] = []

    def run_batches(size: int, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        before, after, steps = [], [], make_steps(config, device)
        for z0 in latents.split(size):
            chain = run_chains(
                fused,
                sampler,
                z0,
                seed=seed,
                first_chain=sum(map(len, before)),
                kernel=kernel,
                steps=steps,
                observe=lambda step, z: advance(len(z) if step else 0),
            )
            with arithmetic("float32"), torch.no_grad():
                before.append(model.base(z0).cpu())
                after.append(model.base(chain.z).cpu())
        lines[:] = steps.replays.lines
        return torch.cat(before), torch.cat(after)

    with Progress() as progress:
        total = sampler.num_samples * sampler.num_steps
        bar = progress.add_task(f"{sampler.name}, {sampler.num_steps} steps", total=total)
        samples = halve_batch_on_oom(
            run_batches,
            sampler.num_samples,
            config.evaluation.batch_size,
            advance=lambda steps: progress.advance(bar, steps),
            notify=print,
        )
    for line in lines:
        print(line)
    return samples


def _label(classes: Classes | None, class_name: str, url: str | None) -> int:
    if classes is None:
        raise UserError(
            f"class={printable_name(class_name, 100)}: the model in {url} was trained without classes; leave it out"
        )
    return classes.label(class_name)


def _describe(classes: Classes, labels: Tensor) -> str:
    """Return how many samples are of which class, those of the first classes."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    drawn = [(printable_name(name, 40), count) for name, count in zip(classes.names, counts, strict=True) if count]
    return ", ".join(f"{name} ({count})" for name, count in drawn[:_MAX_NAMED]) + (", ..." * (len(drawn) > _MAX_NAMED))


def _npy(tensor: Tensor) -> bytes:
    array = io.BytesIO()
    np.save(array, tensor.numpy(), allow_pickle=False)
    return array.getvalue()
