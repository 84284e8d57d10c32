"""Image codec: resizing of a source's images, and encoding and decoding of a store's."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

__all__ = ["decode", "encode", "resize_center_crop"]

# An explicit list: Pillow also opens formats that start other programs (EPS starts Ghostscript).
_PHOTOGRAPHS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
_STORED = ("PNG", "JPEG", "WEBP")


def resize_center_crop(image: bytes | np.ndarray, resolution: int, channels: int) -> np.ndarray:
    """Convert one image of a source to the size and channels of a store.

    The longer side is cropped equally on both ends, and the central square is resized. The filter is Lanczos: Pillow
    widens it by the factor of reduction, so it antialiases, and it keeps more detail than a box. An image of the right
    size is not resampled.

    Args:
        image: An encoded image, or uint8 pixels (H, W, C) with C = 1 or 3.
        resolution: Height and width of the result, in pixels.
        channels: 1 for gray, 3 for RGB.

    Returns:
        Pixels, uint8 (C, resolution, resolution).

    Raises:
        Exception: If the image is broken; Pillow raises many kinds.

    Example:
        >>> resize_center_crop(np.zeros((20, 30, 3), np.uint8), resolution=8, channels=1).shape
        (1, 8, 8)
    """
    if isinstance(image, bytes):
        opened = Image.open(io.BytesIO(image), formats=_PHOTOGRAPHS)
        opened.load()
        picture = ImageOps.exif_transpose(opened)
    else:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if picture.mode.startswith("I"):
        # Sixteen bits a pixel, which Pillow's own conversion would clip to white instead of scaling.
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    picture = picture.convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    if picture.size != (resolution, resolution):
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        square = (left, top, left + side, top + side)
        picture = picture.resize((resolution, resolution), Image.Resampling.LANCZOS, box=square)
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


def decode(data: bytes) -> np.ndarray:
    """Decode an image file of a store.

    Args:
        data: The bytes of a PNG, JPEG or WebP file, gray or RGB.

    Returns:
        Pixels, uint8 (C, H, W).

    Raises:
        Exception: If the image is broken; Pillow raises many kinds.
    """
    picture = Image.open(io.BytesIO(data), formats=_STORED)
    if picture.mode not in ("L", "RGB"):
        raise ValueError(f"its mode is {picture.mode}, not L or RGB")
    return _channels_first(np.asarray(picture))


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
