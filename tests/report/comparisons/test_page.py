"""The page of a comparison: it needs nothing else, and nothing that a folder holds is loaded, run or trusted by it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import struct
import zlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.report.comparisons.groups import group_runs
from pipeline.report.comparisons.page import html_page
from pipeline.report.comparisons.pictures import sample_galleries
from pipeline.report.comparisons.sweeps import load_sweeps
from tests.helpers.compared import write_sweep
from tests.helpers.html_page import ParsedPage

LOADING = [
    "![x](http://untrusted.example/x.png)",
    "<img src=http://untrusted.example/x.png>",
    "</script><img src=//untrusted.example/x>",
    "<http://untrusted.example>",
    "[x]: http://untrusted.example\n\n![x]",
    "a|b\n# c",
    "[red]x[/red]",
    "\x1b]8;;http://untrusted.example\x07x\u202e",
]


def png(size: tuple[int, int] = (32, 32), color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small file that says that it is a large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def two_objectives(folder: Path) -> str:
    params = [{"train.objective": name, "seed": seed} for name in ("kale_fenchel", "gan") for seed in (0, 1)]
    return write_sweep(folder, params)


def add_picture(folder: str, trial: str, name: str, content: bytes) -> None:
    figures = Path(folder) / "trials" / trial / "figures/step-00000010"
    figures.mkdir(parents=True, exist_ok=True)
    (figures / name).write_bytes(content)


def test_the_command_prints_the_tables_and_writes_one_page_with_samples_side_by_side(call, tmp_path):
    folder = two_objectives(tmp_path / "sweep")
    add_picture(folder, "000", "gebm.png", png(color="red"))
    add_picture(folder, "000", "base.png", png(color="blue"))
    add_picture(folder, "002", "gebm.png", png(color="yellow"))
    add_picture(folder, "002", "base.png", png(color="lime"))
    status, printed, _ = call("compare", folder, "--output", str(tmp_path / "out"))
    assert status == 0 and "Differences, paired by seed" in printed and "19.050 ± 0.050" in printed
    assert "comparison   " in printed and "compare.html" in printed
    page = (tmp_path / "out/compare.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    # Of the GEBM its samples, of the GAN its generator's, both of the first seed.
    colors = [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in pictures]
    assert colors == [(255, 0, 0), (0, 255, 0)]
    text = (tmp_path / "out/compare.md").read_text()
    assert text.startswith("# FID of 1 sweep\n") and "19.050 ± 0.050" in text
    assert "trial 000" in page and "trial 002" in page


@pytest.mark.parametrize("words", [["missing"], ["sweep", "sweep"], ["sweep", "--output", "sweep/summary.json"]])
def test_what_cannot_be_compared_or_written_is_one_line(words, call, tmp_path):
    two_objectives(tmp_path / "sweep")
    words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
    status, printed, errors = call("compare", *words)
    assert status == 2 and not printed
    assert errors.startswith("error: ") and errors.count("\n") == 1


def test_sweeps_without_a_score_are_one_line(call, tmp_path):
    folder = write_sweep(tmp_path / "sweep", finish=lambda trial: trial.best_metrics.clear())
    status, _, errors = call("compare", folder)
    assert status == 2 and errors == "error: nothing to compare: no trial of these sweeps has a score yet\n"


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(LOADING) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=9))
def test_no_text_of_a_folder_is_loaded_or_run(tmp_path, call, texts):
    folder = two_objectives(tmp_path / "sweep")
    other = two_objectives(tmp_path / "other")
    document = json.loads((tmp_path / "sweep/summary.json").read_text())
    document |= dict(zip(("experiment", "measure", "extractor", "temperature", "store"), texts, strict=False))
    for trial, text in zip(document["trials"], texts[5:], strict=False):
        trial["params"] |= {"model.networks": text, "train.objective": text}
        trial["best_metrics"].pop("extractor", None)
    (tmp_path / "sweep/summary.json").write_text(json.dumps(document))
    config = yaml.safe_load((tmp_path / "sweep/config.yaml").read_text())
    config["train"]["energy_lr"], config["data"]["store"] = texts[0], texts[1]
    (tmp_path / "sweep/config.yaml").write_text(yaml.safe_dump(config))
    status, printed, errors = call("compare", folder, other, "--output", str(tmp_path / "out"))
    assert status in (0, 2) and (status == 0 or errors.count("\n") == 1)
    assert "\x1b" not in printed + errors and "\u202e" not in printed + errors
    if status == 0:
        page = (tmp_path / "out/compare.html").read_text()
        parsed = ParsedPage(page)
        assert not parsed.requested and not parsed.handlers
        assert not {"img", "link", "iframe", "a", "object"} & set(parsed.tags)
        # Its own style, and the one script by which its tables sort.
        assert parsed.tags.count("style") == parsed.tags.count("script") == 1
        assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a",
        b"<svg onload=alert(1)>",
        png()[:60],
        bomb(60_000, 60_000),
        bomb(5000, 5000),
        png() + b"0" * 2**23,
    ],
    ids=["empty", "another-format", "markup", "half", "bomb", "large", "long"],
)
def test_a_picture_that_is_none_is_a_line(content, tmp_path):
    folder = two_objectives(tmp_path / "sweep")
    add_picture(folder, "000", "gebm.png", content)
    groups = group_runs(load_sweeps([folder]))
    [gallery] = sample_galleries(groups)
    [line, other] = gallery.missing
    assert not gallery.pictures and "trial 000, base step 10" in line and "cannot be shown (" in line
    assert "\n" not in line and "trial 002, base step 10: no picture" in other
    assert html.escape(line) in html_page(groups).decode()


def test_a_picture_behind_a_link_is_not_followed(tmp_path):
    folder = two_objectives(tmp_path / "sweep")
    (tmp_path / "other.png").write_bytes(png())
    add_picture(folder, "000", "base.png", png())
    (Path(folder) / "trials/000/figures/step-00000010/gebm.png").symlink_to(tmp_path / "other.png")
    [gallery] = sample_galleries(group_runs(load_sweeps([folder])))
    assert not gallery.pictures and "it is behind a link" in gallery.missing[0]


def test_the_page_stays_small(tmp_path, monkeypatch):
    folder = two_objectives(tmp_path / "sweep")
    for trial in ("000", "002"):
        for name in ("gebm.png", "base.png"):
            add_picture(folder, trial, name, png())
    groups = group_runs(load_sweeps([folder]))
    monkeypatch.setattr("pipeline.report.comparisons.pictures._MAX_PICTURES", 1)
    page = html_page(groups).decode()
    assert page.count("<img") == 1 and page.count("the page has no room for it") == 1
