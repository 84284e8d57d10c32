"""Account of a source's files: taken, broken and passed over are all of them, each with a reason."""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import open_store, sources, write_store
from pipeline.data.ledger import Group, Ledger, group
from pipeline.data.manifest import Manifest
from pipeline.data.sources.images.class_folders import label_by_folder
from pipeline.runtime.errors import UserError


def png(value: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


IMAGE = png()
CONTENTS = {"image": IMAGE, "cut": IMAGE[:45], "empty": b"", "text": b"no image at all"}
PARTS = ["cat", "dog", "train", "test", ".hidden", "__MACOSX", "caf\udce9", "\x1b[2J"]
SUFFIXES = [".png", ".JPG", ".jfif", ".txt", ".heic", ".eps", ".cls", ""]
FILES = st.dictionaries(
    st.builds(
        lambda folders, number, suffix: "/".join([*folders, f"{number}{suffix}"]),
        st.lists(st.sampled_from(PARTS), max_size=3),
        st.integers(0, 3),
        st.sampled_from(SUFFIXES),
    ),
    st.sampled_from(sorted(CONTENTS)),
    min_size=1,
    max_size=12,
)


def pack(folder: Path, files: dict[str, str], form: str) -> str:
    path = folder / f"source.{form}"
    if form == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(CONTENTS[content])
    elif form == "tar":
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(CONTENTS[content])
                archive.addfile(info, io.BytesIO(CONTENTS[content]))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, CONTENTS[content])
    return str(path)


@given(files=FILES, form=st.sampled_from(["folder", "tar", "zip"]), split=st.sampled_from([None, "train", "cat"]))
@example(files={"cat/1.png": "image", "dog/2.png": "cut", "a.txt": "text"}, form="folder", split=None)
@example(files={"train/caf\udce9/1.png": "image", "test/cat/.2.png": "image"}, form="tar", split="train")
@settings(max_examples=40)
def test_taken_broken_and_passed_over_are_all_files_of_the_source(files: dict, form: str, split: str | None) -> None:
    if form == "zip":
        # A zip file has no names that are no text.
        files = {name.replace("\udce9", "e"): content for name, content in files.items()}
    with tempfile.TemporaryDirectory() as folder:
        url = pack(Path(folder), files, form)
        store = f"{folder}/store"
        try:
            source = sources.make("images", url, split)
            report = write_store(source, store, resolution=4, channels=3, samples_per_shard=5, num_processes=1)
        except UserError as error:
            assert "\n" not in str(error) and any(
                text in str(error) for text in ("there are no images", "there is no folder", "none of the")
            )
            return
        ledger = report.manifest.ledger
        assert ledger.total == len(files) and ledger.taken == report.num_images
        assert ledger.num_broken == len(report.broken)
        assert open_store(store).manifest == report.manifest
        lines = [*ledger.lines(), *report.notes]
        assert all(line.isprintable() for line in lines) and report.notes[0].startswith("labels: ")
        "\n".join(lines).encode()


def test_the_report_of_a_store_names_what_was_left_out(tmp_path, call) -> None:
    (tmp_path / "set" / "caf\udce9").mkdir(parents=True)
    for name, data in (
        ("1.png", IMAGE),
        ("2.png", IMAGE),
        ("\x1b[31m.png", b""),
        ("a.txt", b""),
        (".b.png", IMAGE),
        ("c.heic", b""),
    ):
        (tmp_path / "set" / "caf\udce9" / name).write_bytes(data)
    (tmp_path / "set" / "gone.png").symlink_to("/nowhere/gone.png")
    status, printed, errors = call(
        "shards",
        "conf=cifar10",
        "data.source.kind=images",
        "data.source.split=null",
        f"data.source.url={tmp_path / 'set'}",
        f"data.store={tmp_path / 'store'}",
    )
    assert status == 0, errors
    for line in (
        "source: 7 = 2 taken + 2 broken + 3 passed over",
        "2 broken images were skipped:",
        r"  1 empty file: caf\udce9/\x1b[31m.png",
        "  1 link to nothing: gone.png",
        r"  1 hidden: caf\udce9/.b.png",
        r"  1 image that needs pillow-heif (.heic): caf\udce9/c.heic",
        r"  1 not read as an image (.txt): caf\udce9/a.txt",
        "labels: none, because 1 of 4 images are in no class folder (gone.png)",
    ):
        assert line in printed.splitlines()


