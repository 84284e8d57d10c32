"""Image codec: resizing of a source's images, and encoding and decoding of a store's."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from pipeline.data.image_files import open_image

__all__ = ["DEFAULT_FILTER", "FILTERS", "WrongShape", "decode", "encode", "resize_center_crop"]

_STORED = ("PNG", "JPEG", "WEBP")
# Sizes are checked here before anything is decoded, and Pillow would warn of a large one first.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
"""Filters of resizing, by name. Pillow widens each by the factor of reduction, so that all of them antialias."""

DEFAULT_FILTER = "lanczos"


class WrongShape(ValueError):
    """Image of another shape than expected. The message is the rest of a sentence that begins with its name."""


def resize_center_crop(
    image: bytes | np.ndarray, resolution: int, channels: int, resize_filter: str = DEFAULT_FILTER
) -> np.ndarray:
    """Convert one image of a source to the size and channels of a store.

    The longer side is cropped equally on both ends, and the central square is resized. The default filter is Lanczos,
    which keeps more detail than a box. An image whose shorter side is right is not resampled but cropped by whole
    pixels; where their number is odd, the lower right loses one more.

    Args:
        image: An encoded image, or uint8 pixels (H, W, C) with C = 1 or 3.
        resolution: Height and width of the result, in pixels.
        channels: 1 for gray, 3 for RGB.
        resize_filter: A name of ``FILTERS``.

    Returns:
        Pixels, uint8 (C, resolution, resolution).

    Raises:
        UnreadableImage: If an encoded image cannot be read; see ``pipeline.data.image_files``.

    Example:
        >>> resize_center_crop(np.zeros((20, 30, 3), np.uint8), resolution=8, channels=1).shape
        (1, 8, 8)
    """
    if isinstance(image, bytes):
        picture = open_image(image, channels)
    else:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        picture = picture.convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    if side == resolution:
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    else:
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        square = (left, top, left + side, top + side)
        picture = picture.resize((resolution, resolution), FILTERS[resize_filter], box=square)
    return _channels_first(np.asarray(picture))


def encode(pixels: np.ndarray) -> bytes:
    """Encode one image as PNG, which is lossless.

    Args:
        pixels: uint8 (C, H, W) with C = 1 or 3.

    Returns:
        The bytes of a PNG file.

    Example:
        >>> pixels = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
        >>> bool((decode(encode(pixels)) == pixels).all())
        True
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode(data: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Decode an image file of a store.

    Args:
        data: The bytes of a PNG, JPEG or WebP file, gray or RGB.
        shape: The shape (C, H, W) that its header has to say, before memory for its pixels is asked for. ``None``
            (default) for any.

    Returns:
        Pixels, uint8 (C, H, W).

    Raises:
        WrongShape: If it has another shape.
        Exception: If the image is broken; Pillow raises many kinds.
    """
    picture = Image.open(io.BytesIO(data), formats=_STORED)
    if picture.mode not in ("L", "RGB"):
        raise ValueError(f"its mode is {picture.mode}, not L or RGB")
    if shape not in (None, given := (len(picture.getbands()), picture.height, picture.width)):
        raise WrongShape(f"has shape {given}, its manifest says {shape}")
    return _channels_first(np.asarray(picture))


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
