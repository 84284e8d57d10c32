"""Shards that are read ahead or lie in a cache: the batches, the positions and the errors are those without."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import DeviceResidentReader, Position, Reader, ShardCache, Store, iter_images
from pipeline.data.reading.prefetch import ShardPrefetcher
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import (
    STORE_KEYS,
    forget,
    make_reader,
    make_resident_reader,
    numbered_store,
    readings,
)


def take(reader: Reader | DeviceResidentReader, count: int) -> tuple[list, str]:
    """Batches as they can be compared, as many as come, and the error that ended them."""
    found = []
    try:
        for batch in itertools.islice(reader, count):
            labels = None if batch.labels is None else batch.labels.tolist()
            found.append((batch.images.tolist(), labels, batch.position, batch.bad_shards, batch.notes))
    except UserError as error:
        return found, str(error)
    return found, ""


def ended() -> bool:
    """Whether no thread reads ahead, after a while at most: one that is in the midst of a request ends with it."""
    end = time.monotonic() + 30
    while any(thread.name.startswith("prefetch") for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@settings(max_examples=30)
@given(
    reading=readings(),
    depth=st.integers(1, 12),
    limit=st.sampled_from([0, 3000, 10**6]),
    bad=st.sets(st.integers(0, 40), max_size=2),
    max_bad=st.integers(0, 1),
    begin=st.integers(0, 40),
)
def test_nothing_but_time_depends_on_them(reading, depth, limit, bad, max_bad, begin):
    url = "memory://ahead/law"
    forget(url)
    store = numbered_store(url, **{key: reading.pop(key) for key in STORE_KEYS})
    reading |= {"max_bad_shards": max_bad, "rank": reading["world_size"] - 1}
    per_epoch = store.manifest.num_samples // reading["batch_size"]
    reading["position"] = Position(*divmod(begin, per_epoch))
    for place in bad & set(range(len(store.manifest.shards))):
        store.fs.pipe_file(store.shard_path(store.manifest.shards[place]), b"spoilt")
    count = 2 * per_epoch + 1
    expected = take(make_reader(store, prefetch_shards=0, **reading), count)
    with tempfile.TemporaryDirectory() as folder:
        kept = dataclasses.replace(store, cache=ShardCache(Path(folder), limit))
        assert take(make_reader(store, prefetch_shards=depth, **reading), count) == expected
        assert take(make_reader(kept, prefetch_shards=depth, **reading), count) == expected
        assert take(make_reader(kept, prefetch_shards=0, **reading), count) == expected
        held = {key: value for key, value in reading.items() if key != "cache_bytes"}
        without = take(make_resident_reader(store, "cpu", prefetch_shards=0, **held), count)
        assert take(make_resident_reader(kept, "cpu", prefetch_shards=depth, **held), count) == without
        assert ended()


def test_two_iterators_of_a_reader_do_not_disturb_one_another() -> None:
    forget("memory://ahead/two")
    store = numbered_store("memory://ahead/two", 40)
    reader = make_reader(store, batch_size=4, window=40, cache_bytes=0, prefetch_shards=3)
    expected = [batch.images.tolist() for batch in itertools.islice(reader, 25)]
    first, second = iter(reader), iter(reader)
    found = [next(first).images.tolist() for _ in range(5)]
    for _ in range(20):
        found.append(next(first).images.tolist())
        assert next(second).images.tolist() == expected[len(found) - 6]
    assert found == expected
    second.close()
    assert torch.equal(next(first).images, next(itertools.islice(reader, 25, None)).images)
    first.close()
    assert ended()


class Counted:
    """A store that notes when which of its shards is read, and how many at a time."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[int] = []
        self.at_once = self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        names = {store.shard_path(shard): place for place, shard in enumerate(store.manifest.shards)}
        lock, original = threading.Lock(), store.fs.cat_file

        def cat_file(path: str, *args: object, **kwargs: object) -> bytes:
            with lock:
                self.read.append(names[path])
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            try:
                self.gate.wait(30)
                return original(path, *args, **kwargs)
            finally:
                with lock:
                    self.at_once -= 1

        monkeypatch.setattr(store.fs, "cat_file", cat_file)


def test_as_many_are_read_ahead_as_may_be_and_each_is_read_once(monkeypatch) -> None:
    forget("memory://ahead/count")
    store = numbered_store("memory://ahead/count", 80)  # twenty shards, two in a window
    for depth in (0, 1, 3, 9):
        with monkeypatch.context() as patch:
            counted = Counted(store, patch)
            batches = iter(make_reader(store, batch_size=8, window=32, cache_bytes=0, prefetch_shards=depth))
            for done in range(1, 11):
                next(batches)
                most = min(2 * done + depth, 20)  # of an epoch; what comes of the next one may be at hand
                end = time.monotonic() + 30
                while len(counted.read) < most and time.monotonic() < end:
                    time.sleep(0.001)
                assert most <= len(counted.read) <= 2 * done + depth
                assert len(set(counted.read[:20])) == min(len(counted.read), 20)
            batches.close()
            assert counted.most <= min(depth, 4) + 1
    assert ended()


def test_a_reader_that_is_closed_gives_up_what_it_has_not_begun(monkeypatch) -> None:
    forget("memory://ahead/close")
    store = numbered_store("memory://ahead/close", 80)
    counted = Counted(store, monkeypatch)
    batches = iter(make_reader(store, batch_size=8, window=32, cache_bytes=0, prefetch_shards=16))
    next(batches)
    counted.gate.clear()
    next(batches)
    before = len(counted.read)
    batches.close()
    counted.gate.set()
    assert ended()
    assert len(counted.read) <= before + 4, "what waited was read after the reader was closed"
    only = list(iter_images(store, 8, limit=9))
    assert sum(len(images) for images, _ in only) == 9 and len(counted.read) <= before + 4 + 3


def test_a_storage_that_was_away_before_anybody_waited_is_asked_again(monkeypatch) -> None:
    forget("memory://ahead/away")
    store = numbered_store("memory://ahead/away", 12)
    ahead, original = ShardPrefetcher(store, depth=2), store.fs.cat_file
    monkeypatch.setattr(store.fs, "cat_file", lambda path: b"" if "000001" in path else original(path))
    ahead.read(0, then=[1, 2])
    with pytest.raises(UserError, match="shard-000001"):  # still so
        ahead.read(1, then=[2])
    ahead.read(0, then=[1, 2])
    end = time.monotonic() + 30
    while not ahead._pending[1].done() and time.monotonic() < end:
        time.sleep(0.001)
    monkeypatch.setattr(store.fs, "cat_file", original)
    assert ahead.read(1).num_samples == 4
    ahead.close()
    assert ended()


def test_what_is_read_next_is_fetched_first() -> None:
    forget("memory://ahead/next")
    ahead = ShardPrefetcher(numbered_store("memory://ahead/next", 20), depth=1)
    ahead.read(0, then=[2, 1, 3])
    assert list(ahead._pending) == [2]
    ahead.close()
    assert ended()


def test_what_is_no_longer_wanted_makes_room(monkeypatch) -> None:
    forget("memory://ahead/room")
    store = numbered_store("memory://ahead/room", 80)
    counted = Counted(store, monkeypatch)
    ahead = ShardPrefetcher(store, depth=1)
    ahead.read(0, then=[1])
    ahead.read(2, then=[3])
    end = time.monotonic() + 30
    while 3 not in counted.read and time.monotonic() < end:
        time.sleep(0.001)
    assert 3 in counted.read
    ahead.close()
    assert ended()
