"""A store that is held gives the reader's batches, refuses what the reader refuses, and is read once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Batch, Position, Store, fits_on_device, open_store, write_store
from pipeline.data.reading.reader import CACHE_BYTES
from pipeline.data.sources import Table
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import (
    STORE_KEYS,
    forge,
    forget,
    make_reader,
    make_resident_reader,
    members,
    numbered_store,
    numbers,
    readings,
)

URL = "memory://held/store"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def take(reader: Iterable[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(reader, count))


def assert_same(held: list[Batch], read: list[Batch], device: str) -> None:
    assert [batch.position for batch in held] == [batch.position for batch in read]
    for one, other in zip(held, read, strict=True):
        assert (one.images.device.type, one.images.dtype) == (device, other.images.dtype)
        assert torch.equal(one.images.cpu(), other.images)
        assert (one.labels is None) == (other.labels is None)
        if other.labels is not None:
            assert (one.labels.device.type, one.labels.dtype) == (device, other.labels.dtype)
            assert torch.equal(one.labels.cpu(), other.labels)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(reading=readings(), position=st.builds(Position, st.integers(0, 3), st.integers(0, 50)))
def test_every_rank_gets_the_readers_batches_from_any_position(device: str, reading: dict, position: Position) -> None:
    forget(URL)
    store = numbered_store(URL, **{key: reading.pop(key) for key in STORE_KEYS})
    cache = reading.pop("cache_bytes")
    count = 2 * (store.manifest.num_samples // reading["batch_size"]) + 1
    for rank in range(reading["world_size"]):
        order = {**reading, "rank": rank, "position": position}
        held, read = make_resident_reader(store, device, **order), make_reader(store, cache_bytes=cache, **order)
        assert (held.batches_per_epoch, held.position) == (read.batches_per_epoch, read.position)
        batches = take(held, count)
        assert_same(batches, take(read, count), device)
        order["position"] = batches[0].position
        held, read = make_resident_reader(store, device, **order), make_reader(store, **order)
        assert_same(take(held, count - 1), take(read, count - 1), device)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(4, 40),
    columns=st.integers(1, 5),
    samples_per_shard=st.integers(1, 11),
    seed=st.integers(0, 99),
    window=st.integers(0, 300),
)
def test_rows_are_held_as_they_are(size: int, columns: int, samples_per_shard: int, seed: int, window: int) -> None:
    forget(URL)
    rows = np.random.default_rng(size).normal(size=(size, columns)).astype(np.float32)
    write_store(Table("any", None, None, rows), URL, samples_per_shard=samples_per_shard)
    store, order = open_store(URL), {"batch_size": 4, "seed": seed, "window": window}
    assert_same(take(make_resident_reader(store, "cpu", **order), 20), take(make_reader(store, **order), 20), "cpu")


def test_batches_are_the_callers_own() -> None:
    """A batch may be changed in place: the store that is held stays what it is."""
    forget(URL)
    store = numbered_store(URL, 8)
    batches = iter(make_resident_reader(store, "cpu", batch_size=8, shuffle=False))
    first = next(batches).images
    expected = first.clone()
    first.zero_()
    assert torch.equal(next(batches).images, expected)


def test_the_store_is_read_once() -> None:
    forget(URL)
    store = numbered_store(URL, 30)
    order = {"batch_size": 4, "seed": 1}
    expected = take(make_reader(store, **order), 30)
    held = make_resident_reader(store, "cpu", **order)
    assert_same(take(held, 1), expected[:1], "cpu")
    for shard in store.manifest.shards:
        store.fs.rm_file(store.shard_path(shard))
    assert_same(take(held, 30), expected, "cpu")
    assert_same(take(held, 30), expected, "cpu")


@st.composite
def damages(draw: st.DrawFn) -> Store:
    """A store of which one shard is not what its manifest says."""
    forget(URL)
    encoding = draw(st.sampled_from(["blocks", "images"]))
    store = numbered_store(URL, draw(st.integers(4, 30)), draw(st.integers(1, 11)), encoding=encoding)
    kind = draw(st.sampled_from(["flipped", "gone", "forged"]))
    if kind == "forged":
        names = members(store.fs.cat_file(store.shard_path(store.manifest.shards[0])))
        forge(store, {draw(st.sampled_from(sorted(names))): b"no such thing"})
        return open_store(URL)
    path = store.shard_path(draw(st.sampled_from(store.manifest.shards)))
    data = bytearray(store.fs.cat_file(path))
    store.fs.rm_file(path)
    if kind == "flipped":
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        store.fs.pipe_file(path, bytes(data))
    return store


@settings(max_examples=60, deadline=None)
@given(damages())
def test_a_damaged_shard_is_the_same_line_as_from_the_reader(store: Store) -> None:
    with pytest.raises(UserError) as read:
        take(make_reader(store, batch_size=1), store.manifest.num_samples)
    with pytest.raises(UserError) as held:
        take(make_resident_reader(store, "cpu", batch_size=1), 1)
    # Pillow's own words for bytes that are no image say where in memory they lie.
    here, there = (re.sub("0x[0-9a-f]+", "", str(error.value)) for error in (held, read))
    assert here == there


@pytest.mark.parametrize(
    "order",
    [
        {"batch_size": 6, "world_size": 4},
        {"batch_size": 11},
        {"batch_size": 4, "rank": 2, "world_size": 2},
        {"batch_size": 4, "seed": -1},
        {"batch_size": 4, "position": Position(-1, 0)},
    ],
)
def test_what_the_reader_refuses_is_refused(order: dict) -> None:
    forget(URL)
    store = numbered_store(URL, 10)
    with pytest.raises(UserError) as read:
        make_reader(store, **order)
    with pytest.raises(UserError) as held:
        make_resident_reader(store, "cpu", **order)
    assert str(held.value) == str(read.value)


def claiming(store: Store, num_samples: int) -> Store:
    """A store that says it is larger than it is; its shards are all right."""
    return replace(store, manifest=replace(store.manifest, num_samples=num_samples))


@pytest.mark.parametrize("device", DEVICES)
def test_a_store_that_does_not_fit_is_one_line_before_anything_is_read(device: str) -> None:
    forget(URL)
    store = numbered_store(URL, 10)
    for shard in store.manifest.shards:
        store.fs.rm_file(store.shard_path(shard))
    with pytest.raises(UserError) as refusal:
        take(make_resident_reader(claiming(store, 10**15), device, batch_size=4), 1)
    line = str(refusal.value)
    assert "\n" not in line
    assert line.startswith(f"{10**15} images of the store {URL} take 3725290.3 GiB, more memory than {device} has free")
    assert "data.device_resident=false" in line


def test_on_the_cpu_a_store_is_held_up_to_the_size_of_the_readers_cache() -> None:
    forget(URL)
    store = numbered_store(URL, 10)
    most = CACHE_BYTES // store.manifest.sample_bytes
    assert fits_on_device(claiming(store, most), torch.device("cpu"))
    assert not fits_on_device(claiming(store, most + 1), torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_store_is_held_up_to_a_quarter_of_what_is_free() -> None:
    forget(URL)
    store, device = numbered_store(URL, 10), torch.device("cuda")
    free = torch.cuda.mem_get_info(device)[0] // store.manifest.sample_bytes
    assert fits_on_device(claiming(store, free // 5), device)
    assert not fits_on_device(claiming(store, free // 3), device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_does_not_wait_for_the_gpu() -> None:
    forget(URL)
    batches = iter(make_resident_reader(numbered_store(URL, 40), "cuda", batch_size=4))
    next(batches)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        several = take(batches, 30)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(len(numbers(batch.images)) == 4 for batch in several)
