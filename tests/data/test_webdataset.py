"""Tar files in webdataset's format that others wrote: samples, labels, URLs, and what is damaged or hostile."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.data import load_images, open_store, sources, write_store
from pipeline.data.ledger import Tally
from pipeline.data.sources.base import BrokenImage
from pipeline.data.sources.images.label_fields import LabelFields
from pipeline.data.sources.images.sample_groups import Member, SampleGroups, split_name
from pipeline.runtime.errors import UserError
from tests.helpers.s3 import s3_bucket


def png(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def tar(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard(first: int, count: int = 4) -> bytes:
    """A tar file of samples with an image, a class and a text each."""
    return tar(
        [
            entry
            for number in range(first, first + count)
            for entry in (
                (f"{number:06d}.cls", b"%d" % (number % 3)),
                (f"{number:06d}.PNG", png(number)),
                (f"{number:06d}.txt", b"a caption"),
            )
        ]
    )


def contents(source: sources.Source) -> dict[str, tuple[object, int | None]]:
    """All that a source gives by name, and the reason of what is broken."""
    found: dict[str, tuple[object, int | None]] = {}
    for index in range(len(source)):
        try:
            found[source.name(index)] = source.read(index)
        except BrokenImage as error:
            found[source.name(index)] = (error.reason, None)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three tar files of four samples each, and a file of another kind."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        (folder / f"train-{number:03d}.tar").write_bytes(shard(4 * number))
    (folder / "sizes.json").write_text("{}")
    return folder


def test_images_labels_and_other_members_of_a_folder(folder: Path) -> None:
    source = sources.make("webdataset", str(folder))
    assert contents(source) == {
        f"train-{number // 4:03d}.tar/{number:06d}.PNG": (png(number), number % 3) for number in range(12)
    }
    assert source.labels == ("0", "1", "2") and source.notes == ("labels: 3 classes from 12 members: 0, 1, 2",)
    assert {(each.count, each.reason) for each in source.passed_over} == {
        (12, "not read as an image (.txt)"),
        (1, "not a file of .tar"),
    }


def test_every_way_to_name_tar_files(folder: Path) -> None:
    ways = {
        str(folder / "train-001.tar"): (1,),
        f"{folder}/train-{{000..002}}.tar": (0, 1, 2),
        f"{folder}/train-00{{2,0}}.tar": (2, 0),
        f"{folder}/train-00[12].tar": (1, 2),
        f"{folder}/*.tar": (0, 1, 2),
        f"[{folder}/train-002.tar, {folder}/train-000.tar]": (2, 0),
        f"{folder}/train-002.tar::{folder}/train-00{{0,1}}.tar": (2, 0, 1),
        (f"{folder}/train-001.tar", f"{folder}/train-*.tar"): (1, 0, 2),
    }
    for url, numbers in ways.items():
        source = sources.make("webdataset", url)
        names = [f"train-{number:03d}.tar" for number in numbers]
        assert list(dict.fromkeys(source.name(index).split("/")[0] for index in range(len(source)))) == names, url


def test_files_behind_other_urls_give_the_same_store(folder: Path, tmp_path: Path) -> None:
    """From memory and object stores, and with any number of processes; object stores are read without a copy."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/wds/", recursive=True)

    def made(url: str, name: str, processes: int = 1) -> list[bytes]:
        store = tmp_path / name
        write_store(
            lambda: sources.make("webdataset", url),
            str(store),
            resolution=8,
            channels=3,
            samples_per_shard=5,
            num_processes=processes,
        )
        return [(store / f"shard-{number:06d}.tar").read_bytes() for number in range(3)]

    expected = made(str(folder), "local")
    assert made(str(folder), "processes", 3) == expected
    assert made("memory://wds/train-{000..002}.tar", "memory", 2) == expected
    with s3_bucket() as bucket:
        fsspec.filesystem("s3").put(f"{folder}/", f"{bucket}/wds/", recursive=True)
        assert made(f"{bucket}/wds", "s3") == expected
    store = open_store(str(tmp_path / "local"))
    assert store.manifest.labels == ("0", "1", "2")
    assert store.manifest.ledger is not None and store.manifest.ledger.total == 12 + 12 + 1
    assert len(load_images(store)[0]) == 12


