"""Stores of rows: what is in them, how they are read, and that stores of images are what they were."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.data import (
    MissingStore,
    Position,
    Store,
    iter_images,
    load_images,
    load_rows,
    open_store,
    sources,
    write_store,
)
from pipeline.data.manifest import Manifest
from pipeline.data.sources import Table
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import Numbered, forge, forget, make_reader, members

URL = "memory://rows/store"
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 5))
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def table(size: int, columns: int = 3) -> Table:
    """`size` rows of which the first column is the number of the row."""
    rows = np.random.default_rng(size).normal(size=(size, columns)).astype(np.float32)
    rows[:, 0] = np.arange(size)
    return Table("numbered", None, None, rows)


def rows_store(size: int, samples_per_shard: int = 4, url: str = URL, columns: int = 3) -> Store:
    forget(url)
    write_store(table(size, columns), url, samples_per_shard=samples_per_shard)
    return open_store(url)


def numbers(rows: torch.Tensor) -> list[int]:
    return rows[:, 0].int().tolist()


@settings(max_examples=30, deadline=None)
@given(rows=npst.arrays(np.float32, SHAPES, elements=FINITE), samples_per_shard=st.integers(1, 50))
def test_rows_come_back_bit_for_bit_in_the_order_they_were_published(rows: np.ndarray, samples_per_shard: int) -> None:
    forget(URL)
    report = write_store(Table("any", "a.csv", "train", rows), URL, samples_per_shard=samples_per_shard)
    store = open_store(URL)
    manifest = store.manifest
    assert manifest == report.manifest and report.num_images == manifest.num_samples == len(rows)
    assert (manifest.encoding, manifest.resolution, manifest.channels) == ("rows", None, rows.shape[1])
    assert manifest.labels is None and manifest.sample_shape == rows.shape[1:] and manifest.dtype == rows.dtype
    assert [shard.num_samples for shard in manifest.shards[:-1]] == [samples_per_shard] * (len(manifest.shards) - 1)
    found = load_rows(store)
    assert found.dtype == torch.float32 and found.numpy().tobytes() == rows.tobytes()
    again, labels = load_images(store, 3)
    assert again.numpy().tobytes() == rows[:3].tobytes() and labels is None
    assert torch.equal(torch.cat([part for part, _ in iter_images(store, 7)]), found)


def test_a_shard_holds_one_array() -> None:
    store = rows_store(10, samples_per_shard=4)
    for number, shard in enumerate(store.manifest.shards):
        (name, data), *others = members(store.fs.cat_file(store.shard_path(shard))).items()
        assert name == f"{4 * number:09d}.rows.npy" and not others
        assert np.array_equal(np.load(io.BytesIO(data)), table(10).rows[4 * number : 4 * number + 4])


@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_store_lies_anywhere_and_its_bytes_are_the_same_each_time(tmp_path, place: str) -> None:
    found = []
    for name, num_processes in (("one", 1), ("two", 4)):
        url = f"memory://rows/{name}" if place == "memory" else (tmp_path / name).as_uri()
        forget(url)
        write_store(table(30), url, samples_per_shard=7, num_processes=num_processes)
        store = open_store(url)
        files = {path.rpartition("/")[2]: store.fs.cat_file(path) for path in store.fs.find(store.path)}
        # Where a file cannot be removed by compare-and-swap, the writer's lock stays, marked as released.
        found.append({name: content for name, content in files.items() if not name.startswith(".")})
        assert np.array_equal(load_rows(store).numpy(), table(30).rows)
    assert found[0] == found[1] and sorted(found[0]) == ["manifest.json", *(f"shard-00000{i}.tar" for i in range(5))]


def test_an_interrupted_table_is_no_store_and_is_finished_by_the_next_run(tmp_path, monkeypatch) -> None:
    from pipeline.data.writing import shard_encoders

    class Interrupted(Exception):
        pass

    encode = shard_encoders.RowShardEncoder.encode

    def interrupted(self: object, indices: np.ndarray, *args: object) -> shard_encoders.EncodedShard:
        if indices[0] >= 12:
            raise Interrupted
        return encode(self, indices, *args)

    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(shard_encoders.RowShardEncoder, "encode", interrupted)
        with pytest.raises(Interrupted):
            write_store(table(30), str(store), samples_per_shard=4)
    with pytest.raises(MissingStore):
        open_store(str(store))
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("*.tar")}
    assert len(before) == 3
    write_store(table(30), str(store), samples_per_shard=4)
    assert {name: (store / name).stat().st_mtime_ns for name in before} == before, "finished shards were made again"
    assert np.array_equal(load_rows(open_store(str(store))).numpy(), table(30).rows)
    assert not list(store.glob("*.json.part")) and not list(store.glob("*.tar.json"))


@st.composite
def readings(draw: st.DrawFn) -> dict:
    size = draw(st.integers(4, 40))
    part = draw(st.integers(1, 4))
    world_size = draw(st.integers(1, 4).filter(lambda world: world * part <= size))
    return {
        "size": size,
        "samples_per_shard": draw(st.integers(1, 11)),
        "batch_size": world_size * part,
        "world_size": world_size,
        "seed": draw(st.integers(0, 2**40)),
        "window": draw(st.integers(0, 30)) * 12,
        "cache_bytes": draw(st.sampled_from([0, 100, 10**6])),
        "shuffle": draw(st.booleans()),
    }


@settings(max_examples=20, deadline=None)
@given(readings())
def test_every_rank_gets_its_slice_of_the_same_batches_from_any_position(reading: dict) -> None:
    size, samples_per_shard, world_size = (reading.pop(key) for key in ("size", "samples_per_shard", "world_size"))
    store = rows_store(size, samples_per_shard)
    per_epoch = size // reading["batch_size"]
    whole = list(itertools.islice(make_reader(store, **reading), 2 * per_epoch + 1))
    rows = torch.from_numpy(table(size).rows)
    for batch in whole:
        assert batch.images.dtype == torch.float32 and batch.labels is None
        assert torch.equal(batch.images, rows[numbers(batch.images)])
    seen = list(itertools.chain(*(numbers(batch.images) for batch in whole[:per_epoch])))
    assert len(seen) == len(set(seen)) == per_epoch * reading["batch_size"]
    if not reading["shuffle"]:
        assert seen == list(range(len(seen)))
    ranks = [
        list(itertools.islice(make_reader(store, rank=rank, world_size=world_size, **reading), len(whole)))
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    for done, batch in enumerate(whole[:-1], 1):
        resumed = itertools.islice(make_reader(store, position=batch.position, **reading), len(whole) - done)
        assert all(torch.equal(one.images, other.images) for one, other in zip(resumed, whole[done:], strict=True))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loader_workers_change_nothing(tmp_path, num_workers: int) -> None:
    store = rows_store(30, url=str(tmp_path / "store"))
    kwargs = {"batch_size": 4, "world_size": 2, "rank": 1, "window": 60, "position": Position(1, 3)}
    expected = list(itertools.islice(make_reader(store, **kwargs), 12))
    got = list(itertools.islice(make_reader(store, num_workers=num_workers, **kwargs), 12))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.images, other.images) and one.position == other.position


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"000000000.rows.npy": npy(np.zeros((4, 2), np.float32))}, r"is not an array float32 \(N, 3\)"),
        ({"000000000.rows.npy": npy(np.zeros((4, 3)))}, r"is not an array float32 \(N, 3\)"),
        ({"000000000.rows.npy": npy(np.zeros((3, 3), np.float32))}, "holds 3 rows, its manifest says 4"),
        ({"000000000.rows.npy": npy(np.full((4, 3), np.nan, np.float32))}, "a number that is not finite"),
        ({"000000000.rows.npy": npy(np.zeros((4, 3), np.float32))[:-1]}, "no array of numbers"),
        ({"000000000.rows.npy": npy(np.array([{}], object))}, "no array of numbers"),
        ({"000000000.rows.npy": None}, "holds 0 rows"),
        ({"000000000.labels.npy": npy(np.zeros(4, np.int64))}, "no part of a store"),
        ({"000000000.images.npy": b""}, "no part of a store"),
    ],
)
def test_rows_that_are_not_what_the_manifest_says(change: dict, message: str) -> None:
    forge(rows_store(8), change)
    with pytest.raises(UserError, match=f"shard-000000.tar of the store {URL} .*{message}") as caught:
        load_rows(open_store(URL))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resolution", 8, "rows have no pixels"),
        ("channels", 0, "channels should be greater than 0"),
        ("channels", True, "channels should be a valid integer"),
        ("labels", ["a"], "rows have none"),
        ("encoding", "blocks", "resolution should be a number of pixels"),
    ],
)
def test_a_wrong_manifest_of_rows_is_one_line(key: str, value: object, message: str) -> None:
    store = rows_store(8)
    path = f"{store.path}/manifest.json"
    store.fs.pipe_file(path, json.dumps({**json.loads(store.fs.cat_file(path)), key: value}).encode())
    with pytest.raises(UserError, match=message):
        open_store(URL)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (table(4), {"encoding": "blocks"}, "gives rows, not images: set data.encoding=rows"),
        (table(4), {"resolution": 8}, "no resolution 8: set data.resolution=null"),
        (table(4), {"channels": 1}, "3 columns, not 1: set data.channels=3"),
        (table(4), {"samples_per_shard": 0}, "at least one"),
        (Numbered(4), {"encoding": "rows"}, "gives images, not rows: set data.encoding=blocks"),
        (Numbered(4), {"channels": 1}, "the resolution None is not positive"),
    ],
)
def test_settings_that_do_not_fit_the_source_are_one_line(source: object, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write_store(source, "memory://rows/never", **change)
    assert "\n" not in str(caught.value)


def test_a_store_of_images_has_no_rows() -> None:
    forget("memory://rows/images")
    write_store(Numbered(4), "memory://rows/images", resolution=2, channels=1)
    with pytest.raises(UserError, match="holds images, not rows"):
        load_rows(open_store("memory://rows/images"))


def test_what_is_too_small_is_said_of_rows() -> None:
    with pytest.raises(UserError, match="has 4 rows, fewer than a batch of 5"):
        make_reader(rows_store(4), batch_size=5)


def test_the_progress_of_a_table_counts_rows(tmp_path, capfd) -> None:
    write_store(table(40), str(tmp_path / "store"), progress=True)
    assert "40 of 40 rows" in capfd.readouterr().err


def test_the_bytes_of_a_store_of_images_stay_what_they_were() -> None:
    """The manifest has the sums of the shards in it. Its text was written before there were rows."""
    forget("memory://rows/before")
    source = Numbered(10, channels=3, broken=frozenset({3}))
    write_store(source, "memory://rows/before", resolution=2, channels=3, samples_per_shard=4)
    store = open_store("memory://rows/before")
    before = BEFORE.read_bytes()
    document = json.loads(store.fs.cat_file(f"{store.path}/manifest.json"))
    # What is known of how the samples were made came later, and changes no digest.
    assert {key: value for key, value in document.items() if key in json.loads(before)} == json.loads(before)
    assert document.keys() - json.loads(before).keys() == {"resize_filter", "ledger"}
    assert Manifest.from_json(before, "before").digest == store.manifest.digest
    assert store.manifest.digest == hashlib.sha256(before).hexdigest()[:16]
    assert store.manifest.sample_shape == (3, 2, 2) and store.manifest.dtype == np.uint8
    assert store.manifest.sample_bytes == 12 and store.manifest.unit == "images"


BEFORE = Path(__file__).with_name("manifest_of_blocks.json")


def test_the_toy_data_are_a_store() -> None:
    forget("memory://rows/toy")
    write_store(sources.make("toy"), "memory://rows/toy", samples_per_shard=3000, encoding="rows", channels=3)
    store = open_store("memory://rows/toy")
    assert torch.equal(load_rows(store), torch.from_numpy(sources.make("toy").rows))
    assert store.manifest.source.kind == "toy" and store.manifest.source.url is None
