"""The cache on this machine's disk: what it gives, what it holds, who shares it, and a disk that fails."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Shard, ShardCache
from pipeline.runtime.errors import UserError

CONTENTS = [bytes([number]) * (10 + 7 * number) for number in range(6)]


def shard(content: bytes) -> Shard:
    digest = hashlib.sha256(content).hexdigest()
    return Shard(f"{digest[:6]}.tar", num_samples=1, bytes=len(content), sha256=digest)


def size(folder: Path) -> int:
    """Bytes of all the shards in a folder, whole or half, while others may remove some."""
    total = 0
    for path in [*folder.glob("*.tar"), *folder.glob("*.part")]:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def never() -> bytes:
    raise AssertionError("it was fetched")


def out_of_reach() -> bytes:
    raise UserError("out of reach")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "read", "flip", "cut", "gone", "half", "out of reach"]),
        st.sampled_from(range(6)),
        st.integers(0, 10**6),
    ),
    max_size=40,
)


@settings(max_examples=75)
@given(limit=st.integers(0, 200), steps=STEPS)
def test_it_gives_what_was_stored_and_keeps_what_was_used_last(tmp_path_factory, limit, steps):
    """Against a model in a few lines: the files of the folder, in the order in which it was used."""
    outside = tmp_path_factory.mktemp("cache")
    cache = ShardCache(outside / "deep", limit)
    cache.folder.mkdir()
    (cache.folder / "mine.tar").write_text("not one of ours" * 100)
    model: dict[int, bytes] = {}
    for step, number, at in steps:
        content, place = CONTENTS[number], cache.folder / f"{shard(CONTENTS[number]).sha256}.tar"
        if step == "read":
            fetched: list[bytes] = []
            assert cache.read(shard(content), lambda c=content, f=fetched: f.append(c) or c) == content
            whole = model.pop(number, None) == content
            assert len(fetched) == (not whole)
            if not whole and len(content) <= limit:
                while sum(map(len, model.values())) + len(content) > limit:
                    del model[next(iter(model))]
            if whole or len(content) <= limit:
                model[number] = content
            assert whole or len(content) > limit or not list(cache.folder.glob("*.part"))
        elif step == "out of reach":
            with contextlib.nullcontext() if model.get(number) == content else pytest.raises(UserError, match="reach"):
                cache.read(shard(content), out_of_reach)
            if model.get(number) == content:
                model[number] = model.pop(number)
            else:
                model.pop(number, None)  # it was hurt
        elif step == "half":  # of a process that died
            place.with_suffix(".part").write_bytes(content[: at % len(content)])
        elif number in model:
            data, used = bytearray(model[number] or b"x"), place.stat().st_mtime_ns
            data[at % len(data)] ^= 1 << at % 8
            model[number] = {"flip": bytes(data), "cut": bytes(data)[: at % len(data)], "gone": b""}[step]
            place.write_bytes(model[number])
            os.utime(place, ns=(used, used))
            if step == "gone":
                place.unlink()
                del model[number]
        found = {path.name: path.read_bytes() for path in cache.folder.glob("*.tar")}
        assert len(found.pop("mine.tar")) == 1500
        assert found == {f"{shard(CONTENTS[other]).sha256}.tar": data for other, data in model.items()}
        assert sum(map(len, found.values())) <= limit


OTHER = """
import hashlib, sys, time
from pathlib import Path
from pipeline.data import Shard, ShardCache

log = Path(sys.argv[1])

def read(cache, content):
    def fetch():
        with log.open("a") as file:
            file.write(f"{cache.folder.name}/{content[0]}\\n")
        time.sleep(0.02)
        return content
    digest = hashlib.sha256(content).hexdigest()
    assert cache.read(Shard("x.tar", 1, len(content), digest), fetch) == content

def hang():
    (cache.folder / f"{last.sha256}.part").write_bytes(b"half")
    print("hangs", flush=True)
    time.sleep(600)