@pytest.mark.parametrize("opener", ["gz", "bz2", "xz"])
def test_compressed_tar_files(tmp_path: Path, opener: str) -> None:
    with tarfile.open(tmp_path / f"a.tar.{opener}", f"w:{opener}") as archive:
        info = tarfile.TarInfo("0.jpg")
        info.size = len(png(1))
        archive.addfile(info, io.BytesIO(png(1)))
    assert list(contents(sources.make("webdataset", str(tmp_path))).values()) == [(png(1), None)]


# Fields of one sample, in webdataset's own words: what comes behind the first dot.
FIELDS = st.lists(st.sampled_from(["png", "JPG", "seg.png", "cls", "json", "txt", "Txt2"]), unique=True, max_size=6)
SAMPLES = st.dictionaries(st.sampled_from(["0", "1", "a/0", "a.b/0", "0001"]), FIELDS, max_size=4)


def grouped(members: list[str]) -> tuple[dict[str, tuple[str, object]], list[int]]:
    """Image and label of each key, and the number of members that are images, labels and passed over."""
    tally = Tally()
    groups = SampleGroups(LabelFields("auto"), tally)
    for name in members:
        groups.add(Member(name, 0, 1), b'{"label": 5}' if name.endswith("json") else b"7")
    samples = groups.finish()
    found = {}
    for sample in samples:
        assert sample.image is not None
        key = split_name(sample.image.name)
        assert key is not None and key[0] not in found
        found[key[0]] = (sample.image.name, sample.label)
    counts = [
        len(samples),
        sum(sample.label_member is not None for sample in samples),
        sum(each.count for each in tally.groups()),
    ]
    return found, counts


@given(samples=SAMPLES, data=st.data())
@example(samples={"0": ["cls", "png", "seg.png"], "1": ["json", "JPG"]}, data=None)
@settings(max_examples=60)
def test_samples_are_the_same_in_any_order_of_their_members(samples: dict[str, list[str]], data) -> None:
    """By webdataset's rules: a key is the path up to the first dot; and each member is accounted for."""
    members = [f"{key}.{field}" for key, fields in samples.items() for field in fields]
    shuffled = data.draw(st.permutations(members)) if data is not None else members[::-1]
    found, counts = grouped(members)
    assert sum(counts) == len(members)
    again, more = grouped(shuffled)
    assert {key: label for key, (_, label) in again.items()} == {key: label for key, (_, label) in found.items()}
    assert more == counts
    for key, fields in samples.items():
        images = [field for field in fields if field.lower() in ("png", "jpg", "seg.png")]
        assert (key in found) == bool(images)
        if images:
            plain = [field for field in images if "." not in field]
            assert found[key][0] == f"{key}.{(plain or images)[0]}", "not the first image, or a mask in its place"
            assert found[key][1] == (7 if "cls" in fields else 5 if "json" in fields else None)


@given(name=st.text(alphabet="a./B", max_size=12))
def test_names_are_divided_as_webdataset_divides_them(name: str) -> None:
    file = name.rpartition("/")[2]
    # A file whose name begins with a dot is hidden, and is never a member.
    if file.startswith("."):
        return
    key, field = base_plus_ext(name)
    assert split_name(name) == (None if key is None else (key, field.lower()))


def test_samples_are_those_of_webdataset(folder: Path) -> None:
    with tarfile.open(folder / "train-001.tar") as archive:
        files = [{"fname": info.name, "data": archive.extractfile(info).read(), "__url__": "a"} for info in archive]
    expected = [(sample["png"], int(sample["cls"])) for sample in group_by_keys(iter(files))]
    assert list(contents(sources.make("webdataset", str(folder / "train-001.tar"))).values()) == expected


def test_keys_that_come_again_are_samples_of_their_own(tmp_path: Path) -> None:
    """In another tar file, in one that was put behind, and where all images precede all labels."""
    (tmp_path / "a.tar").write_bytes(tar([("0.png", png(1)), ("1.png", png(2)), ("0.cls", b"0"), ("1.cls", b"1")]))
    (tmp_path / "b.tar").write_bytes(
        tar([("0.png", png(3)), ("0.cls", b"1")]) + tar([("0.cls", b"0"), ("0.png", png(4))])
    )
    source = sources.make("webdataset", str(tmp_path))
    assert [source.read(index) for index in range(len(source))] == [
        (png(1), 0),
        (png(2), 1),
        (png(3), 1),
        (png(4), 0),
    ]


