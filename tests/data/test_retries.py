"""A storage that fails now and then, or hangs: what is asked a second time comes out right, what never comes is a line.

And one that is asked as rarely as may be: what a cache has is not asked for again.
"""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import boto3
import fsspec
import pytest
import torch
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from pipeline.data import ShardCache, open_store, sources, write_store
from pipeline.runtime.errors import UserError
from pipeline.training.checkpoints import Checkpoints, read
from tests.helpers.numbered_source import make_reader


class Flaky:
    """An S3 server of which the first requests of each kind for each object fail."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        self.over = threading.Event()
        self.fail("503", 0)

    def fail(self, way: str, failures: int) -> None:
        """From now on: with which answer, or none, and how often."""
        self.way, self.failures, self.injected = way, failures, 0
        self.seen: Counter[tuple[str, str]] = Counter()

    def __call__(self, environ, start_response):
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen[asked] += 1
        if self.seen[asked] > self.failures:
            return self._app(environ, start_response)
        self.injected += 1
        if self.way == "hang":
            self.over.wait(60)
            return self._app(environ, start_response)
        if self.way == "reset":
            connection = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            return []
        start_response(self.way, [("Content-Type", "application/xml"), ("Connection", "close")])
        return [b"<Error><Code>SlowDown</Code><Message>ask again later</Message></Error>"]


@pytest.fixture
def storage(monkeypatch):
    """A bucket whose server can be set to fail."""
    flaky = Flaky()
    thread = threading.Thread(target=flaky.server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{flaky.server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    fsspec.filesystem("s3").clear_instance_cache()
    yield flaky
    fsspec.filesystem("s3").clear_instance_cache()
    flaky.over.set()
    flaky.server.shutdown()
    thread.join()


@pytest.mark.parametrize("way", ["503 Slow Down", "reset"])
def test_what_fails_at_first_comes_out_right(storage, way, tmp_path):
    place = f"s3://bucket/{way[:3]}"
    settings = {"resolution": 8, "channels": 1, "samples_per_shard": 900, "num_processes": 1}
    local = write_store(sources.make("digits"), str(tmp_path / "local"), **settings)
    storage.fail(way, 1)
    remote = write_store(sources.make("digits"), f"{place}/digits", **settings)
    assert remote.manifest == local.manifest and storage.injected
    storage.fail(way, 1)
    here, there = (
        itertools.islice(make_reader(open_store(url), batch_size=256), 9)
        for url in (str(tmp_path / "local"), f"{place}/digits")
    )
    assert all(torch.equal(one.images, other.images) for one, other in zip(here, there, strict=True))
    assert storage.injected
    storage.fail(way, 1)
    url = Checkpoints(f"{place}/trial").save(10, model={"w": torch.arange(9.0)}, training={}, state={}, score=1.0)
    assert storage.injected
    storage.fail(way, 1)
    assert torch.equal(read(url).model["w"], torch.arange(9.0)) and storage.injected


def test_what_never_comes_is_one_line_before_long(storage):
    settings = {"resolution": 8, "channels": 1, "samples_per_shard": 900, "num_processes": 1}
    store = write_store(sources.make("digits"), "s3://bucket/digits", **settings)
    assert store
    storage.fail("503 Slow Down", 10**6)
    began = time.monotonic()
    with pytest.raises(UserError, match="s3://bucket/digits") as refusal:
        open_store("s3://bucket/digits")
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - began < 120  # and not for ever; how long is botocore's to say


def test_a_storage_that_takes_a_request_and_never_answers_is_one_line_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes what comes, and it is never read
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        fsspec.filesystem("s3").clear_instance_cache()
        began = time.monotonic()
        with pytest.raises(UserError) as refusal:
            open_store("s3://bucket/digits", timeout=0.5)
        assert time.monotonic() - began < 60  # s3fs by itself has seven minutes
        assert str(refusal.value) == "cannot reach s3://bucket/digits: no answer within data.timeout=0.5 seconds"
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize("prefetch_shards", [0, 2])
def test_a_storage_that_begins_to_hang_is_one_line_in_time(storage, prefetch_shards):
    url = f"s3://bucket/hangs-{prefetch_shards}"  # what a server keeps, it keeps for the process
    settings = {"resolution": 8, "channels": 1, "samples_per_shard": 300, "num_processes": 1}
    write_store(sources.make("digits"), url, **settings)
    store = open_store(url, timeout=0.5)
    batches = iter(
        make_reader(store, batch_size=300, shuffle=False, window=0, cache_bytes=0, prefetch_shards=prefetch_shards)
    )
    next(batches)
    storage.fail("hang", 10**6)
    with pytest.raises(
        UserError, match=r"cannot reach shard-00000\d\.tar of the store s3://bucket/hangs-\d: no answer within"
    ):
        for _ in range(prefetch_shards + 1):  # what had come before is there
            next(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_cache_has_is_not_asked_for_again(storage, tmp_path, num_workers):
    url = f"s3://bucket/kept-{num_workers}"
    settings = {"resolution": 8, "channels": 1, "samples_per_shard": 300, "num_processes": 1}
    write_store(sources.make("digits"), url, **settings)

    def shards_got() -> int:
        return sum(count for (method, path), count in storage.seen.items() if method == "GET" and ".tar" in path)

    def read(cache: ShardCache | None, num_workers: int = 0) -> list[torch.Tensor]:
        storage.fail("503", 0)
        ahead = None if cache else 0  # or what is on its way when this reader is done counts for the next one
        store = open_store(url, cache=cache)
        options = {"num_workers": num_workers, "cache_bytes": 0, "window": 0, "prefetch_shards": ahead}
        batches = iter(make_reader(store, batch_size=256, **options))
        found = [batch.images for batch in itertools.islice(batches, 14)]
        batches.close()
        assert not multiprocessing.active_children(), "a loader worker reads ahead for no process"
        return found

    expected = read(None)
    assert shards_got() >= 6
    cache = ShardCache(tmp_path / "cache", 2**24)
    for times in (6, 0):
        assert all(torch.equal(one, other) for one, other in zip(read(cache, num_workers), expected, strict=True))
        assert shards_got() == times
    assert len(list(Path(cache.folder).glob("*.tar"))) == 6

    # Another store at the same place: nothing of the one before.
    fsspec.filesystem("s3").rm(fsspec.filesystem("s3").find(url))
    write_store(sources.make("digits"), url, **settings | {"encoding": "images"})
    assert all(torch.equal(one, other) for one, other in zip(read(cache), expected, strict=True))
    assert shards_got() == 6
