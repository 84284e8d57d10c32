"""SHA-256 of a shard on this machine: computed once a process, and again when its file has changed."""

from __future__ import annotations

import hashlib
import itertools
import os

import pytest

from pipeline.data import Store
from pipeline.data import store as store_module
from pipeline.data.reading import shard as shard_module
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import forget, make_reader, numbered_store


@pytest.fixture
def sums(monkeypatch) -> list[int]:
    """The sizes of what a SHA-256 is computed of."""
    computed: list[int] = []

    class Counted:
        @staticmethod
        def sha256(data: bytes) -> object:
            computed.append(len(data))
            return hashlib.sha256(data)

    monkeypatch.setattr(shard_module, "hashlib", Counted)
    return computed


def read(store: Store, epochs: int = 1) -> None:
    """Read with no shard kept in memory but those of a window."""
    reader = make_reader(store, batch_size=4, window=0, cache_bytes=0)
    list(itertools.islice(reader, epochs * reader.batches_per_epoch))


def test_it_is_computed_once(tmp_path, sums, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "_CLOCK_NS", -(10**12))
    store = numbered_store(str(tmp_path / "store"), 12)
    read(store, epochs=3)
    assert sorted(sums) == sorted(shard.bytes for shard in store.manifest.shards)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_shard_that_has_changed_is_checked_again(tmp_path, monkeypatch, replaced: bool) -> None:
    monkeypatch.setattr(store_module, "_CLOCK_NS", -(10**12))
    store = numbered_store(str(tmp_path / "store"), 12)
    read(store)
    path = tmp_path / "store" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    if replaced:
        (tmp_path / "new").write_bytes(data)
        os.replace(tmp_path / "new", path)
    else:
        path.write_bytes(data)
        # Of the same second, where the file system's clock is that coarse.
        os.utime(path, ns=(0, 1))
    with pytest.raises(UserError, match=r"shard-000001\.tar .* differs from the SHA-256 of its manifest"):
        read(store)


def test_a_file_that_has_just_changed_is_not_trusted_yet(tmp_path, sums) -> None:
    store = numbered_store(str(tmp_path / "store"), 12)
    read(store, epochs=2)
    assert len(sums) == 2 * len(store.manifest.shards)


def test_a_file_of_another_machine_is_checked_each_time(sums, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "_CLOCK_NS", -(10**12))
    forget("memory://checked/store")
    store = numbered_store("memory://checked/store", 12)
    read(store, epochs=2)
    assert len(sums) == 2 * len(store.manifest.shards)