LABELS = [
    # Contents of the field, setting, class names, class of each sample.
    ("cls", [b"2\n", b"0"], "auto", ("0", "1", "2"), [2, 0]),
    ("cls", [b"-1", b"7"], "auto", ("-1", "7"), [0, 1]),
    ("cls", [b"dog", b"cat"], "auto", ("cat", "dog"), [1, 0]),
    ("cls", [b"1000000000000", b"1"], "auto", ("1", "1000000000000"), [1, 0]),
    ("json", [b'{"label": 1}', b'{"class": 0}'], "auto", ("0", "1"), [1, 0]),
    ("json", [b'{"breed": "pug"}', b'{"breed": "lab"}'], "breed", ("lab", "pug"), [1, 0]),
    ("json", [b"1", b"0"], "auto", ("0", "1"), [1, 0]),
    ("kind.txt", [b"a", b"b"], "kind.txt", ("a", "b"), [0, 1]),
    ("cls", [b"0", b"1"], None, None, [None, None]),
    ("json", [b'{"text": "a dog"}', b"{}"], "auto", None, [None, None]),
    ("cls", [b"\xff\xfe\x00", b"\x80\x04N."], "auto", None, [None, None]),
]


@pytest.mark.parametrize("name, values, setting, classes, expected", LABELS)
def test_labels(tmp_path: Path, name, values, setting, classes, expected) -> None:
    files = [(f"{number}.{name}", value) for number, value in enumerate(values)]
    files += [(f"{number}.png", png(number)) for number in range(2)]
    (tmp_path / "a.tar").write_bytes(tar(files))
    source = sources.make("webdataset", str(tmp_path), label_field=setting)
    assert source.labels == classes
    assert [source.read(index)[1] for index in range(2)] == expected


def test_samples_without_a_label_and_with_a_damaged_one_are_broken(tmp_path: Path) -> None:
    values = [b"0", b"1", b"1", b"", b'"', b"\x80\x04N.", b"0"]
    files = [(f"{number}.cls", value) for number, value in enumerate(values)]
    (tmp_path / "a.tar").write_bytes(tar([*files, *((f"{number}.png", png(number)) for number in range(8))]))
    source = sources.make("webdataset", str(tmp_path))
    reasons = [reason.split(" (")[0] for reason, label in contents(source).values() if label is None]
    assert source.labels == ("0", "1", '"')
    assert reasons == ["with a damaged label", "with a damaged label", "without a label"]
    assert all(label is None for _, label in contents(sources.make("webdataset", str(tmp_path), None, None)).values())


def test_another_label_field_is_another_source(folder: Path) -> None:
    """A run that was interrupted does not go on with the labels of another field."""
    one, same, other = (sources.make("webdataset", str(folder), None, field) for field in ("auto", "auto", None))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    before = one.fingerprint
    (folder / "train-000.tar").write_bytes(shard(100))
    assert one.fingerprint != before


def damaged(folder: Path) -> dict[str, bytes]:
    whole = (folder / "train-001.tar").read_bytes()
    return {
        "a web page": b"<!doctype html>" * 100,
        "empty": b"",
        "cut inside a member": whole[: 512 * 7 + 100],
        "cut between members": whole[: whole.index(b"000005.PNG")],
        "overwritten in the middle": whole[: 512 * 6] + b"x" * 512 + whole[512 * 7 :],
        "compressed and cut": gzip.compress(whole)[:-200],
        "a header that fills the memory": _header(tarfile.XHDTYPE, 2**40) + whole,
        "headers in headers": _header(tarfile.XHDTYPE, 0) * 5000,
    }


def _header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_damaged_tar_file_counts_with_what_it_has_lost(folder: Path) -> None:
    """What comes before the damage is taken; the rest is broken, by its number in the others, with the reason."""
    for case, data in damaged(folder).items():
        (folder / "train-001.tar").write_bytes(data)
        source = sources.make("webdataset", str(folder))
        found = [(source.name(index), reason) for index, reason in broken(source)]
        whole = len(source) - len(found)
        assert 8 <= whole <= 11 and len(source) >= 12, case
        assert all(name.startswith("train-001.tar") for name, _ in found), case
        assert any("tar file" in reason for _, reason in found), case
        with pytest.raises(UserError, match=r"more than data\.max_broken allows") as caught:
            write_store(source, "memory://damaged", resolution=8, channels=3, max_broken=0)
        assert "\n" not in str(caught.value)


