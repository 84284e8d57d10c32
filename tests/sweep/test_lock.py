"""One driver a folder: who dies lets go, who lives does not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading

import pytest

from pipeline.runtime.errors import UserError
from pipeline.sweep import lock


@pytest.fixture(params=["file", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "sweep") if request.param == "file" else f"memory://lease/{tmp_path.name}"


def hold(folder: str, held: multiprocessing.Event) -> None:
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
    assert held.wait(30)
    os.kill(process.pid, signal.SIGSTOP)  # it gives no sign of life, and lives
    with pytest.raises(UserError, match=str(process.pid)), lock.acquire(folder):
        pass
    process.kill()
    process.join()
    with lock.acquire(folder):
        pass


def elsewhere(folder: str, beat: int) -> None:
    """A sign of life of a driver on another machine."""
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
