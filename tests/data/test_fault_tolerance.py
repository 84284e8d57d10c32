"""Shards that go bad while a model is trained: counted, replaced, and no other sample moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import open_store
from pipeline.data.reading.shard import read_shard
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import forget, make_reader, make_resident_reader, numbered_store, numbers

SIZE, PER_SHARD = 26, 6  # five shards, the last of them smaller
WAYS = ("gone", "truncated", "flipped", "another", "empty")


def spoil(store, place: int, way: str, at: int) -> None:
    """Damage a shard as storage, networks and people do."""
    path = store.shard_path(store.manifest.shards[place])
    data = bytearray(store.fs.cat_file(path))
    if way == "gone":
        store.fs.rm(path)
        return
    if way == "truncated":
        data = data[: at % len(data)]
    elif way == "flipped":
        data[at % len(data)] ^= 1 << (at % 8)
    elif way == "another":
        data = store.fs.cat_file(store.shard_path(store.manifest.shards[place - 1]))
    store.fs.pipe_file(path, b"" if way == "empty" else bytes(data))


@given(
    bad=st.sets(st.integers(0, 4), min_size=1, max_size=3),
    way=st.sampled_from(WAYS),
    at=st.integers(0, 10**6),
    world_size=st.integers(1, 3),
    held=st.booleans(),
    encoding=st.sampled_from(["blocks", "images"]),
)
@settings(deadline=None, max_examples=60)
def test_others_take_its_place_and_nothing_else_moves(bad, way, at, world_size, held, encoding):
    url = "memory://tolerance/store"
    forget(url)
    store = numbered_store(url, SIZE, PER_SHARD, encoding)
    places = {
        number: place
        for place, shard in enumerate(store.manifest.shards)
        for number in numbers(torch.from_numpy(read_shard(store, shard).gather(np.arange(shard.num_samples))))
    }

    def read(rank: int, max_bad: int) -> list:
        settings = {"batch_size": 2 * world_size, "rank": rank, "world_size": world_size, "max_bad_shards": max_bad}
        reader = make_resident_reader(store, "cpu", **settings) if held else make_reader(store, window=50, **settings)
        return list(itertools.islice(reader, 2 * (SIZE // (2 * world_size))))

    whole = [read(rank, 0) for rank in range(world_size)]
    for place in bad:
        spoil(store, place, way, at)
    for rank in range(world_size):
        found = read(rank, len(bad))
        assert [batch.position for batch in found] == [batch.position for batch in whole[rank]]
        assert [batch.images.shape for batch in found] == [batch.images.shape for batch in whole[rank]]
        for one, other in zip(found, whole[rank], strict=True):
            for number, original, label in zip(
                numbers(one.images), numbers(other.images), one.labels.tolist(), strict=True
            ):
                assert label == number % 3
                if places[original] not in bad:
                    assert number == original
                else:
                    assert places[number] not in bad
        skipped = set(found[-1].notes)
        assert len(skipped) == len(found[-1].notes) <= len(bad) and all("skipped: " in note for note in skipped)
    with pytest.raises(UserError, match="shard-0"):  # one batch of all, so that it comes by each of them
        next(iter(make_reader(store, batch_size=SIZE, max_bad_shards=len(bad) - 1)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_was_skipped_is_told_from_loader_workers_too(tmp_path, num_workers):
    store = numbered_store(str(tmp_path / "store"), SIZE, PER_SHARD)
    spoil(store, 2, "flipped", 1000)
    reader = make_reader(open_store(store.url), batch_size=4, num_workers=num_workers, max_bad_shards=1)
    batches = list(itertools.islice(reader, 12))
    notes = {note for batch in batches for note in batch.notes}
    assert notes == {
        f"skipped: shard-000002.tar of the store {store.url} differs from the SHA-256 of its manifest: "
        "make the store again"
    }


def test_a_store_opens_with_as_many_bad_shards_as_may_be(tmp_path):
    store = numbered_store(str(tmp_path / "store"), SIZE, PER_SHARD)
    spoil(store, 1, "gone", 0)
    spoil(store, 3, "truncated", 100)
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        open_store(store.url)
    with pytest.raises(UserError, match=r"2 shards are bad, and data\.max_bad_shards=1 may be"):
        open_store(store.url, max_bad_shards=1)
    assert open_store(store.url, max_bad_shards=2).manifest == store.manifest


def test_a_store_of_which_nothing_can_be_read_is_one_line(tmp_path):
    store = numbered_store(str(tmp_path / "store"), SIZE, PER_SHARD)
    for place in range(5):
        spoil(store, place, "flipped", 700)
    with pytest.raises(UserError, match="no shard of the store"):
        next(iter(make_reader(store, batch_size=4, max_bad_shards=5)))


def test_what_the_way_has_damaged_is_read_once_more(monkeypatch):
    url = "memory://tolerance/way"
    forget(url)
    store = numbered_store(url, SIZE, PER_SHARD)
    once, read = set(), store.fs.cat_file

    def through_a_bad_network(path, *args, **kwargs):
        data = read(path, *args, **kwargs)
        if path.endswith(".tar") and path not in once:
            once.add(path)
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    monkeypatch.setattr(store.fs, "cat_file", through_a_bad_network)
    batches = list(itertools.islice(make_reader(store, batch_size=SIZE), 1))
    assert sorted(numbers(batches[0].images)) == list(range(SIZE)) and len(once) == 5
