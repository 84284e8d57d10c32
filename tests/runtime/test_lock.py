"""One driver a folder: who dies lets go, who lives does not."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.runtime import lock
from pipeline.runtime.errors import LockLost, UserError
from pipeline.runtime.filesystem import write_file
from pipeline.runtime.lock_file import RELEASED, open_lock_file
from tests.helpers.s3 import s3_bucket


@pytest.fixture(params=["file", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "sweep") if request.param == "file" else f"memory://lease/{tmp_path.name}"


@pytest.fixture
def bucket():
    with s3_bucket() as url:
        yield url


def test_an_object_store_writes_on_a_condition(bucket, monkeypatch):
    """Also where another has written between a look and the write."""
    file, other = open_lock_file(f"{bucket}/sweep/lock"), open_lock_file(f"{bucket}/sweep/lock")
    file.create(b"one")
    file.create(b"one")  # as when the answer to the first request was lost
    with pytest.raises(FileExistsError):
        other.create(b"two")
    assert file.replace(b"one", b"two") and not other.replace(b"one", b"three") and other.read() == b"two"
    read = type(file).read

    def read_and_wait(self) -> bytes | None:
        content = read(self)
        monkeypatch.setattr(type(file), "read", read)
        assert other.replace(b"two", b"three")
        return content

    monkeypatch.setattr(type(file), "read", read_and_wait)
    assert not file.replace(b"two", b"four") and file.read() == b"three"
    assert not file.remove(b"two") and file.read() == b"three" and file.remove(b"three")
    assert file.read() == RELEASED


def hold(folder: str, held: Event) -> None:
    with lock.acquire(folder):
        held.set()
        signal.pause()


def test_a_folder_is_free_again_once_it_is_let_go(folder):
    for _ in range(2):
        with lock.acquire(folder), pytest.raises(UserError, match="another sweep writes"), lock.acquire(folder):
            pass


def test_each_heartbeat_changes_what_others_observe(folder):
    with lock.acquire(folder) as held:
        file = open_lock_file(f"{folder}/.lease.json")
        contents = [file.read()]
        for _ in range(3):
            held.renew()
            contents.append(file.read())
    assert len(set(contents)) == 4


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
    # Whether or not its parent has waited for it.
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    with lock.acquire(folder):
        pass
    process.join()


def elsewhere(folder: str, beat: int) -> None:
    """A heartbeat of a driver on another machine."""
    holder = {"owner": "theirs", "machine": "another", "pid": 1, "born": "0", "host": "far", "beat": beat}
    write_file(f"{folder}/.lease.json", json.dumps(holder).encode())


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
    write_file(f"{folder}/.lease.json", content)
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
        open_lock_file(f"{tmp_path}/.lease.json").create(b"{}")


def test_one_that_is_created_and_not_yet_written_is_not_taken_for_damaged(tmp_path):
    (tmp_path / ".lease.json").write_bytes(b"")
    writer = threading.Thread(target=lambda: (time.sleep(0.3), elsewhere(str(tmp_path), 0)))
    writer.start()
    with pytest.raises(UserError, match="on far"), lock.acquire(str(tmp_path), stale_after=5.0):
        pass
    writer.join()


class InterruptedFile:
    """A lock's file between whose operations the world may take some steps."""

    def __init__(self, file, between) -> None:
        self._file, self._between = file, between

    def read(self):
        self._between()
        return self._file.read()

    def create(self, content):
        self._between()
        self._file.create(content)

    def replace(self, expected, content):
        self._between()
        return self._file.replace(expected, content)

    def remove(self, expected):
        self._between()
        return self._file.remove(expected)


# A driver, what it does, the seconds until then, and after how many operations on the file it is suspended.
Step = tuple[int, str, float, float]


