"""Pictures of images that say something of each: by their energy, and beside the nearest training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.evaluation.plots.curves import at_temperature
from pipeline.evaluation.plots.images import grid

__all__ = ["RankedSamples", "energy_panels", "labelled", "neighbors"]

_COLUMNS = 8
_SPACE = 24  # between two parts of a picture
_GAP = 2
_LINE = 20  # height of a line of text
_TEXT, _SMALL = 14, 12  # sizes of type


class RankedSamples(NamedTuple):
    """Samples in the order of their energy, the lowest first.

    Attributes:
        images: Some of them (N, C, H, W), uint8.
        energies: Theirs (N,), in nats.
        lowest: Of all samples those of the lowest energies, images and energies.
        highest: Those of the highest.
        among: How many samples there are in all.
    """

    images: Tensor
    energies: Tensor
    lowest: tuple[Tensor, Tensor]
    highest: tuple[Tensor, Tensor]
    among: int


def labelled(images: Tensor, labels: Sequence[str], columns: int = _COLUMNS) -> Image.Image:
    """Lay images out in rows, as :func:`pipeline.evaluation.plots.grid` does, with a word under each.

    Args:
        images: Images, uint8 (N, C, H, W), C is 1 or 3.
        labels: A word for each, short enough for its image's width.
        columns: Images in a row.

    Returns:
        An RGB image.

    Raises:
        ValueError: Not one label for each image.

    Example:
        >>> import torch
        >>> labelled(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), list("abcde"), columns=3).size
        (148, 132)
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: give one label for each")
    rows = [
        _with_words(grid(images[i : i + columns], columns), labels[i : i + columns])
        for i in range(0, len(images), columns)
    ]
    return _stacked(rows, 0)


def energy_panels(base: RankedSamples, gebm: RankedSamples, temperature: str | None = None) -> Image.Image:
    """Base and GEBM side by side: some samples of each by their energy, and of all samples those at both ends.

    Args:
        base: Samples of the base.
        gebm: Where the same latents end after the chain.
        temperature: Of the chain, in words, for the title.

    Returns:
        An RGB image.
    """
    return _beside(_column("base", base), _column(at_temperature("GEBM, same latents", temperature), gebm))


def _column(name: str, samples: RankedSamples) -> Image.Image:
    low, high = (samples.energies[end] for end in (0, -1))
    ends = [
        _titled(
            labelled(shown, [f"{energy:.2f}" for energy in found]), [f"of all {samples.among:,}, the {which}, in nats"]
        )
        for which, (shown, found) in (("lowest", samples.lowest), ("highest", samples.highest))
    ]
    words = [name, f"{len(samples.images)} by their energy, from {low:.2f} to {high:.2f} nats"]
    return _stacked([_titled(grid(samples.images, _COLUMNS), words), *ends], _SPACE // 2)


def neighbors(
    samples: Tensor,
    energies: Tensor,
    nearest: Tensor,
    distances: Tensor,
    *,
    ratio: float,
    among: int,
    of: int,
    label: str,
    temperature: str | None = None,
) -> Image.Image:
    """Samples, and under each the training images nearest to it: is it one of them?

    Args:
        samples: Images, uint8 (N, C, H, W).
        energies: Theirs (N,), in nats.
        nearest: Training images (N, K, C, H, W), uint8, the nearest first.
        distances: Between the features of sample and training image (N, K).
        ratio: Of all samples, as :func:`pipeline.evaluation.metrics.nn_distance_ratio` gives it.
        among: How many training images were looked at.
        of: How many there are.
        label: Whose features.
        temperature: Of the samples, in words, for the title.

    Returns:
        An RGB image.
    """
    seen = f"all {of:,}" if among == of else f"{among:,} of the {of:,}"
    above = _titled(
        labelled(samples, [f"{energy:.2f}" for energy in energies], len(samples)),
        ["the GEBM's samples of lowest energy,", *([temperature] if temperature else []), "in nats below each"],
    )
    below = _titled(
        _stacked(
            [
                labelled(nearest[:, rank], [f"{distance:.3g}" for distance in distances[:, rank]], len(samples))
                for rank in range(nearest.shape[1])
            ],
            0,
        ),
        [
            f"under each the nearest of {seen} training images,",
            "and their distance between features of",
            label,
        ],
    )
    words = [
        f"of all samples, the mean distance to the nearest is {ratio:.2f}",
        "times that of training images among themselves",
        "(0: copies; 1: as new as data)",
    ]
    return _stacked([above, below, _titled(Image.new("RGB", (1, 1), "white"), words)], _SPACE // 2)


def _with_words(row: Image.Image, words: Sequence[str]) -> Image.Image:
    """A row of images with a word in the middle under each."""
    canvas = Image.new("RGB", (row.width, row.height + _LINE - _GAP), "white")
    canvas.paste(row, (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_SMALL)
    step = (row.width + _GAP) / len(words)
    for index, word in enumerate(words):
        middle = index * step + (step - _GAP) / 2
        draw.text((middle, row.height + _LINE // 2 - _GAP // 2), word, fill="black", font=font, anchor="mm")
    return canvas


def _titled(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """An image under lines of text; wider than the image where the text is."""
    font = ImageFont.load_default(_TEXT)
    width = max(image.width, *(math.ceil(font.getlength(line)) + 2 * _GAP for line in lines))
    canvas = Image.new("RGB", (width, image.height + _LINE * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        draw.text((_GAP, _LINE * index + _LINE // 2), line, fill="black", font=font, anchor="lm")
    canvas.paste(image, (0, _LINE * len(lines)))
    return canvas


def _stacked(images: Sequence[Image.Image], space: int) -> Image.Image:
    height = sum(image.height for image in images) + space * (len(images) - 1)
    canvas, y = Image.new("RGB", (max(image.width for image in images), height), "white"), 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height + space
    return canvas


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (left.width + _SPACE + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + _SPACE, 0))
    return canvas