def broken(source: sources.Source) -> list[tuple[int, str]]:
    found = []
    for index in range(len(source)):
        try:
            source.read(index)
        except BrokenImage as error:
            found.append((index, error.reason))
    return found


def test_an_image_in_a_store_has_the_reason_why_it_is_not_there(folder: Path, tmp_path: Path) -> None:
    (folder / "train-003.tar").write_bytes(
        tar([("9.png", b"no image"), ("8.png", png(8)), ("8.cls", b"1"), ("9.cls", b"1")])
    )
    report = write_store(sources.make("webdataset", str(folder)), str(tmp_path / "store"), resolution=8, channels=3)
    assert report.manifest.ledger is not None
    assert [each.line() for each in report.manifest.ledger.broken] == [
        "1 no format that Pillow reads: train-003.tar/9.png"
    ]


def test_links_and_names_that_lead_out_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar([("../0.png", png(0)), ("._1.png", b""), ("__meta__/2.png", png(2)), ("3.png", png(3))]))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for name, kind, target in (("4.png", tarfile.SYMTYPE, "/etc/passwd"), ("5.png", tarfile.LNKTYPE, "3.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("a" * 5000 + ".png"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    source = sources.make("webdataset", str(tmp_path))
    assert list(contents(source).values()) == [(png(3), None)]
    assert sum(each.count for each in source.passed_over) == 6


def test_a_split_is_a_word_of_the_name(folder: Path) -> None:
    os.rename(folder / "train-002.tar", folder / "val-000.tar")
    assert len(sources.make("webdataset", str(folder), "train")) == 8
    source = sources.make("webdataset", str(folder), "val")
    assert len(source) == 4 and (2, "not in the split val") in {
        (each.count, each.reason) for each in source.passed_over
    }
    train = folder / "train"
    train.mkdir()
    (train / "0.tar").write_bytes(shard(0))
    assert len(sources.make("webdataset", str(train), "train")) == 4


@pytest.mark.parametrize(
    "url, settings_, message",
    [
        ("{folder}/gone-*.tar", {}, "there is no data at"),
        ("{folder}/train-{{000..003}}.tar", {}, "there is no data at .*train-003.tar"),
        ("pipe:curl -s https://example.org/a.tar", {}, "is a command"),
        ("{folder}/{{0..99999999}}.tar", {}, "names more than 1,000,000 files"),
        ("{folder}/{{0..9}}{{0..999999}}{{0..9}}.tar", {}, "there is no data at"),
        ("{folder}/train-{{000.tar", {}, "braces of .* do not match"),
        ("{folder}/sizes.json", {}, "there are no images in the tar files at"),
        ("[]", {}, "there are no files of webdataset"),
        ("{folder}", {"split": "test"}, "none of the 3 files .* is of the split 'test'"),
        ("{folder}", {"label_field": "breed"}, "data.source.label_field=breed of .* is no label"),
    ],
)
def test_what_is_refused(folder: Path, url: str, settings_: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sources.make("webdataset", url.format(folder=folder), **settings_)
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_a_tar_file(folder: Path, monkeypatch) -> None:
    """No more than a header or a label is read at once while a tar file is listed."""
    largest = 0

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            nonlocal largest
            largest = max(largest, size if size >= 0 else 2**60)
            return super().read(size)

    monkeypatch.setattr("pipeline.data.sources.range_files.open", lambda path, mode: Counting(path, "r"), raising=False)
    (folder / "train-003.tar").write_bytes(
        tar([("0.png", bytes(2**23)), ("0.json", bytes(2**22)), ("0.txt", bytes(2**23))])
    )
    assert len(sources.make("webdataset", str(folder))) == 13
    assert 512 <= largest <= 2**20 + 1


def test_other_kinds_have_no_fields_and_no_lists() -> None:
    for kind, url, settings_ in (("digits", None, {"label_field": "cls"}), ("images", ["a", "b"], {})):
        with pytest.raises(UserError, match=r"has no fields|has one url"):
            sources.make(kind, url, **settings_)
    assert [kind for kind in sources.NAMES if sources.has_fields(kind)] == ["parquet", "webdataset"]
