"""The reader's contract: order, ranks, workers, positions, memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Position, iter_images, load_images, load_last_images, open_store
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import (
    IMAGE_BYTES,
    STORE_KEYS,
    forge,
    forget,
    make_reader,
    members,
    numbered_store,
    numbers,
    readings,
)


@settings(max_examples=30, deadline=None)
@given(readings())
def test_every_rank_gets_its_slice_of_the_same_order_from_any_position(reading: dict) -> None:
    url = "memory://reader/law"
    forget(url)
    store = numbered_store(url, **{key: reading.pop(key) for key in STORE_KEYS})
    world_size, batch_size = reading.pop("world_size"), reading["batch_size"]

    def take(count: int, **kwargs: object) -> list:
        return list(itertools.islice(make_reader(store, **{**reading, **kwargs}), count))

    per_epoch = store.manifest.num_samples // batch_size
    whole = take(2 * per_epoch + 1)
    ids = [numbers(batch.images) for batch in whole]

    assert make_reader(store, **reading).batches_per_epoch == per_epoch
    for epoch in range(2):
        seen = list(itertools.chain(*ids[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(seen) == len(set(seen)) == per_epoch * batch_size
    if store.manifest.labels is not None:
        assert all(batch.labels.tolist() == [i % 3 for i in row] for batch, row in zip(whole, ids, strict=True))
    else:
        assert all(batch.labels is None for batch in whole)
    ranks = [take(len(whole), rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, row, parts in zip(whole, ids, zip(*ranks, strict=True), strict=True):
        assert all(len(part.images) == batch_size // world_size for part in parts)
        assert list(itertools.chain(*(numbers(part.images) for part in parts))) == row
        assert {part.position for part in parts} == {batch.position}
    for done in range(per_epoch + 1):
        position = whole[done - 1].position if done else Position()
        assert position == Position(*divmod(done, per_epoch))
        resumed = take(len(whole) - done, position=position)
        assert [numbers(batch.images) for batch in resumed] == ids[done:]
        assert [batch.position for batch in resumed] == [batch.position for batch in whole[done:]]


@settings(max_examples=40, deadline=None)
@given(readings(), st.integers(0, 12))
def test_held_out_samples_are_in_no_batch_and_all_others_in_each_epoch(reading: dict, held_out: int) -> None:
    url = "memory://reader/held-out"
    forget(url)
    store = numbered_store(url, **{key: reading.pop(key) for key in STORE_KEYS})
    size, batch_size = store.manifest.num_samples, reading["batch_size"]
    plain = numbers(load_images(store)[0])
    if size - held_out < batch_size:
        with pytest.raises(UserError, match=r"held_out|fewer than a batch"):
            make_reader(store, held_out=held_out, **{**reading, "world_size": 1})
        return
    reading.pop("world_size")
    reader = make_reader(store, held_out=held_out, **reading)
    epoch = [numbers(batch.images) for batch in itertools.islice(reader, reader.batches_per_epoch)]
    seen = list(itertools.chain(*epoch))
    assert reader.batches_per_epoch == (size - held_out) // batch_size
    assert len(seen) == len(set(seen)) and set(seen) <= set(plain[: size - held_out])
    assert numbers(load_last_images(store, held_out)) == plain[size - held_out :]
    if held_out == 0:
        assert epoch == [
            numbers(batch.images) for batch in itertools.islice(make_reader(store, **reading), reader.batches_per_epoch)
        ]


def test_the_order_is_fixed_for_ever() -> None:
    """A run that is resumed with a later version must read on in the same order."""
    forget("memory://reader/fixed")
    store = numbered_store("memory://reader/fixed", 12)
    reader = make_reader(store, batch_size=6, seed=3, window=8 * IMAGE_BYTES)
    assert [numbers(batch.images) for batch in itertools.islice(reader, 3)] == FIXED


def test_seed_and_epoch_mix_and_the_plain_order_does_not() -> None:
    forget("memory://reader/mix")
    store = numbered_store("memory://reader/mix", 64)

    def epochs(count: int, **kwargs: object) -> list[tuple[int, ...]]:
        return [
            tuple(numbers(batch.images))
            for batch in itertools.islice(make_reader(store, batch_size=64, **kwargs), count)
        ]

    plain = tuple(numbers(load_images(store)[0]))
    assert epochs(2, shuffle=False) == [plain, plain]
    mixed = epochs(2, seed=0) + epochs(2, seed=1) + [plain]
    assert len(set(mixed)) == 5
    assert all(sorted(order) == list(range(64)) for order in mixed)


@pytest.mark.parametrize(("encoding", "num_workers"), [("blocks", 1), ("images", 2)])
def test_loader_workers_change_nothing(tmp_path, encoding: str, num_workers: int) -> None:
    store = numbered_store(str(tmp_path / "store"), 30, encoding=encoding, channels=3)
    kwargs = {"batch_size": 4, "world_size": 2, "rank": 1, "window": 40, "position": Position(1, 3)}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = list(itertools.islice(make_reader(store, **kwargs), 12))
    got = list(itertools.islice(make_reader(store, num_workers=num_workers, **kwargs), 12))
    assert [batch.position for batch in got] == [batch.position for batch in expected]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert torch.equal(torch.get_rng_state(), before), "reading moved torch's global random numbers"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard_is_the_same_line_from_a_loader_worker(tmp_path, num_workers: int) -> None:
    store = numbered_store(str(tmp_path / "store"), 12)
    shard = tmp_path / "store" / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    reader = make_reader(open_store(store.url), batch_size=4, num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        list(itertools.islice(reader, 3))
    expected = (
        f"shard-000001.tar of the store {store.url} differs from the SHA-256 of its manifest: make the store again"
    )
    assert str(caught.value) == expected


def test_a_position_is_found_without_reading_what_lies_before_it() -> None:
    forget("memory://reader/skip")
    store = numbered_store("memory://reader/skip", 64)
    kwargs = {"batch_size": 4, "window": 8 * IMAGE_BYTES}
    uninterrupted = list(itertools.islice(make_reader(store, **kwargs), 12))
    wanted = set(numbers(uninterrupted[11].images))
    needed = set()
    for shard in store.manifest.shards:
        blocks = members(store.fs.cat_file(store.shard_path(shard)))
        ids = {block[0] for block in _first_pixels(blocks)}
        if ids & wanted:
            needed.add(shard.name)
    # The window of a batch is two shards, or four where it crosses: all others can go.
    gone = 0
    for shard in store.manifest.shards:
        data = store.fs.cat_file(store.shard_path(shard))
        store.fs.rm_file(store.shard_path(shard))
        try:
            batch = next(iter(make_reader(store, position=Position(0, 11), **kwargs)))
            gone += 1
            assert numbers(batch.images) == numbers(uninterrupted[11].images)
        except UserError:
            assert shard.name in needed
            store.fs.pipe_file(store.shard_path(shard), data)
    assert gone == len(store.manifest.shards) - len(needed)


def _first_pixels(blocks: dict[str, bytes]) -> list[bytes]:
    images = [data for name, data in blocks.items() if name.endswith("images.npy")]
    return [
        data[-IMAGE_BYTES * count :][:1] for data in images for count in range(1, (len(data) - 128) // IMAGE_BYTES + 1)
    ]


def test_a_small_store_is_read_once() -> None:
    for cache, survives in ((10**6, True), (0, False)):
        forget("memory://reader/once")
        store = numbered_store("memory://reader/once", 16)
        batches = iter(make_reader(store, batch_size=4, cache_bytes=cache, window=0))
        for _ in range(4):
            next(batches)
        for shard in store.manifest.shards:
            store.fs.rm_file(store.shard_path(shard))
        if survives:
            assert len(list(itertools.islice(batches, 8))) == 8
        else:
            with pytest.raises(UserError, match="cannot reach shard-"):
                list(itertools.islice(batches, 8))


def test_a_rank_decodes_only_its_own_images() -> None:
    forget("memory://reader/own")
    store = numbered_store("memory://reader/own", 16, encoding="images", samples_per_shard=16)
    name = next(
        name for name in members(store.fs.cat_file(store.shard_path(store.manifest.shards[0]))) if "png" in name
    )
    forge(store, {name: b"no image"})
    store = open_store(store.url)
    outcomes = []
    for rank in range(4):
        try:
            list(itertools.islice(make_reader(store, batch_size=16, world_size=4, rank=rank), 1))
            outcomes.append("fine")
        except UserError as error:
            assert "is not an image of a store" in str(error)
            outcomes.append("broken")
    assert sorted(outcomes) == ["broken", "fine", "fine", "fine"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "no multiple"),
        ({"batch_size": 0}, "no multiple"),
        ({"batch_size": 11}, "fewer than a batch"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "not one of 2 ranks"),
        ({"batch_size": 4, "seed": -1}, "0 or more"),
        ({"batch_size": 4, "position": Position(0, -1)}, "0 or more"),
        ({"batch_size": 4, "num_workers": 1}, "cannot see"),
    ],
)
def test_what_cannot_be_read_is_one_line(kwargs: dict, message: str) -> None:
    forget("memory://reader/bad")
    store = numbered_store("memory://reader/bad", 10)
    with pytest.raises(UserError, match=message) as caught:
        make_reader(store, **kwargs)
    assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 30), limit=st.none() | st.integers(0, 40), encoding=st.sampled_from(["blocks", "images"]))
def test_images_come_whole_in_store_order(size: int, limit: int | None, encoding: str) -> None:
    forget("memory://reader/all")
    store = numbered_store("memory://reader/all", size, encoding=encoding, channels=3)
    whole = list(itertools.chain(*(numbers(images) for images, _ in iter_images(store, 3))))
    assert sorted(whole) == list(range(size))
    images, labels = load_images(store, limit)
    assert numbers(images) == whole[:limit]
    assert labels.tolist() == [i % 3 for i in whole[:limit]]


FIXED = [[9, 8, 5, 10, 2, 4], [11, 3, 0, 1, 7, 6], [1, 6, 9, 0, 4, 11]]