class World:
    """Two drivers on two machines, of which each may be suspended between any two operations of its own."""

    def __init__(self, folder: str) -> None:
        self.now = 0.0
        self.pending: list[Step] = []
        self.file = open_lock_file(f"{folder}/lease")
        self.locks: list[lock.Lock | None] = [None, None]
        self.contenders: list[lock.Contender | None] = [None, None]
        # Of each driver, the operations that are left before it is suspended; None while it does nothing.
        self.left: list[float | None] = [None, None]

    def run(self, steps: list[Step]) -> None:
        self.pending = list(reversed(steps))
        while self.pending:
            self.step()

    def before_operation(self, driver: int) -> None:
        """Where it is suspended, take the steps of the other driver up to the next of its own."""
        left, self.left[driver] = self.left[driver], (self.left[driver] or 0) - 1
        while left == 0 and self.pending and self.left[self.pending[-1][0]] is None:
            self.step()

    def step(self) -> None:
        driver, action, seconds, operations = self.pending.pop()
        self.now += seconds
        self.left[driver] = operations
        try:
            getattr(self, action)(driver)
        except (UserError, LockLost):
            self.contenders[driver] = self.locks[driver] = None
        finally:
            self.left[driver] = None

    def attempt(self, driver: int) -> None:
        if self.locks[driver] is not None:
            return
        file = InterruptedFile(self.file, lambda: self.before_operation(driver))
        if self.contenders[driver] is None:
            process = {"machine": f"machine {driver}", "pid": driver, "born": "0", "host": f"host {driver}"}
            self.contenders[driver] = lock.Contender("sweep", file, process=process, clock=lambda: self.now)
        self.locks[driver] = self.contenders[driver].attempt()
        if self.locks[driver] is not None:
            self.contenders[driver] = None
            self.write(driver)

    def renew(self, driver: int) -> None:
        if (held := self.locks[driver]) is not None:
            held.renew()

    def write(self, driver: int) -> None:
        if (held := self.locks[driver]) is not None:
            held.verify()
            # The file is ours at this moment, or could not have been taken over.
            content = self.file.read()
            assert content is not None and json.loads(content).get("owner") == held.owner

    def release(self, driver: int) -> None:
        if (held := self.locks[driver]) is not None:
            others = self.locks[1 - driver]
            before = self.file.read()
            self.locks[driver] = None
            held.release()
            content = self.file.read() or b"{}"
            assert json.loads(content).get("owner") != held.owner
            if others is not None and before and json.loads(before).get("owner") == others.owner:
                assert json.loads(content).get("owner") == others.owner, "it has removed another's"


NEVER = math.inf
STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["attempt", "renew", "write", "release"]),
        st.sampled_from([0.0, 1.0, 9.0, 24.0, 26.0, 100.0]),
        st.sampled_from([NEVER, NEVER, 0, 1, 2, 3]),
    ),
    max_size=30,
)
# The first is suspended; the second observes its lock, takes it over and writes; then the first one writes or ends.
OBSERVED = [(0, "attempt", 0.0, NEVER), (1, "attempt", 1.0, NEVER)]
TAKEN_OVER = [*OBSERVED, (1, "attempt", 26.0, NEVER), (1, "write", 0.0, NEVER)]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_never_do_two_write_and_nobody_removes_what_is_another_s(tmp_path_factory, scheme):
    home = tmp_path_factory.mktemp("locks")

    @example([*TAKEN_OVER, (0, "write", 0.0, NEVER), (1, "write", 0.0, NEVER)])
    @example([*TAKEN_OVER, (0, "renew", 0.0, NEVER), (1, "write", 9.0, NEVER)])
    @example([*TAKEN_OVER, (0, "release", 0.0, NEVER), (1, "write", 9.0, NEVER)])
    # The second has observed enough, and is suspended before it takes the lock over; the first renews it meanwhile.
    @example([*OBSERVED, (1, "attempt", 26.0, 1), (0, "renew", 0.0, NEVER), (0, "write", 1.0, NEVER)])
    # The second has not observed the lock for long enough, and the first is alive.
    @example([*OBSERVED, (1, "attempt", 1.0, NEVER), (1, "write", 0.0, NEVER), (0, "write", 0.0, NEVER)])
    # The first is suspended in the middle of a heartbeat.
    @example([(0, "attempt", 0.0, NEVER), (0, "renew", 9.0, 0), (1, "attempt", 1.0, NEVER), *TAKEN_OVER[2:]])
    @given(STEPS)
    def law(steps):
        folder = home / os.urandom(8).hex()
        folder.mkdir()
        World(str(folder) if scheme == "file" else f"memory://law/{folder.name}").run(steps)

    law()
