"""Image files that people bring: what Pillow reads, within which limits, and their pixels as eight bits a channel.

========================  ==============================================================================
pixels of the file        pixels of the store
========================  ==============================================================================
1 bit                     0 and 255
8 bits, palette           as they are; of 16 bits in color, Pillow keeps the upper eight
12 bits, gray             divided by 4095, times 255
16 bits, gray             divided by 257
32-bit integers, gray     as they are up to 255, divided by 257 up to 65,535
floats, gray              times 255 if all are in [0, 1], as they are if all are in [0, 255]
transparent               over white
CMYK, YCbCr, HSV, LAB     by Pillow's own formulas, without the file's color profile
turned by EXIF            turned back
animated, several pages   the first
========================  ==============================================================================

Any other picture is broken, with a reason: numbers that fit no row of the table are never clipped, and pixels of more
than eight bits that a rule would make almost black, below 16 of 255, are not stored.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

__all__ = ["MAX_PIXELS", "UnreadableImage", "describe_suffix", "image_shape", "open_image", "readable_suffixes"]

MAX_PIXELS = 2**30 // 4 // 3
"""Largest number of pixels that are decoded: Pillow's own limit, 89,478,485."""

# Registered as formats, but reading one starts Ghostscript (EPS), unpacks without a limit (FITS), opens what is inside
# as any of Pillow's formats (IPTC), or yields no pixels (MPEG).
_UNREAD = ("EPS", "FITS", "IPTC", "MPEG")
# Packages that add formats to Pillow, where they are installed: HEIC and JPEG XL.
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}
# What downloads leave under the name of an image.
_NO_IMAGES = {
    b"version https://git-lfs": "pointer of Git LFS in place of its file",
    b"<!doctype html": "web page",
    b"<html": "web page",
}
_OF_PLUGINS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"),
    ".jxl": "pillow-jxl-plugin",
}
# In these files, 32-bit integers of Pillow are gray of 16 bits.
_SIXTEEN_BIT_FILES = ("PNG", "PPM")
# Least value of the brightest pixel, of 255: where all are darker, the file has another scale than the rule's.
_DIMMEST = 16
# Slack for floats that were resampled or rounded.
_SLACK = 1e-3


class UnreadableImage(Exception):
    """Image that cannot be read. The message is the reason, the same for all images of its kind."""


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Return the endings of the image files that can be read here, in lower case, by Pillow's registry.

    Example:
        >>> {".png", ".jfif", ".tga"} <= readable_suffixes(), ".eps" in readable_suffixes()
        (True, False)
    """
    readable = set(_readable_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


def describe_suffix(suffix: str) -> str:
    """Return the reason why files with an ending are not read, in a few words.

    Args:
        suffix: The ending in lower case, or an empty text.

    Example:
        >>> describe_suffix(".txt"), describe_suffix(".jxl"), describe_suffix("")
        ('not read as an image (.txt)', 'image that needs pillow-jxl-plugin (.jxl)', 'not read as an image (no suffix)')
    """
    if suffix in _OF_PLUGINS:
        return f"image that needs {_OF_PLUGINS[suffix]} ({suffix})"
    if suffix in Image.registered_extensions():
        return f"of a format that is not read ({suffix})"
    return f"not read as an image ({suffix or 'no suffix'})"


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Return names of Pillow's formats; those without a signature come last, since they accept much."""
    for package, register in _PLUGINS.items():
        if importlib.util.find_spec(package) is not None:
            module = importlib.import_module(package)
            if register is not None:
                getattr(module, register)()
    registered = set(Image.registered_extensions().values())
    readable = []
    for name, (factory, accept) in Image.OPEN.items():
        # A stub knows the header and needs another program for the pixels.
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
        if name in registered and name not in _UNREAD and not stub:
            readable.append((accept is None, name))
    return tuple(name for _, name in sorted(readable, key=lambda entry: entry[0]))


