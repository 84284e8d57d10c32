"""Panels of labeled images: samples ranked by energy, and samples with their nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.evaluation.plots.image_grids import grid
from pipeline.evaluation.plots.layout import GAP, SPACE, join_horizontally, join_vertically, titled
from pipeline.evaluation.plots.titles import at_temperature

__all__ = ["RankedSamples", "energy_panels", "labelled", "neighbors"]

_COLUMNS = 8
# Height of a line of text, and sizes of titles and labels, in pixels.
_LINE = 20
_TITLE_SIZE, _LABEL_SIZE = 14, 12


class RankedSamples(NamedTuple):
    """Samples in the order of their energy, the lowest first.

    Attributes:
        images: Some of the samples (N, C, H, W), uint8.
        energies: Their energies (N,), in nats.
        lowest: Images and energies of the samples with the lowest energies of all.
        highest: Images and energies of those with the highest.
        among: Number of samples in all.
    """

    images: Tensor
    energies: Tensor
    lowest: tuple[Tensor, Tensor]
    highest: tuple[Tensor, Tensor]
    among: int


def labelled(images: Tensor, labels: Sequence[str], columns: int = _COLUMNS) -> Image.Image:
    """Lay images out in rows, as :func:`pipeline.evaluation.plots.grid` does, with a label under each.

    Args:
        images: Images, uint8 (N, C, H, W), C is 1 or 3.
        labels: One for each, short enough for its image's width.
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
        _with_labels(grid(images[i : i + columns], columns), labels[i : i + columns])
        for i in range(0, len(images), columns)
    ]
    return join_vertically(rows, 0)


def energy_panels(base: RankedSamples, gebm: RankedSamples, temperature: str | None = None) -> Image.Image:
    """Draw base and GEBM side by side: some samples of each, ranked by energy, and the extremes of all samples.

    Args:
        base: Samples of the base.
        gebm: Samples of the same latents after the chain.
        temperature: Of the chain, in words, for the title.

    Returns:
        An RGB image.
    """
    return join_horizontally(_column("base", base), _column(at_temperature("GEBM, same latents", temperature), gebm))


def _column(name: str, samples: RankedSamples) -> Image.Image:
    low, high = (samples.energies[end] for end in (0, -1))
    ends = [
        _titled(
            labelled(shown, [f"{energy:.2f}" for energy in energies]),
            [f"of all {samples.among:,}, the {which}, in nats"],
        )
        for which, (shown, energies) in (("lowest", samples.lowest), ("highest", samples.highest))
    ]
    title = [name, f"{len(samples.images)} by their energy, from {low:.2f} to {high:.2f} nats"]
    return join_vertically([_titled(grid(samples.images, _COLUMNS), title), *ends], SPACE // 2)


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
    """Draw samples, and under each its nearest training images, to see whether it is one of them.

    Args:
        samples: Images, uint8 (N, C, H, W).
        energies: Their energies (N,), in nats.
        nearest: Training images (N, K, C, H, W), uint8, the nearest first.
        distances: Between the features of sample and training image (N, K).
        ratio: Of all samples, as :func:`pipeline.evaluation.metrics.nn_distance_ratio` gives it.
        among: Number of training images that were compared.
        of: Number of training images in all.
        label: Label of the feature extractor.
        temperature: Of the samples, in words, for the title.

    Returns:
        An RGB image.
    """
    compared = f"all {of:,}" if among == of else f"{among:,} of the {of:,}"
    above = _titled(
        labelled(samples, [f"{energy:.2f}" for energy in energies], len(samples)),
        ["the GEBM's samples of lowest energy,", *([temperature] if temperature else []), "in nats below each"],
    )
    below = _titled(
        join_vertically(
            [
                labelled(nearest[:, rank], [f"{distance:.3g}" for distance in distances[:, rank]], len(samples))
                for rank in range(nearest.shape[1])
            ],
            0,
        ),
        [
            f"under each the nearest of {compared} training images,",
            "and their distance between features of",
            label,
        ],
    )
    summary = [
        f"of all samples, the mean distance to the nearest is {ratio:.2f}",
        "times that of training images among themselves",
        "(0: copies; 1: as new as data)",
    ]
    return join_vertically([above, below, _titled(Image.new("RGB", (1, 1), "white"), summary)], SPACE // 2)


def _with_labels(row: Image.Image, labels: Sequence[str]) -> Image.Image:
    """Return a row of images with a label in the middle under each."""
    canvas = Image.new("RGB", (row.width, row.height + _LINE - GAP), "white")
    canvas.paste(row, (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LABEL_SIZE)
    step = (row.width + GAP) / len(labels)
    for index, label in enumerate(labels):
        middle = index * step + (step - GAP) / 2
        draw.text((middle, row.height + _LINE // 2 - GAP // 2), label, fill="black", font=font, anchor="mm")
    return canvas


def _titled(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    return titled(image, lines, font_size=_TITLE_SIZE, line_height=_LINE)
