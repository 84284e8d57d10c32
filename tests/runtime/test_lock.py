"""One driver a folder: who dies lets go, who lives does not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from pipeline.runtime import lock
from pipeline.runtime.errors import UserError


@pytest.fixture(params=["file", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "sweep") if request.param == "file" else f"memory://lease/{tmp_path.name}"


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="lease")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield "s3://lease"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_an_object_store_refuses_the_second(bucket):
    folder = f"{bucket}/sweep"
    lock._create_exclusively(folder, b"{}")
    with pytest.raises(FileExistsError):
        lock._create_exclusively(folder, b"{}")


def hold(folder: str, held: Event) -> None:
    with lock.acquire(folder):
        held.set()
        signal.pause()


def test_a_folder_is_free_again_once_it_is_let_go(folder):
    for _ in range(2):
        with lock.acquire(folder), pytest.raises(UserError, match="another sweep writes"), lock.acquire(folder):
            pass


def test_what_died_here_holds_nothing_and_what_lives_does(tmp_path):
    context, folder = multiprocessing.get_context("fork"), str(tmp_path)
    held = context.Event()
    process = context.Process(target=hold, args=(folder, held), daemon=True)
    process.start()
    assert held.wait(30) and process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # no heartbeat, and it lives
    with pytest.raises(UserError, match=str(process.pid)), lock.acquire(folder):
        pass
    process.kill()
    process.join()
    with lock.acquire(folder):
        pass


def elsewhere(folder: str, beat: int) -> None:
    """A heartbeat of a driver on another machine."""
    holder = {"owner": "theirs", "machine": "another", "pid": 1, "born": "0", "host": "far", "beat": beat}
    lock.write_file(f"{folder}/.lease.json", json.dumps(holder).encode())


def test_a_holder_elsewhere_is_watched_before_it_counts_as_dead(folder):
    elsewhere(folder, 0)
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.05):
            beat += 1
            elsewhere(folder, beat)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(UserError, match="on far"), lock.acquire(folder, stale_after=2.0):
        pass
    ended.set()
    thread.join()
    with lock.acquire(folder, stale_after=0.2):  # it says nothing any more
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"{}", b'{"machine": null}', b"[" * 100_000])
def test_a_lease_that_makes_no_sense_holds_nothing(folder, content):
    lock.write_file(f"{folder}/.lease.json", content)
    with lock.acquire(folder, stale_after=0.2):
        pass


def test_of_many_that_come_at_once_one_gets_it(tmp_path):
    """Each holds it until all have tried."""
    start, tried, results = threading.Barrier(8), threading.Barrier(8), []

    def come() -> None:
        start.wait()
        try:
            with lock.acquire(str(tmp_path)):
                results.append("held")
                tried.wait(60)
        except UserError:
            results.append("refused")
            tried.wait(60)
        except Exception as error:
            results.append(repr(error))
            tried.abort()

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 7


def test_one_that_is_created_between_the_look_and_the_write_is_seen(tmp_path, monkeypatch):
    """What a look before the write cannot promise."""
    elsewhere(str(tmp_path), 0)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.exists", lambda *_, **__: False)
    with pytest.raises(FileExistsError):
        lock._create_exclusively(str(tmp_path), b"{}")


def test_one_that_is_created_and_not_yet_written_is_not_taken_for_damaged(tmp_path):
    (tmp_path / ".lease.json").write_bytes(b"")
    writer = threading.Thread(target=lambda: (time.sleep(0.3), elsewhere(str(tmp_path), 0)))
    writer.start()
    with pytest.raises(UserError, match="on far"), lock.acquire(str(tmp_path), stale_after=5.0):
        pass
    writer.join()