@given(
    taken=st.integers(1, 2000),
    broken=st.integers(0, 2000),
    share=st.none() | st.floats(0, 1, exclude_max=True),
)
@example(taken=6, broken=1, share=None)
@example(taken=3, broken=1, share=None)
@example(taken=1, broken=1, share=None)
@example(taken=5, broken=6, share=None)
@example(taken=989, broken=11, share=None)
@example(taken=99, broken=1, share=0.0)
@example(taken=71, broken=29, share=0.1)
def test_the_share_of_broken_images_is_bounded(taken: int, broken: int, share: float | None) -> None:
    ledger = Ledger(taken, (Group("cut short", broken, ("a.png",)),) if broken else ())
    total = taken + broken
    allowed = broken <= (max(total / 100, min(10, total // 2)) if share is None else share * total) + 1e-6
    if allowed:
        ledger.check(share)
    else:
        with pytest.raises(UserError, match=rf"{broken:,} of {total:,} images are broken, .*max_broken=") as caught:
            ledger.check(share)
        advice = float(str(caught.value).rpartition("data.max_broken=")[2].partition(";")[0])
        assert "\n" not in str(caught.value) and 0 < advice < 1
        if broken <= 0.9998 * total:
            ledger.check(advice)


def test_a_store_of_too_many_broken_images_is_finished_with_another_bound(tmp_path) -> None:
    url = pack(tmp_path, {"1.png": "image", "2.png": "cut", "3.png": "empty"}, "folder")
    settings = {"resolution": 4, "channels": 3, "num_processes": 1}
    with pytest.raises(UserError, match="2 of 3 images are broken"):
        write_store(sources.make("images", url), str(tmp_path / "store"), max_broken=None, **settings)
    before = (tmp_path / "store" / "shard-000000.tar").stat().st_mtime_ns
    report = write_store(sources.make("images", url), str(tmp_path / "store"), max_broken=0.67, **settings)
    assert report.num_images == 1 and (tmp_path / "store" / "shard-000000.tar").stat().st_mtime_ns == before
    assert {each.reason: each.names for each in report.manifest.ledger.broken} == {
        "cut short": ("2.png",),
        "empty file": ("3.png",),
    }


def test_reasons_without_number_are_bounded() -> None:
    files = [(f"{number}.x{number}", f"not an image (.x{number})") for number in range(1000)]
    groups = group(files)
    assert sum(each.count for each in groups) == 1000 and len(groups) < 30
    assert all(len(each.names) <= 5 for each in group([("a" * 10_000, "hidden")] * 100))
    assert len(group([("a" * 10_000, "hidden")])[0].names[0]) < 300


def test_an_older_manifest_has_no_ledger_and_keeps_its_digest(digits) -> None:
    document = json.loads(digits.manifest.to_json())
    assert document.pop("ledger") == {"taken": 1797, "broken": [], "passed_over": []}
    older = Manifest.from_json(json.dumps(document), "older")
    assert older.ledger is None and "ledger" not in older.to_json()
    for damage in (
        {"taken": -3},
        {"taken": 3},
        {"broken": [{"reason": "a", "count": 0, "names": ["a"]}]},
        {"passed_over": None},
    ):
        entry = {"taken": 1797, "broken": [], "passed_over": [], **damage}
        with pytest.raises(UserError, match="ledger"):
            Manifest.from_json(json.dumps(document | {"ledger": entry}), "damaged")


@pytest.mark.parametrize(
    ("names", "split", "classes"),
    [
        (["cat/indoor/1", "dog/indoor/1", "cat/outdoor/1"], None, ("cat", "dog")),
        (["train/n01/images/1", "train/n02/images/1"], "train", ("n01", "n02")),
        (["tiny/train/n01/images/1", "tiny/train/n02/images/2"], "train", ("n01", "n02")),
        (["photos/cat/1", "photos/dog/1"], None, ("cat", "dog")),
        (["Train/cat/1", "Test/dog/1", "Test/cat/2", "Train/dog/1"], None, ("cat", "dog")),
        (["seg/seg/sea/1", "seg/seg/ice/2"], "seg", ("ice", "sea")),
        (["a/1", "b/c/d/e/2"], None, ("a", "b")),
        (["caf\u00e9/1", "cafe\u0301/2", "th\u00e9/1"], None, ("caf\u00e9", "th\u00e9")),
        (["/abs/cat/1", "/abs/dog/1"], None, ("cat", "dog")),
    ],
)
def test_the_first_folder_below_the_root_is_the_class(names: list[str], split: str | None, classes: tuple) -> None:
    found = label_by_folder(names, split)
    assert found.classes == classes and len(found.labels) == len(names)
    assert found.note == f"labels: {len(classes)} classes from folder names: {', '.join(classes)}"


@pytest.mark.parametrize(
    ("names", "split", "reason"),
    [
        (["1", "2"], None, "in no class folders"),
        (["faces/1", "faces/2"], None, r"in no class folders \(faces\)"),
        (["train/1", "test/2"], None, "in no class folders"),
        (["cat/1", "dog/1", "3"], None, r"1 of 3 images are in no class folder \(3\)"),
        (["train/cat/in/1", "train/cat/out/2"], None, r"all images are in one folder \(cat\)"),
        (["train/n01/images/1", "train/n02/images/1", "val/images/1"], None, "different classes .*data.source.split"),
        (["train/1", "extra/1"], None, "the folder train is a split"),
    ],
)
def test_images_without_classes_have_a_reason(names: list[str], split: str | None, reason: str) -> None:
    found = label_by_folder(names, split)
    assert found.classes is None and found.labels is None
    assert re.search(f"labels: none, because .*{reason}", found.note)


def test_a_shard_of_webdataset_is_recognized(tmp_path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "train-000000.tar", "w") as archive:
        for name, data in (("1.png", IMAGE), ("1.cls", b"3"), ("1.json", b"{}"), ("other.json", b"{}")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = sources.make("images", str(shards / "train-000000.tar"))
    assert source.notes[1] == ("webdataset's format: 2 members next to the images (.cls, .json) are not read as labels")
    with pytest.raises(UserError, match=r"no images .*1 archives such as train-000000\.tar .*webdataset"):
        sources.make("images", str(shards))
