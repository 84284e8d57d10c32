"""How a worker comes by its images: held or read as they go, they are the same."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import fsspec
import pytest
import torch

from pipeline.data import Position, sources, write_store
from pipeline.runtime.errors import UserError
from pipeline.tasks import open_data
from pipeline.tasks.images import ImageTaskWorker


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A store of many shards, that nobody changes."""
    folder = tmp_path_factory.mktemp("made")
    write_store(sources.make("digits"), str(folder), resolution=8, channels=1, samples_per_shard=100, num_processes=1)
    return folder


@pytest.fixture
def work(small, classifier, made, tmp_path):
    """Makes a worker of a store of its own, by keys of `data`."""
    url = str(shutil.copytree(made, tmp_path / "store"))

    def make(batch_size: int = 1, rank: int = 0, world_size: int = 1, **data: object) -> ImageTaskWorker:
        config = small(data={"store": url, **data}, train={"batch_size": batch_size})
        return ImageTaskWorker(config, open_data(config.data), classifier, rank, world_size, torch.device("cpu"))

    return make


@pytest.mark.parametrize(
    "data", [{}, {"device_resident": True}, {"num_workers": 1}, {"device_resident": False, "num_workers": 1}]
)
def test_batches_are_the_same_however_they_are_read(work, data):
    for rank in range(2):
        # From the end of one epoch of 14 batches into the next.
        expected, batches = (
            work(128, rank, 2, **keys).batches(Position(2, 12)) for keys in ({"device_resident": False}, data)
        )
        assert batches.position == Position(2, 12)
        for after in (Position(2, 13), Position(3, 0), Position(3, 1)):
            images, wanted = next(batches), next(expected)
            assert torch.equal(images, wanted) and batches.position == expected.position == after
            assert (images.shape, images.dtype) == ((64, 1, 8, 8), torch.float32)
            assert -1 <= images.min() < images.max() <= 1


def test_a_store_that_is_streamed_has_lanes_and_one_that_is_held_has_one(work):
    assert [work(**data).lanes for data in ({}, {"device_resident": True}, {"device_resident": False})] == [1, 1, 64]
    keys = {"device_resident": False, "lanes": 8}
    one, many = (work(128, **keys).batches(Position(lanes=lanes)) for lanes in (1, work(**keys).lanes))
    assert not torch.equal(next(one), next(many))
    assert (one.position, many.position) == (Position(0, 1), Position(0, 1, lanes=8))
    # A run that began with the store streamed has the same batches where it is held, and the other way round.
    held = work(128, device_resident=True).batches(Position(lanes=8))
    assert torch.equal(next(held), next(work(128, **keys).batches(Position(lanes=8))))


@pytest.mark.parametrize(
    ("data", "held"),
    [({}, True), ({"num_workers": 1}, True), ({"device_resident": True}, True), ({"device_resident": False}, False)],
)
def test_a_small_store_is_held_unless_it_is_forbidden(work, tmp_path, data, held):
    batches = work(**data).batches(Position())
    next(batches)
    for shard in (tmp_path / "store").glob("*.tar"):
        shard.unlink()
    if held:
        for _ in range(50):
            next(batches)
    else:
        with pytest.raises(UserError, match="cannot reach"):
            for _ in range(50):  # an image at a time, of 18 shards
                next(batches)


def test_a_worker_that_never_trains_never_reads_its_store(work, tmp_path):
    worker = work(device_resident=True)
    for shard in (tmp_path / "store").glob("*.tar"):
        shard.unlink()
    batches = worker.batches(Position(1, 2))
    assert batches.position == Position(1, 2)
    with pytest.raises(UserError, match="cannot reach"):
        next(batches)


def remote(work, tmp_path, **data: object):
    """Batches of single images of a store that is on no disk."""
    url = "memory://images/remote"
    files = fsspec.filesystem("memory")
    if not files.exists(url):
        write_store(sources.make("digits"), url, resolution=8, channels=1, samples_per_shard=100, num_processes=1)
        work(store=url)  # its statistics are made, for which all of it is read
    keys = {"device_resident": False, "cache": str(tmp_path / "cache"), **data}
    return work(store=url, **keys).batches(Position())


@pytest.mark.parametrize("read_ahead", [0, 3])
def test_the_cache_and_what_is_read_ahead_are_the_configs(work, tmp_path, read_ahead):
    batches = remote(work, tmp_path, prefetch_shards=read_ahead)
    first = next(batches)
    end = time.monotonic() + 30
    while len(found := list((tmp_path / "cache").glob("*.tar"))) <= read_ahead and time.monotonic() < end:
        time.sleep(0.01)
    assert len(found) == 1 + read_ahead and batches.notes == ()
    assert torch.equal(next(remote(work, tmp_path, prefetch_shards=read_ahead)), first)


def test_a_cache_that_fails_is_told_and_is_no_bad_shard(work, tmp_path):
    (tmp_path / "file").write_text("")
    batches = remote(work, tmp_path, cache=str(tmp_path / "file"), max_bad_shards=1)
    for _ in range(3):
        next(batches)
    assert len(batches.notes) == 1 and f"the cache {tmp_path / 'file'} cannot be" in batches.notes[0]
    assert batches.bad_shards == 0


def test_a_limit_of_the_cache_is_kept(work, tmp_path):
    batches = remote(work, tmp_path, cache_limit_gib=40_000 / 2**30)  # a shard takes some 10 kB
    for _ in range(100):
        next(batches)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 40_000