print("ready", flush=True)
sys.stdin.readline()
for argument in sys.argv[2:]:
    folder, limit = argument.split(":")
    cache = ShardCache(Path(folder), int(limit))
    for number in range(20):
        read(cache, bytes([number]) * 100)
last = Shard("x.tar", 1, 3, hashlib.sha256(b"end").hexdigest())
cache.read(last, hang)
"""


def test_processes_share_it_and_one_that_dies_holds_up_nobody(tmp_path):
    log, limits = tmp_path / "log", {tmp_path / "large": 2**20, tmp_path / "small": 350}
    places = [f"{folder}:{limit}" for folder, limit in limits.items()]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(log), *places], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    found: list[bytes] = []
    try:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        for folder, limit in limits.items():
            cache = ShardCache(folder, limit)
            for number in range(20):
                content = bytes([number]) * 100

                def fetch(folder=folder, content=content) -> bytes:
                    with log.open("a") as file:
                        file.write(f"{folder.name}/{content[0]}\n")
                    return content

                assert cache.read(shard(content), fetch) == content
                assert size(folder) <= limit
        assert other.stdout.readline() == "hangs\n"
        fetched = log.read_text().split()
        assert sorted(line for line in fetched if "large" in line) == sorted(f"large/{number}" for number in range(20))
        assert {line for line in fetched if "small" in line} == {f"small/{number}" for number in range(20)}
        assert size(cache.folder) <= cache.limit + len(b"half")
        waits = threading.Thread(target=lambda: found.append(cache.read(shard(b"end"), lambda: b"end")))
        waits.start()
        waits.join(0.3)
        assert waits.is_alive() and not found, "it was fetched while another fetched it"
    finally:
        other.kill()
        other.communicate()
    waits.join(30)
    assert found == [b"end"] and not list(cache.folder.glob("*.part"))
    assert cache.read(shard(b"end"), never) == b"end"
    assert cache.notes == ()


def test_threads_fetch_a_shard_once(tmp_path):
    cache, fetched = ShardCache(tmp_path, 10**6), []

    def fetch() -> bytes:
        fetched.append(1)
        time.sleep(0.05)
        return b"abc"

    threads = [threading.Thread(target=cache.read, args=(shard(b"abc"), fetch)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]


def test_who_does_not_end_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.shard_cache._LOCK_TIMEOUT", 0.1)
    cache, ends = ShardCache(tmp_path, 10**6), threading.Event()
    hangs = threading.Thread(target=cache.read, args=(shard(b"abc"), lambda: ends.wait() and b"abc"))
    hangs.start()
    try:
        assert cache.read(shard(b"abc"), lambda: b"abc") == b"abc"
    finally:
        ends.set()
        hangs.join()


@contextlib.contextmanager
def failing(way: str, tmp_path: Path):
    """A folder on a disk that takes no shard of ten thousand bytes."""
    if way == "a file in its place":
        (tmp_path / "file").write_text("")
        yield tmp_path / "file"
    elif way == "nowhere":
        yield Path("/proc/nowhere")
    elif way == "no larger file":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            yield tmp_path / "cache"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    else:
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "none", disk], capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        try:
            yield disk
        finally:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("way", ["a file in its place", "nowhere", "no larger file", "full"])
def test_a_disk_that_fails_is_one_line_and_costs_nothing_else(tmp_path, way):
    large = [os.urandom(10_000) for _ in range(3)]
    with failing(way, tmp_path) as folder:
        cache, fetched = ShardCache(folder, 10**6), []
        for content in [*large, *large]:
            assert cache.read(shard(content), lambda c=content: fetched.append(c) or c) == content
        assert not list(folder.glob("*.part"))
        assert len(fetched) == (5 if way == "full" else 6)  # there is room for one
    assert len(cache.notes) == 1 and f"the cache {folder} cannot be " in cache.notes[0] and "\n" not in cache.notes[0]