def open_image(data: bytes, channels: int) -> Image.Image:
    """Decode an image file, upright, by the rules on top of this module.

    Args:
        data: The bytes of the file.
        channels: 1 for gray, 3 for RGB.

    Returns:
        A picture of mode "L" or "RGB".

    Raises:
        UnreadableImage: If it is damaged, too large, of an unknown format, or no rule fits its pixels.
    """
    if not data:
        raise UnreadableImage("empty file")
    for start, reason in _NO_IMAGES.items():
        if data[:64].lstrip().lower().startswith(start):
            raise UnreadableImage(reason)
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities that it reads all the same, once an image.
            warnings.simplefilter("ignore")
            return _decode(data, channels)
    except UnreadableImage:
        raise
    # Pillow raises exceptions of many kinds, some with addresses and numbers that differ from image to image.
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def image_shape(data: bytes) -> tuple[int, int, int]:
    """Return what the header of an image file says, without its pixels: channels (1 for gray, or 3), height and width.

    Args:
        data: The bytes of the file.

    Raises:
        UnreadableImage: If it is of an unknown format, or its header is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_readable_formats()) as opened:
                is_gray = opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith(("I", "F"))
                return 1 if is_gray else 3, opened.height, opened.width
    # As of ``open_image``.
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def _decode(data: bytes, channels: int) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_readable_formats()) as opened:
        # The size in the header, before any memory is asked for.
        if opened.width * opened.height > MAX_PIXELS:
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels")
        deep = any(str(tile[3]).endswith(";16B") for tile in opened.tile)
        opened.load()
        upright = _upright(opened)
        transparent = upright.info.get("transparency")
        if upright.mode.startswith(("F", "I")):
            pixels = np.asarray(upright)
            gray = _eight_bits(pixels, _full_scale(opened))
            upright = Image.fromarray(gray if transparent is None else np.where(pixels == transparent, 255, gray))
        elif upright.has_transparency_data:
            if deep and isinstance(transparent, tuple):
                # The upper eight bits, as of the pixels.
                upright.info["transparency"] = tuple(level >> 8 for level in transparent)
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        if upright.mode == "LAB":
            # Pillow has no way from it to gray.
            upright = upright.convert("RGB")
        return upright.convert("L" if channels == 1 else "RGB")


def _upright(opened: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(opened)
    # Damaged EXIF, which says nothing of the pixels.
    except Exception:
        return opened


def _full_scale(opened: Image.Image) -> int | None:
    """Return the integer that means white in a file, or None where its pixels have to tell."""
    if opened.format == "TIFF" and getattr(opened, "tag_v2", {}).get(258) == (12,):
        return 2**12 - 1
    return 2**16 - 1 if opened.mode.startswith("I;16") or opened.format in _SIXTEEN_BIT_FILES else None


def _eight_bits(pixels: np.ndarray, full_scale: int | None) -> np.ndarray:
    """Scale gray pixels of more than eight bits, or refuse what no rule fits."""
    if not np.isfinite(pixels).all():
        raise UnreadableImage("pixels that are not finite")
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind == "f":
        if low < -_SLACK or high > 255 + _SLACK or 1 + _SLACK < high < 2:
            raise UnreadableImage("floats that are neither all in [0, 1] nor all in [0, 255]")
        scaled = np.rint((pixels * 255 if high <= 1 + _SLACK else pixels).clip(0, 255))
    else:
        if low < 0 or high > 65535:
            raise UnreadableImage("integers outside [0, 65535]")
        if full_scale is None:
            full_scale = 255 if high <= 255 else 65535
        scaled = pixels.astype(np.int64) * 255 // full_scale
    # Such as 12 bits, or the numbers of classes, in a file of 16 bits.
    if high > 0 and scaled.max() < _DIMMEST:
        raise UnreadableImage("deep pixels of another scale, which would be almost black")
    return scaled.astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no format that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    if isinstance(error, EOFError) or "truncated" in str(error).lower() or "not enough" in str(error):
        return "cut short"
    return f"damaged ({type(error).__name__})"
