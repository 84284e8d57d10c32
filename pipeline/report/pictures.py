"""Pictures of a report: those that trials have written next to their checkpoints, read as untrusted files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.config.scores import format_score
from pipeline.report.analysis import SweepResults
from pipeline.report.ranked_trials import best_median_worst, latent_keys
from pipeline.runtime.errors import one_line
from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.runtime.untrusted import PICTURE, InvalidDocument, parse_picture, read_bytes
from pipeline.tracking.summary import TrialRecord

__all__ = ["Gallery", "Picture", "add_picture", "encode", "galleries"]

# Pictures of an evaluation, by what is best to look at: samples of images, of points, of rows of a table.
_SAMPLES = ("gebm.png", "base_and_gebm.png", "density.png")
# From the base to the GEBM.
_CHAIN = ("chain.png", "base_and_gebm.png")
_MAX_STEPS = 6
# Bytes of a picture on the page, and what one that has more is shrunk to in turn: its longer side, and WebP's quality.
_MAX_BYTES = 120_000
_SMALLER = ((1600, 85), (1200, 75), (800, 60), (400, 40))


class Picture(NamedTuple):
    """A picture on the page.

    Attributes:
        caption: What it shows.
        media_type: ``image/png`` or ``image/webp``.
        content: The file.
    """

    caption: str
    media_type: str
    content: bytes


@dataclass
class Gallery:
    """Pictures that are compared, all of one scale.

    Attributes:
        key: Its name on the page.
        title: Title.
        pictures: The pictures.
        missing: A line on each that is not there.
    """

    key: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def galleries(results: SweepResults) -> list[Gallery]:
    """Return the pictures of a sweep: the best, median and worst trial, the best over training and along its chain.

    Args:
        results: Results of the sweep.

    Returns:
        Galleries of what the sweep's folder has; empty where it has no picture at all.
    """
    best = results.records.best()
    if best is None:
        return []
    trials = best_median_worst(results)
    shared = latent_keys(list(trials.values()))
    latents = f"latents may differ with {', '.join(shared)}" if shared else "from the same latents"
    title = f"Samples of the {_join([*trials])} trial" + (f": {latents}" if len(trials) > 1 else "")
    compared = Gallery("samples", title)
    for name, trial in trials.items():
        step, score = trial.best_metrics.get("base_step"), format_score(trial.best_metrics, results.metric)
        temperature = results.trial_temperature(trial)
        caption = f"{name}: trial {trial.name}, base step {step}, {score}" + (
            f" ({temperature})" if temperature else ""
        )
        add_picture(compared, results, trial, step, _SAMPLES, caption)
    training = Gallery("training", f"Samples of the best trial, {best.name}, over training: from the same latents")
    if not results.is_sampler_search:
        for step, caption in _evaluations(results, best):
            add_picture(training, results, best, step, _SAMPLES, caption)
    chain = Gallery("chain", f"From base to GEBM along the chain of the best trial, {best.name}")
    add_picture(chain, results, best, best.best_metrics.get("base_step"), _CHAIN, "")
    shown = [compared, *([training] if len(training.pictures) > 1 else []), chain]
    return shown if any(gallery.pictures for gallery in shown) else []


def add_picture(
    gallery: Gallery, results: SweepResults, trial: TrialRecord, step: object, names: tuple[str, ...], caption: str
) -> None:
    """Add the first picture of these names that a trial has at a step, or a line that says why there is none.

    Args:
        gallery: Where it is added.
        results: Results of the sweep, whose folder has the picture.
        trial: The trial.
        step: Base step of the evaluation; no number where there was none.
        names: Names of files, the best one first.
        caption: Caption of the picture.
    """
    # A trial that only sampled a trained model has one evaluation.
    folders = [f"step-{step:08d}"] if isinstance(step, int) else []
    what = f"trial {trial.name}" + (f", base step {step}" if folders else "")
    for folder in [*folders, *([] if step == 0 else ["sampled"])]:
        for name in names:
            try:
                picture = _read(results.output, f"trials/{trial.name}/figures/{folder}/{name}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            # Each file system has exceptions of its own.
            except Exception as error:
                gallery.missing.append(f"{what}: {folder}/{name} cannot be shown ({one_line(error, limit=200)})")
                return
            gallery.pictures.append(Picture(caption, *encode(picture)))
            return
    gallery.missing.append(f"{what}: no picture")


def encode(picture: Image.Image) -> tuple[str, bytes]:
    """Return a picture's media type and its file, small enough for a page: PNG, or WebP if that is too large.

    Example:
        >>> encode(Image.new("RGB", (400, 400)))[0]
        'image/png'
        >>> media_type, content = encode(Image.effect_noise((2000, 2000), 90))
        >>> media_type, len(content) <= 120_000
        ('image/webp', True)
    """
    content = _saved(picture, format="PNG", optimize=True)
    if len(content) <= _MAX_BYTES:
        return "image/png", content
    for side, quality in _SMALLER:
        smaller = picture.convert("RGB")
        smaller.thumbnail((side, side))
        content = _saved(smaller, format="WEBP", quality=quality)
        if len(content) <= _MAX_BYTES:
            break
    return "image/webp", content


def _saved(picture: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    save: Callable[..., None] = picture.save
    save(buffer, **settings)
    return buffer.getvalue()


def _evaluations(results: SweepResults, trial: TrialRecord) -> list[tuple[int, str]]:
    """Return a few steps of a trial's training, evenly spaced, from the untrained base on, each with its score."""
    scores = {evaluation["base_step"]: evaluation for evaluation in trial.evaluations}
    steps = [0, *sorted(step for step in scores if step)]
    if len(steps) > _MAX_STEPS:
        steps = [steps[round(index * (len(steps) - 1) / (_MAX_STEPS - 1))] for index in range(_MAX_STEPS)]
    captions = {step: format_score(scores.get(step, {}), results.metric) for step in steps}
    return [(step, f"base step {step}" + (f": {score}" if score else "")) for step, score in captions.items()]


def _read(output: str, relative: str) -> Image.Image:
    """Read a picture of the sweep's folder.

    Raises:
        InvalidDocument: It is a link or leads through one, is no regular file, or no picture within limits.
        OSError: There is none, or it cannot be read.
    """
    files, root = filesystem(output)
    path = f"{root}/{relative}"
    if is_local(files) and Path(path).exists():
        if Path(path).resolve() != Path(root).resolve() / relative:
            raise InvalidDocument("it is behind a link")
        if not Path(path).is_file():
            raise InvalidDocument("it is not a regular file")
    return parse_picture(read_bytes(files, path, PICTURE), PICTURE)


def _join(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
