"""Pictures on a report's page: those of the sweep's folder, which is untrusted, decoded within limits."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.report.analysis import collect_results, load_results
from pipeline.report.html import report
from pipeline.report.pictures import encode, galleries
from pipeline.runtime.untrusted import PICTURE, InvalidDocument, Limits, parse_picture
from pipeline.tracking.summary import SweepSummary

STEPS, SECRET = (10, 20, 30), b"secret-of-this-machine"


def png(color: tuple[int, int, int], size: int = 80, **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, format="PNG", **more)
    return buffer.getvalue()


def color_of(trial: int, step: int) -> tuple[int, int, int]:
    return (40 * trial, step, 200)


def swept(folder: Path, trials: int = 5) -> SweepSummary:
    """A sweep whose trials have a picture of one color for each evaluation; the last trial is the best."""
    records = SweepSummary(str(folder), metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={})
    for index in range(trials):
        trial = records.add(f"{index:03d}", {"train.base_lr": 1e-4 * (index + 1)})
        for step in (0, *STEPS):
            figures = folder / "trials" / trial.name / "figures" / f"step-{step:08d}"
            figures.mkdir(parents=True)
            (figures / "gebm.png").write_bytes(png(color_of(index, step)))
            (figures / "chain.png").write_bytes(png((1, 2, 3)))
            metrics = {"base_step": step, "fid_base": 9.0, "fid_gebm": 10.0 - index - step / 100}
            if step:
                records.evaluated(trial, metrics, f"{folder}/trials/{trial.name}/checkpoints/step-{step:08d}")
        trial.status = "finished"
    records.write()
    return records


def picture(folder: Path, trial: int, step: int = 30, name: str = "gebm") -> Path:
    return folder / "trials" / f"{trial:03d}" / "figures" / f"step-{step:08d}" / f"{name}.png"


def shown(folder: Path, key: str = "samples") -> tuple[list[tuple[int, ...]], list[str]]:
    """The colors of a gallery's pictures, and the lines on those that are missing."""
    [gallery] = [one for one in galleries(load_results(str(folder))) if one.key == key]
    images = [Image.open(io.BytesIO(one.content)).convert("RGB") for one in gallery.pictures]
    return [image.getpixel((0, 0)) for image in images], gallery.missing


def test_best_median_and_worst_are_shown_and_the_best_over_its_training(tmp_path):
    swept(tmp_path)
    assert shown(tmp_path) == ([color_of(4, 30), color_of(2, 30), color_of(0, 30)], [])
    assert shown(tmp_path, "training") == ([color_of(4, step) for step in (0, *STEPS)], [])
    assert shown(tmp_path, "chain") == ([(1, 2, 3)], [])
    page = report(load_results(str(tmp_path)))["report.html"].decode()
    captions = re.findall(r"<figcaption>([^<]*)", page)
    assert captions[:3] == [
        f"{name}: trial 00{trial}, base step 30, {9.7 - trial:.3f}"
        for name, trial in (("best", 4), ("median", 2), ("worst", 0))
    ]
    assert "from the same latents" in page


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_few_trials_each_is_shown_once(count, tmp_path):
    swept(tmp_path, count)
    colors, _ = shown(tmp_path)
    assert sorted(colors) == [color_of(trial, 30) for trial in range(count)] and colors[0] == color_of(count - 1, 30)


def test_trials_that_differ_in_their_seed_are_not_said_to_share_latents(tmp_path):
    records = swept(tmp_path)
    for trial in records.trials:
        trial.params["seed"] = int(trial.name)
    first = galleries(collect_results(str(tmp_path), records, {}))[0]
    assert "latents may differ with seed" in first.title


def damage(path: Path, how: str) -> None:
    secret = path.parent.parent / "secret.png"
    content = path.read_bytes()
    path.unlink()
    if how == "link":
        secret.write_bytes(content)
        path.symlink_to(secret)
    elif how == "folder behind a link":
        path.parent.rename(elsewhere := path.parents[4] / "elsewhere")
        (elsewhere / path.name).write_bytes(content)
        path.parent.symlink_to(elsewhere)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "cut":
        path.write_bytes(content[:60])
    elif how == "other format":
        Image.new("RGB", (8, 8)).save(path, format="GIF")
    elif how == "text":
        path.write_bytes(b"<script>alert(1)</script>" + SECRET)
    elif how == "too many pixels":
        Image.new("1", (2**13, 2**12)).save(path, format="PNG")
    elif how == "too many bytes":
        path.write_bytes(content + bytes(2**24))


@pytest.mark.parametrize(
    "how",
    ["link", "folder behind a link", "pipe", "folder", "cut", "other format", "text", "too many pixels",
     "too many bytes"],
)  # fmt: skip
def test_what_is_no_picture_of_the_sweep_is_a_line_in_its_place(how, tmp_path):
    swept(tmp_path)
    damage(picture(tmp_path, 2), how)
    started = time.monotonic()
    colors, missing = shown(tmp_path)
    assert time.monotonic() - started < 10
    assert colors == [color_of(4, 30), color_of(0, 30)]
    [line] = missing
    assert line.startswith("trial 002, base step 30: ") and "\n" not in line and "alert(1)" not in line


def test_a_picture_that_is_not_there_is_a_line_and_a_sweep_without_any_has_no_gallery(tmp_path):
    records = swept(tmp_path)
    picture(tmp_path, 0).unlink()
    picture(tmp_path, 0, name="chain").unlink()
    assert shown(tmp_path) == ([color_of(4, 30), color_of(2, 30)], ["trial 000, base step 30: no picture"])
    assert galleries(collect_results(str(tmp_path / "nowhere"), records, {})) == []


def test_nothing_but_pixels_goes_from_a_file_to_the_page(tmp_path):
    swept(tmp_path)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", SECRET.decode())
    picture(tmp_path, 4).write_bytes(png((1, 1, 1), pnginfo=text) + SECRET)
    damage(picture(tmp_path, 2), "text")
    page = report(load_results(str(tmp_path)))["report.html"].decode()
    files = re.findall(r"data:image/(?:png|webp);base64,([^\"]+)", page)
    assert files and not any(SECRET in base64.b64decode(one) for one in files)
    assert "trial 002, base step 30: " in page and SECRET.decode() not in page and "alert(1)" not in page


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_a_picture_or_one_line(data):
    content = bytearray(png((9, 9, 9), size=20))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = parse_picture(bytes(content), PICTURE)
    except InvalidDocument as error:
        assert "\n" not in str(error)
    else:
        assert decoded.mode == "RGB" and not decoded.info


def test_the_limits_are_those_of_pixels_and_of_bytes():
    small = Limits(num_bytes=10_000, values=400)
    assert parse_picture(png((1, 2, 3), size=20), small).size == (20, 20)
    with pytest.raises(InvalidDocument, match="pixels"):
        parse_picture(png((1, 2, 3), size=21), small)
    with pytest.raises(InvalidDocument, match="bytes"):
        parse_picture(png((1, 2, 3), size=20) + bytes(10_000), small)


@pytest.mark.parametrize("side", [100, 600])
def test_a_picture_on_the_page_is_small_and_keeps_its_pixels_where_it_can(side):
    flat = Image.new("RGB", (side, side), (10, 20, 30))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    for original in (flat, noise):
        _, content = encode(original)
        assert len(content) <= 120_000
    _, content = encode(flat)
    assert (np.asarray(Image.open(io.BytesIO(content))) == np.asarray(flat)).all()
