"""Grids of samples and animations along a chain, by Pillow, which preserves every pixel.

Functions return an object or PNG bytes, so that a caller can save it behind any URL.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline.evaluation.plots.layout import GAP, join_horizontally, join_vertically, titled
from pipeline.evaluation.plots.titles import at_temperature

__all__ = [
    "animation",
    "arranged",
    "chain_rows",
    "class_rows",
    "grid",
    "png",
    "side_by_side",
]

_MIN_CELL = 48
_TITLE_HEIGHT = 28
_FONT_SIZE = 16


def class_rows(labels: Tensor | None, count: int, columns: int = 8) -> Tensor:
    """Choose the samples of a grid: the first ones, or of labeled samples those that give each row one class.

    The classes share the rows of ``count`` cells evenly, each has one at least, and its first samples are in them.

    Args:
        labels: Classes (N,), or ``None`` without classes.
        count: Number of cells, about.
        columns: Images in a row.

    Returns:
        Numbers of samples (M,), int64, row after row; -1 where a cell stays empty.

    Example:
        >>> class_rows(None, 3).tolist(), class_rows(torch.tensor([1, 0, 1, 1]), 4, columns=2).tolist()
        ([0, 1, 2], [1, -1, 0, 2])
    """
    if labels is None:
        return torch.arange(count)
    present = labels.unique().tolist()
    most = max(1, count // (columns * len(present))) * columns
    rows = []
    for label in present:
        own = (labels == label).nonzero()[:most, 0].cpu()
        empty = -len(own) % columns if len(present) > 1 else 0
        rows.append(torch.cat([own, torch.full((empty,), -1)]))
    return torch.cat(rows)


def arranged(images: Tensor, chosen: Tensor) -> Tensor:
    """Return images in the order of :func:`class_rows`, white ones in the cells that stay empty.

    Args:
        images: Images, uint8 (N, C, H, W), or rows (N, D), of which no cell is empty.
        chosen: Numbers of images (M,), or -1.
    """
    empty = (chosen < 0).view(-1, *[1] * (images.dim() - 1))
    return images[chosen.clamp(min=0)].masked_fill(empty, 255)


def grid(images: Tensor, columns: int, scale: int | None = None) -> Image.Image:
    """Lay images out in rows, left to right.

    Image ``i`` has its top left pixel at ``x = (i % columns) * (W * scale + 2)`` and
    ``y = (i // columns) * (H * scale + 2)``; the gaps, and the cells that are left over, are white.

    Args:
        images: Images, uint8 (N, C, H, W), C is 1 or 3.
        columns: Images in a row.
        scale: Every pixel becomes ``scale`` x ``scale`` of them; by default the number that makes a cell of 48 pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: No images, or of another type or shape.

    Example:
        >>> grid(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), columns=3).size
        (148, 98)
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"a grid takes uint8 images (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}")
    num, _, height, width = images.shape
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    scale = scale or max(1, math.ceil(_MIN_CELL / min(height, width)))
    cells = images.cpu().expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    step_y, step_x = height * scale + GAP, width * scale + GAP
    canvas = torch.full((3, rows * step_y - GAP, columns * step_x - GAP), 255, dtype=torch.uint8)
    for i, cell in enumerate(cells):
        y, x = i // columns * step_y, i % columns * step_x
        canvas[:, y : y + height * scale, x : x + width * scale] = cell
    return Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())


def _titled(image: Image.Image, title: str) -> Image.Image:
    return titled(image, [title], font_size=_FONT_SIZE, line_height=_TITLE_HEIGHT)


def side_by_side(base: Tensor, gebm: Tensor, columns: int = 8, temperature: str | None = None) -> Image.Image:
    """Draw samples of the base on the left, and those of the same latents after the chain on the right.

    Args:
        base: Images, uint8 (N, C, H, W), ``B(z)`` of the prior's latents.
        gebm: Images, uint8 (N, C, H, W), ``B(z)`` of the chain's last latents, in the same order.
        columns: Images in a row, on either side.
        temperature: Of the chain, in words, for the title; see :mod:`pipeline.config.temperature`.

    Returns:
        An RGB image.

    Raises:
        ValueError: The two differ in shape.

    Example:
        >>> x = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
        >>> side_by_side(x, x).size
        (820, 126)
    """
    if base.shape != gebm.shape:
        raise ValueError(f"base {tuple(base.shape)} and GEBM {tuple(gebm.shape)} are not of the same latents")
    left = _titled(grid(base, columns), "base")
    right = _titled(grid(gebm, columns), at_temperature("GEBM, same latents", temperature))
    return join_horizontally(left, right)


def chain_rows(frames: Mapping[int, Tensor], columns: int = 8, temperature: str | None = None) -> Image.Image:
    """Draw the first samples at each step of their chain, a row a step, from the base to the GEBM.

    Args:
        frames: MCMC step -> the samples there, uint8 (N, C, H, W), in the same order at each step.
        columns: Samples in a row.
        temperature: Of the chain, in words, for the last row's title.

    Returns:
        An RGB image.

    Example:
        >>> x = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
        >>> chain_rows({0: x, 50: x, 100: x}).size
        (398, 228)
    """
    steps = sorted(frames)
    ends = {steps[0]: ": the base", steps[-1]: f": {at_temperature('the GEBM', temperature)}"}
    return join_vertically(
        [_titled(grid(frames[step][:columns], columns), f"MCMC step {step}{ends.get(step, '')}") for step in steps], 0
    )


def animation(
    frames: Sequence[Tensor],
    steps: Sequence[int],
    target: BinaryIO,
    *,
    columns: int = 8,
    milliseconds: int = 200,
    temperature: str | None = None,
) -> None:
    """Write an animated GIF of samples along a chain; the last frame is shown for two seconds.

    Args:
        frames: The samples at each step, uint8 (N, C, H, W), all of one shape.
        steps: The MCMC step of each frame, written above it.
        target: A binary file, open for writing.
        columns: Images in a row.
        milliseconds: Time that a frame is shown.
        temperature: Of the chain, in words, written after each step.

    Raises:
        ValueError: No frames, or not one step for each.
    """
    if not frames or len(frames) != len(steps):
        raise ValueError(f"an animation takes one step for each frame, got {len(frames)} frames, {len(steps)} steps")
    # Every frame gets the canvas of the widest title.
    width = len(str(max(steps)))
    titles = [at_temperature(f"MCMC step {step:>{width}}", temperature) for step in steps]
    pictures = [_titled(grid(frame, columns), title) for frame, title in zip(frames, titles, strict=True)]
    size = (max(picture.width for picture in pictures), pictures[0].height)
    canvases = []
    for picture in pictures:
        canvas = Image.new("RGB", size, "white")
        canvas.paste(picture, (0, 0))
        canvases.append(canvas)
    durations = [milliseconds] * (len(canvases) - 1) + [2000]
    canvases[0].save(target, format="GIF", save_all=True, append_images=canvases[1:], duration=durations, loop=0)


def png(figure: Figure | Image.Image) -> bytes:
    """Return a figure or an image as the bytes of a PNG file.

    Example:
        >>> png(grid(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), columns=1))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    if isinstance(figure, Image.Image):
        figure.save(buffer, format="PNG")
    else:
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
