"""The page about one's own data: each command makes a store, as it is typed."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import open_store

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "my-data.md"
COMMANDS = re.findall(r"^```sh\npython -m pipeline\.shards (.*)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def jpg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_data(folder: Path) -> None:
    """Six images of two classes in each of the three forms."""
    for number in range(6):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpg(number))
    (folder / "tars").mkdir()
    for tar in range(2):
        with tarfile.open(folder / "tars" / f"shard-{tar:03d}.tar", "w") as archive:
            for number in range(3 * tar, 3 * tar + 3):
                for name, data in ((f"{number}.jpg", jpg(number)), (f"{number}.cls", b"%d" % (number % 2))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    rows = {"image": [{"bytes": jpg(number), "path": None} for number in range(6)], "label": [0, 1] * 3}
    (folder / "rows").mkdir()
    pq.write_table(pa.table(rows), folder / "rows" / "train-00000-of-00001.parquet")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.search(r"kind=(\w+)", command)[1])
def test_the_command_makes_a_store(call, tmp_path: Path, monkeypatch, command: str) -> None:
    write_data(tmp_path)
    monkeypatch.setenv("GEBM_STORES", str(tmp_path / "stores"))
    monkeypatch.chdir(tmp_path)
    status, printed, errors = call("shards", *shlex.split(command))
    assert status == 0, errors
    assert "source: 6 = 6 taken + 0 broken + 0 passed over" in printed and "labels: 2 classes" in printed
    store = open_store(re.search(r"data\.store=(\S+)", command)[1])
    assert store.manifest.num_samples == 6 and len(store.manifest.labels) == 2


def test_what_the_store_prints_is_the_pages_training(call, tmp_path: Path, monkeypatch) -> None:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8").replace("s3://bucket", str(tmp_path))
    shards, train = re.findall(r"^python -m pipeline\.(\w+ .*name=photos.*)$", text, re.MULTILINE)
    status, printed, errors = call(*shlex.split(shards))
    assert status == 0, errors
    command = printed.splitlines()[-1].partition("train on it: python -m pipeline.")[2]
    verb, *words = shlex.split(train)
    assert shlex.split(command.replace("sweep", verb, 1)) == [verb, *words[:-1]] and verb == "train"
    assert words[-1].startswith("output=")
    assert open_store(f"{tmp_path}/stores/photos-64").manifest.resolution == 64


def test_the_page_has_a_command_for_each_kind() -> None:
    assert len(COMMANDS) == 3
