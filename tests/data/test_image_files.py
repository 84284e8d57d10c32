"""Image files of every kind: pixels by a stated rule, or broken with a reason; crops by whole pixels."""

from __future__ import annotations

import io
import struct
import sys
import time
import types
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.data import image_files
from pipeline.data.image_codec import resize_center_crop
from pipeline.data.image_files import MAX_PIXELS, UnreadableImage, open_image, readable_suffixes


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gray(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data, 1))


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
@example(width=43, height=32, seed=0)
@settings(max_examples=50)
def test_an_image_that_needs_only_a_crop_is_cropped_by_whole_pixels(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side].transpose(2, 0, 1)
    for image in (pixels, encoded(Image.fromarray(pixels))):
        assert np.array_equal(resize_center_crop(image, side, 3), square)


@given(pixels=arrays(np.uint16, (3, 4)))
@example(pixels=np.full((3, 4), 65535, np.uint16))
@example(pixels=np.full((3, 4), 256, np.uint16))
@example(pixels=np.full((3, 4), 4095, np.uint16))
@example(pixels=np.full((3, 4), 4112, np.uint16))
@example(pixels=np.zeros((3, 4), np.uint16))
def test_sixteen_bits_are_divided_by_257_and_never_all_become_black(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    for data in (encoded(image), encoded(image, "TIFF"), encoded(image, "PPM")):
        if 0 < pixels.max() < 16 * 257:
            with pytest.raises(UnreadableImage, match="would be almost black"):
                gray(data)
        else:
            assert np.array_equal(gray(data), pixels // 257)


@given(
    low=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 70_000),
    span=st.sampled_from([0, 1, 200, 255, 257, 65535, 2**31]),
    seed=st.just(0),
)
@example(low=0, span=255, seed=0)
@example(low=0, span=65535, seed=0)
@example(low=-1, span=2, seed=0)
@example(low=0, span=1, seed=0)
def test_integers_of_32_bits_are_scaled_or_broken(low: int, span: int, seed: int) -> None:
    pixels = np.array([[low, min(low + span, 2**31 - 1)]], np.int32)
    data, high = encoded(Image.fromarray(pixels), "TIFF"), int(pixels.max())
    if low < 0 or high > 65535 or 0 < high < 16 or 255 < high < 16 * 257:
        with pytest.raises(UnreadableImage):
            gray(data)
    else:
        assert np.array_equal(gray(data), pixels if high <= 255 else pixels // 257)


@given(
    pixels=arrays(np.float32, (3, 4), elements=st.floats(-2, 300, width=32) | st.floats(0, 1, width=32))
    | arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))
    | arrays(np.float32, (3, 4), elements=st.floats(width=32))
)
@example(pixels=np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
@example(pixels=np.linspace(0, 255, 12, dtype=np.float32).reshape(3, 4))
@example(pixels=np.full((3, 4), np.nan, np.float32))
@example(pixels=np.linspace(0, 1.02, 12, dtype=np.float32).reshape(3, 4))
def test_floats_are_scaled_or_broken(pixels: np.ndarray) -> None:
    data = encoded(Image.fromarray(pixels), "TIFF")
    low, high = pixels.min(), pixels.max()
    if np.isfinite(pixels).all() and low >= 0 and (high <= 1 or 2 <= high <= 255):
        scaled = pixels * 255 if high <= 1 else pixels
        if high > 0 and np.rint(scaled.max()) < 16:
            with pytest.raises(UnreadableImage, match="almost black"):
                gray(data)
        else:
            assert np.abs(gray(data) - scaled).max() <= 0.5001
    elif not (np.isfinite(pixels).all() and low >= -0.001 and high <= 255.001):
        with pytest.raises(UnreadableImage, match=r"finite|floats"):
            gray(data)


def test_twelve_bits_fill_the_range() -> None:
    """A TIFF of 12 bits a pixel, written by hand: 0, 1365, 2730 and 4095."""
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 6}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert len(header) == 122
    assert gray(header + bytes.fromhex("000555aaafff")).tolist() == [[0, 85, 170, 255]]


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB", "1"])
def test_what_is_transparent_is_white(kind: str) -> None:
    if kind in ("RGBA", "LA"):
        image = Image.new(kind, (4, 4), (7,) * (len(kind) - 1) + (0,))
        opaque = Image.new(kind, (4, 4), (7,) * (len(kind) - 1) + (255,))
        assert (gray(encoded(opaque)) == 7).all()
        data = encoded(image)
    else:
        key = (7, 8, 9) if kind == "RGB" else 0
        data = encoded(Image.new(kind, (4, 4), key), transparency=key)
    assert (gray(data) == 255).all()


