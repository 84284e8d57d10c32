"""Parquet files of images that others wrote: columns, labels, rows that are damaged, and files that are hostile."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import sources, write_store
from pipeline.data.sources.base import BrokenImage
from pipeline.data.sources.images import parquet
from pipeline.runtime.errors import UserError


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [{"bytes": png(number), "path": "/etc/passwd"} for number in range(6)]


def write(path: Path, columns: dict[str, object], features: dict[str, object] | None = None, **options: object) -> str:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, **options)
    return str(path)


def contents(source: sources.Source) -> list[tuple[object, int | None]]:
    found: list[tuple[object, int | None]] = []
    for index in range(len(source)):
        try:
            found.append(source.read(index))
        except BrokenImage as error:
            found.append((error.reason, None))
    return found


def test_images_and_labels_of_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    """By what its metadata declare: the column of images, and the names of the classes, of which -1 is none."""
    features = {"img": {"_type": "Image"}, "fine": {"names": ["cat", "dog", "bat"], "_type": "ClassLabel"}}
    columns = {"id": [b"x"] * 6, "img": IMAGES, "fine": [0, 1, 1, 0, -1, 3]}
    source = sources.make("parquet", write(tmp_path / "a.parquet", columns, features, row_group_size=2))
    labels = "(data.source.label_field=null takes images without labels)"
    assert contents(source) == [
        *((IMAGES[number]["bytes"], label) for number, label in enumerate([0, 1, 1, 0])),
        (f"without a label {labels}", None),
        (f"with a damaged label {labels}", None),
    ]
    assert source.labels == ("cat", "dog", "bat")
    assert source.notes == ("images: the column img", "labels: 3 classes from the column fine: cat, dog, bat")
    assert source.name(3) == "a.parquet[3]"


@pytest.mark.parametrize(
    "columns, setting, classes, expected",
    [
        ({"image": [image["bytes"] for image in IMAGES], "label": [3] * 6}, "auto", ("0", "1", "2", "3"), 3),
        ({"image": IMAGES, "label": ["dog"] * 5 + ["cat"]}, "auto", ("cat", "dog"), 1),
        ({"image": IMAGES, "label": [0] * 6, "race": ["x"] * 6}, "race", ("x",), 0),
        ({"image": IMAGES, "label": [0] * 6}, None, None, None),
        ({"image": IMAGES, "caption": ["a dog"] * 6}, "auto", None, None),
    ],
)
def test_columns(tmp_path: Path, columns, setting, classes, expected) -> None:
    source = sources.make("parquet", write(tmp_path / "a.parquet", columns), None, setting)
    assert source.labels == classes and contents(source)[0] == (IMAGES[0]["bytes"], expected)


def test_files_of_a_split_behind_any_url_give_the_same_store(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        rows = {"image": IMAGES[2 * number : 2 * number + 2], "label": [0, 1]}
        write(folder / f"train-{number:05d}-of-00003.parquet", rows)
    write(folder / "test-00000-of-00001.parquet", {"image": IMAGES[:1], "label": [0]})
    fsspec.filesystem("memory").put(f"{folder}/", "/rows/", recursive=True)
    shards = []
    for url, processes in ((str(folder), 1), (str(folder), 2), ("memory://rows/train-*.parquet", 2)):
        store = tmp_path / f"store-{len(shards)}"
        report = write_store(
            sources.make("parquet", url, "train"),
            str(store),
            resolution=8,
            channels=3,
            samples_per_shard=4,
            num_processes=processes,
        )
        assert report.num_images == 6
        shards.append([(store / f"shard-{number:06d}.tar").read_bytes() for number in range(2)])
    assert shards[0] == shards[1] == shards[2]


def test_rows_without_bytes_are_broken_and_nothing_that_a_path_names_is_read(tmp_path: Path) -> None:
    images = [*IMAGES[:4], {"bytes": None, "path": "/etc/passwd"}, None]
    source = sources.make("parquet", write(tmp_path / "a.parquet", {"image": images, "label": [0] * 6}))
    assert [reason for reason, label in contents(source) if label is None] == ["row without the bytes of an image"] * 2


def test_damage_costs_the_rows_that_it_is_in(tmp_path: Path) -> None:
    """A group of rows with a wrong checksum, and a file that is cut: each row that is known of is accounted for."""
    rows = {"image": IMAGES, "label": [0, 1] * 3}
    whole = write(tmp_path / "a.parquet", rows, row_group_size=2, write_page_checksum=True, compression="none")
    data = bytearray(Path(whole).read_bytes())
    data[data.index(IMAGES[2]["bytes"]) + 40] ^= 255
    Path(whole).write_bytes(data)
    (tmp_path / "b.parquet").write_bytes(bytes(data[:-100]))
    (tmp_path / "c.parquet").write_bytes(b"<!doctype html>")
    source = sources.make("parquet", str(tmp_path))
    reasons = [str(reason).split(" (")[0] for reason, label in contents(source) if label is None]
    assert reasons == ["in a damaged part of a parquet file"] * 2 + ["parquet file that cannot be read"] * 12
    assert [label for _, label in contents(source) if label is not None] == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"more than data\.max_broken allows"):
        write_store(source, "memory://damaged-rows", resolution=8, channels=3, max_broken=0.1)


def test_types_that_a_file_names_are_not_made(tmp_path: Path) -> None:
    """Arrow makes a type that is registered by code of its own, with arguments that are the file's."""
    made = []

    class Type(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.int64(), "tests.type")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"arguments"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Type:
            made.append(serialized)
            return cls()

    pa.register_extension_type(Type())
    try:
        label = pa.ExtensionArray.from_storage(Type(), pa.array([0, 1] * 3))
        path = write(tmp_path / "a.parquet", {"image": IMAGES, "label": label})
        assert b"ARROW:schema" in Path(path).read_bytes()
        made.clear()
        assert contents(sources.make("parquet", path))[1] == (IMAGES[1]["bytes"], 1)
        assert not made
        pq.read_schema(path)
        assert made, "what this test guards against does not happen"
    finally:
        pa.unregister_extension_type("tests.type")


def test_a_file_that_unpacks_to_more_than_images_can_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "_MOST_UNPACKED", 2**16)
    path = write(tmp_path / "a.parquet", {"image": [bytes(2**20)] * 8}, compression="zstd")
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        sources.make("parquet", path)


@pytest.mark.parametrize(
    "columns, settings, message",
    [
        ({"x": [1]}, {}, "no column of .* holds the bytes of images"),
        ({"image": IMAGES[:1]}, {"label_field": "breed"}, "label_field=breed: .* has no such column"),
        ({"image": IMAGES[:1]}, {"split": "test"}, "of the split 'test'"),
    ],
)
def test_what_is_refused(tmp_path: Path, columns, settings, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sources.make("parquet", write(tmp_path / "a.parquet", columns), **settings)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"PAR1", b"<!doctype html>", b"x" * 100 + b"\xff\xff\xff\x7fPAR1", base64.b64encode(png(0))):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(UserError, match=r"no parquet file at .* can be read") as caught:
            sources.make("parquet", str(tmp_path))
        assert "\n" not in str(caught.value)
