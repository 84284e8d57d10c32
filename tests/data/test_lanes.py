"""Lanes: what a trial reads does not depend on how many processes it reads with, and its batches do not either."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from pipeline.data import BatchSpec, Position, Reader, Store, open_store
from pipeline.data.manifest import Manifest, Shard, Source
from pipeline.data.reading.batch_order import LANES_BYTES, BatchOrder, count_lanes
from pipeline.data.reading.reader import _merge
from tests.helpers.numbered_source import IMAGE_BYTES, forget, make_reader, numbered_store, numbers
from tests.helpers.s3 import s3_environment

URL = "memory://lanes/store"


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@st.composite
def lane_readings(draw: st.DrawFn) -> dict:
    """A store of numbered images, and a way of reading it in lanes."""
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    batch_size = lanes * draw(st.integers(1, 2))
    samples_per_shard = draw(st.integers(1, 5))
    size = draw(st.integers(max(batch_size, lanes * samples_per_shard), 60))
    return {
        "store": {"size": size, "samples_per_shard": samples_per_shard, "encoding": "blocks"},
        "lanes": lanes,
        "batch_size": batch_size,
        "seed": draw(st.integers(0, 2**40)),
        "window": draw(st.integers(0, 80)) * IMAGE_BYTES,
        "shuffle": draw(st.booleans()),
        "held_out": draw(st.integers(0, min(3, size - batch_size))),
    }


class CountedStore:
    """Counts the shards that are fetched from a store in memory, and their bytes."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fetched: Counter[str] = Counter()
        original = store.fs.cat_file

        def cat_file(path: str, *args: object, **kwargs: object) -> bytes:
            self.fetched[path] += 1
            return original(path, *args, **kwargs)

        monkeypatch.setattr(store.fs, "cat_file", cat_file)


def take(reader: Reader, count: int) -> list:
    return list(itertools.islice(reader, count))