@pytest.mark.parametrize("color", [0, 2], ids=["gray", "RGB"])
def test_what_is_transparent_in_sixteen_bits_is_white(color: int) -> None:
    channels = 3 if color else 1
    pixels = np.full((2, 2, channels), 0x1234, ">u2")
    pixels[0] = key = np.array([0xABCD, 0x1111, 0x2222], ">u2")[:channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, color, 0, 0, 0)),
        *((b"tRNS", key.tobytes()), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")),
    ]
    stored = np.asarray(open_image(png(chunks), channels)).reshape(2, 2, channels)
    assert (stored[0] == 255).all() and (stored[1] == 0x12).all()


def test_modes_of_color_and_orientation() -> None:
    image = Image.fromarray(PIXELS)
    color, shade = (np.asarray(open_image(encoded(image.convert("LAB"), "TIFF"), n)).astype(int) for n in (3, 1))
    assert np.abs(shade - np.asarray(Image.fromarray(color.astype(np.uint8)).convert("L"))).max() == 0
    for mode, options in (("CMYK", {"kind": "TIFF"}), ("YCbCr", {"kind": "TIFF"})):
        assert np.abs(np.asarray(open_image(encoded(image.convert(mode), **options), 3)).astype(int) - PIXELS).max() < 4
    assert set(np.unique(gray(encoded(image.convert("1"))))) == {0, 255}
    turned = Image.Exif()
    turned[0x0112] = 6
    assert np.array_equal(np.asarray(open_image(encoded(image, exif=turned), 3)), np.rot90(PIXELS, -1))
    damaged = open_image(encoded(image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), 3)
    assert np.array_equal(np.asarray(damaged), PIXELS)
    two = encoded(image, "TIFF", save_all=True, append_images=[image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert np.array_equal(np.asarray(open_image(two, 3)), PIXELS)


def png_header(width: int, height: int) -> bytes:
    return png([(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("size", [(13_300, 13_300), (MAX_PIXELS + 1, 1), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_the_size_in_the_header_is_bounded_before_anything_is_decoded(size: tuple[int, int]) -> None:
    start = time.perf_counter()
    with pytest.raises(UnreadableImage, match="more than 89,478,485 pixels"):
        open_image(png_header(*size), 3)
    assert time.perf_counter() - start < 1
    with pytest.raises(UnreadableImage, match=r"damaged|cut short"):
        open_image(png_header(100, 100), 3)


@given(data=st.binary(max_size=60), cut=st.integers(0, 400), kind=st.sampled_from(["PNG", "JPEG", "TIFF", "TGA"]))
@example(data=b"", cut=0, kind="PNG")
@example(data=bytes(60), cut=400, kind="JPEG")
@settings(max_examples=40)
def test_a_damaged_file_has_a_reason_that_does_not_differ_from_file_to_file(data: bytes, cut: int, kind: str) -> None:
    for content in (data, encoded(Image.fromarray(PIXELS), kind)[:cut]):
        try:
            open_image(content, 3)
        except UnreadableImage as error:
            assert not any(text in str(error) for text in ("0x", "\n", "bytes not")) and len(str(error)) < 60


def test_what_a_download_left_in_place_of_an_image_is_named() -> None:
    for data, reason in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"<html>404</html>", "web page"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            open_image(data, 3)


def test_formats_that_start_programs_or_unpack_without_limit_are_not_read() -> None:
    assert not {".eps", ".ps", ".wmf", ".emf", ".fits", ".h5", ".grib", ".bufr", ".mpg", ".pdf"} & readable_suffixes()
    assert {".jpg", ".jpe", ".jfif", ".png", ".tga", ".webp", ".tif", ".tiff", ".gif", ".bmp"} <= readable_suffixes()
    eps = encoded(Image.fromarray(PIXELS), "EPS")
    with pytest.raises(UnreadableImage, match="no format"):
        open_image(eps, 3)


def test_an_image_inside_another_is_of_no_other_format(monkeypatch) -> None:
    """An IPTC file has no signature, and Pillow opens what it holds as whatever that is."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    eps = encoded(Image.fromarray(PIXELS), "EPS")
    fields = {(3, 60): b"\1\0", (3, 20): b"\x10", (3, 30): b"\x0c", (3, 120): b"\5", (8, 10): eps}
    data = b"".join(struct.pack(">BBBH", 0x1C, *tag, len(value)) + value for tag, value in fields.items())
    with pytest.raises(UnreadableImage, match="no format"):
        open_image(data, 3)


def test_a_plugin_that_is_installed_adds_its_formats(monkeypatch) -> None:
    def register() -> None:
        Image.register_open("HEIF", Image.OPEN["PNG"][0], Image.OPEN["PNG"][1])
        Image.register_extension("HEIF", ".heic")

    plugin = types.ModuleType("pillow_heif")
    plugin.__spec__ = types.SimpleNamespace()
    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    cached = (image_files._readable_formats, image_files.readable_suffixes)
    try:
        for function in cached:
            function.cache_clear()
        assert ".heic" in readable_suffixes()
    finally:
        Image.OPEN.pop("HEIF", None), Image.EXTENSION.pop(".heic", None)
        if "HEIF" in Image.ID:
            Image.ID.remove("HEIF")
        for function in cached:
            function.cache_clear()
