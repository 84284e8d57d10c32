"""Layout of images by Pillow: under a title, side by side, one above another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["GAP", "SPACE", "join_horizontally", "join_vertically", "titled"]

# Pixels between two images of a grid, and between two parts of a picture.
GAP = 2
SPACE = 24


def titled(image: Image.Image, lines: Sequence[str], *, font_size: int, line_height: int) -> Image.Image:
    """Return an image under lines of text on white; wider than the image where the text is.

    Args:
        image: The image.
        lines: Lines of the title, one at least.
        font_size: Size of the letters, in pixels.
        line_height: Height of a line, in pixels.

    Example:
        >>> titled(Image.new("RGB", (400, 10)), ["base", "beta 1"], font_size=14, line_height=20).size
        (400, 50)
    """
    font = ImageFont.load_default(font_size)
    width = max(image.width, *(math.ceil(font.getlength(line)) + 2 * GAP for line in lines))
    canvas = Image.new("RGB", (width, image.height + line_height * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        draw.text((GAP, line_height * index + line_height // 2), line, fill="black", font=font, anchor="lm")
    canvas.paste(image, (0, line_height * len(lines)))
    return canvas


def join_vertically(images: Sequence[Image.Image], space: int) -> Image.Image:
    """Return images one above another, aligned on the left, on white.

    Args:
        images: One image at least.
        space: Pixels between two of them.
    """
    height = sum(image.height for image in images) + space * (len(images) - 1)
    canvas, y = Image.new("RGB", (max(image.width for image in images), height), "white"), 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height + space
    return canvas


def join_horizontally(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two images side by side, aligned at the top, on white."""
    canvas = Image.new("RGB", (left.width + SPACE + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + SPACE, 0))
    return canvas