@settings(max_examples=25, deadline=None)
@given(lane_readings(), st.data())
def test_batches_are_the_same_for_any_number_of_ranks_and_loader_processes(reading: dict, data: st.DataObject) -> None:
    forget(URL)
    store = numbered_store(URL, **reading.pop("store"))
    lanes, batch_size = reading.pop("lanes"), reading["batch_size"]
    reading["position"] = Position(lanes=lanes)
    whole = make_reader(store, **reading)
    size = store.manifest.num_samples - reading["held_out"]
    assert whole.batches_per_epoch == size // batch_size
    batches = take(whole, 2 * whole.batches_per_epoch + 1)
    ids = [numbers(batch.images) for batch in batches]
    for epoch in range(2):
        seen = list(itertools.chain(*ids[epoch * whole.batches_per_epoch : (epoch + 1) * whole.batches_per_epoch]))
        assert len(seen) == len(set(seen)) == whole.batches_per_epoch * batch_size

    # A loader process of a rank reads what a rank of a larger world would: its part of the rank's rows.
    world_size = data.draw(st.sampled_from(divisors(batch_size)), "ranks")
    workers = data.draw(st.sampled_from([1, 2, 3, 4]), "loader processes")
    ranks = []
    for rank in range(world_size):
        spec = BatchSpec(**{**reading, "rank": rank, "world_size": world_size})
        groups = BatchOrder(store, spec).count_groups(workers)
        assert groups <= workers
        loaders = [take(Reader(store, part), len(batches)) for part in spec.split(groups)]
        ranks.append([_merge(list(parts)) for parts in zip(*loaders, strict=True)])
    for batch, row, parts in zip(batches, ids, zip(*ranks, strict=True), strict=True):
        assert [len(part.images) for part in parts] == [batch_size // world_size] * world_size
        assert list(itertools.chain(*(numbers(part.images) for part in parts))) == row
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert {part.position for part in parts} == {batch.position}

    done = data.draw(st.integers(1, len(batches) - 1), "batches before")
    position = batches[done - 1].position
    assert position.lanes == count_lanes(store.manifest.without_last(reading["held_out"]), batch_size, lanes)
    resumed = take(make_reader(store, **{**reading, "position": position}), len(batches) - done)
    assert [numbers(batch.images) for batch in resumed] == ids[done:]
    assert [batch.position for batch in resumed] == [batch.position for batch in batches[done:]]


@settings(max_examples=25, deadline=None)
@given(lane_readings())
def test_a_shard_is_read_once_and_once_more_for_each_cut_between_two_processes(reading: dict) -> None:
    forget(URL)
    store = numbered_store(URL, **reading.pop("store"))
    reading["position"] = Position(lanes=reading.pop("lanes"))
    order = BatchOrder(store, BatchSpec(**reading))
    for world_size in divisors(order.lanes):
        with pytest.MonkeyPatch.context() as patch:
            counted = CountedStore(store, patch)
            for rank in range(world_size):
                # Nothing but the windows is kept in memory.
                reader = make_reader(store, cache_bytes=0, rank=rank, world_size=world_size, **reading)
                take(reader, reader.batches_per_epoch)
            assert counted.fetched.total() <= len(store.manifest.shards) + world_size - 1
            if world_size == 1:
                assert set(counted.fetched.values()) == {1}


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_what_a_trial_reads_is_independent_of_its_ranks(lanes: int, shards: int, rows: int, seed: int) -> None:
    """Where the shards can be shared out evenly, to the byte."""
    forget(URL)
    store = numbered_store(URL, lanes * shards * 4, samples_per_shard=4)
    requests = set()
    for world_size in divisors(lanes):
        with pytest.MonkeyPatch.context() as patch:
            counted = CountedStore(store, patch)
            for rank in range(world_size):
                spec = {"rank": rank, "world_size": world_size, "seed": seed, "position": Position(lanes=lanes)}
                reader = make_reader(store, batch_size=lanes * min(rows, shards * 4), cache_bytes=0, window=0, **spec)
                take(reader, reader.batches_per_epoch)
            requests.add(tuple(sorted(counted.fetched.items())))
    assert requests == {tuple((store.shard_path(shard), 1) for shard in store.manifest.shards)}


def manifest_of(num_shards: int, samples: int, resolution: int = 32) -> Manifest:
    shards = tuple(Shard(f"{i}.tar", num_samples=samples, bytes=1, sha256="") for i in range(num_shards))
    return Manifest(resolution, 3, "blocks", None, Source("digits"), num_samples=num_shards * samples, shards=shards)


@pytest.mark.parametrize(
    ("manifest", "batch_size", "most", "lanes"),
    [
        (manifest_of(1000, 1024), 128, 64, 64),
        (manifest_of(1000, 1024), 128, 1, 1),
        # As many rows of each lane in each batch.
        (manifest_of(1000, 1024), 100, 64, 4),
        (manifest_of(1000, 1024), 96, 60, 12),
        # A shard of each lane at least.
        (manifest_of(1, 1797), 128, 64, 1),
        (manifest_of(18, 100), 128, 64, 16),
        # No more memory than LANES_BYTES for one process.
        (manifest_of(367, 8192), 128, 64, 64),
        (manifest_of(367, 8192, resolution=128), 128, 64, 8),
        (manifest_of(3, LANES_BYTES), 128, 64, 1),
    ],
)
def test_the_number_of_lanes(manifest: Manifest, batch_size: int, most: int, lanes: int) -> None:
    assert count_lanes(manifest, batch_size, most) == lanes
    # A position has what was counted, and counts the same again.
    assert count_lanes(manifest, batch_size, lanes) == lanes


def test_loader_workers_share_out_the_lanes(tmp_path) -> None:
    store = numbered_store(str(tmp_path / "store"), 48)
    kwargs = {"batch_size": 8, "world_size": 2, "rank": 1, "window": 40, "position": Position(1, 3, lanes=4)}
    expected = take(make_reader(store, **kwargs), 8)
    got = take(make_reader(store, num_workers=2, **kwargs), 8)
    assert [batch.position for batch in got] == [batch.position for batch in expected]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def mixing(store: Store, labels: np.ndarray, lanes: int, window: int) -> tuple[float, float]:
    """Measure how well the batches of two epochs are mixed.

    Returns:
        The chi-square distance of a batch's labels to those of the store, by its expectation for a random batch: 1 is
        perfect, and a batch of one label has as much as it has samples. And the number of pairs of a batch that are in
        a batch together again in the next epoch, by its expectation for random batches: again, 1 is perfect.
    """
    batch_size = 32
    reader = make_reader(store, batch_size=batch_size, window=window, position=Position(lanes=lanes))
    batches = [numbers(batch.images) for batch in take(reader, 2 * reader.batches_per_epoch)]
    shares = np.bincount(labels) / len(labels)
    counts = [np.bincount(labels[batch], minlength=len(shares)) for batch in batches]
    distance = np.mean([((count - batch_size * shares) ** 2 / (batch_size * shares)).sum() for count in counts])
    of_first, of_second = ({number: i for i, batch in enumerate(part) for number in batch} for part in halves(batches))
    together = Counter((of_first[number], of_second[number]) for number in of_first if number in of_second)
    pairs = sum(count * (count - 1) / 2 for count in together.values())
    expected = len(of_first) * (batch_size - 1) / 2 * (batch_size - 1) / (len(labels) - 1)
    return float(distance / (len(shares) - 1)), float(pairs / expected)


def halves(batches: list) -> tuple[list, list]:
    return batches[: len(batches) // 2], batches[len(batches) // 2 :]


def test_lanes_mix_no_worse_than_one_window_did() -> None:
    """Of a store that is sorted by label, with windows of the same size in memory."""
    forget("memory://lanes/sorted")
    store = numbered_store("memory://lanes/sorted", 4096, samples_per_shard=32)
    in_store = np.concatenate([numbers(batch.images) for batch in take(plain(store), 128)])
    # The label of a number is by where it is in the store: ten classes, one after another.
    labels = np.empty(4096, int)
    labels[in_store] = np.arange(4096) * 10 // 4096
    window = 8 * 32 * IMAGE_BYTES
    one, many = (mixing(store, labels, lanes, window) for lanes in (1, 8))
    assert many[0] < 1.1 * one[0] and many[1] < 1.1 * one[1]
    # More lanes than a window has shards mix more of them.
    more = mixing(store, labels, 32, window)
    assert more[0] < 0.5 * one[0] and more[1] < 0.5 * one[1]


def plain(store: Store) -> Reader:
    return make_reader(store, batch_size=32, shuffle=False)


@pytest.fixture
def counting_bucket() -> Iterator[tuple[str, Counter[str]]]:
    """The URL of a bucket of a real S3 server on this machine, and counts of what is read of it."""
    seen: Counter[str] = Counter()
    counting = threading.Lock()
    application = DomainDispatcherApplication(create_backend_app)

    def count(environ: dict, start_response: object) -> Iterator[bytes]:
        # Before it is answered: who has the last byte may look at the counts at once.
        with counting:
            seen[environ["REQUEST_METHOD"]] += 1
        for part in application(environ, start_response):
            if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(".tar"):
                with counting:
                    seen["bytes"] += len(part)
            yield part

    server = make_server("127.0.0.1", 0, count, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with s3_environment(f"http://127.0.0.1:{server.server_port}") as url:
        yield url, seen
    server.shutdown()


def test_bytes_and_requests_at_an_s3_server_are_the_same_for_1_2_4_and_8_ranks(
    counting_bucket: tuple[str, Counter[str]],
) -> None:
    url, seen = counting_bucket
    numbered_store(f"{url}/store", 16 * 32, samples_per_shard=32)
    store = open_store(f"{url}/store")
    totals = []
    for world_size in (1, 2, 4, 8):
        seen.clear()
        for rank in range(world_size):
            spec = {"rank": rank, "world_size": world_size, "position": Position(lanes=16)}
            reader = make_reader(store, batch_size=32, cache_bytes=0, prefetch_shards=0, **spec)
            take(reader, reader.batches_per_epoch)
        totals.append(dict(seen))
    assert totals == [totals[0]] * 4
    assert totals[0]["bytes"] == sum(shard.bytes for shard in store.manifest.shards)
