"""The log for programs: whole lines of JSON, whatever is logged and whatever the disk does."""

from __future__ import annotations

import datetime
import json
import os
import resource
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.runtime.errors import UserError
from pipeline.sweep.display.event_log import EVENTS, EventLog

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def entries(path: Path) -> list[dict]:
    assert path.read_bytes().endswith(b"\n")
    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    payload=st.lists(
        st.tuples(st.sampled_from(list(EVENTS)), st.dictionaries(st.text(max_size=8), VALUES, max_size=4)), max_size=4
    ),
    trial=st.none() | st.just("007"),
)
def test_whatever_is_logged_is_a_line_of_finite_json(tmp_path, payload, trial):
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "events.jsonl"
    log = EventLog(str(path))
    for event, values in payload:
        log.write(event, values, trial)
    assert path.read_bytes().count(b"\n") == len(payload)  # on the disk at once, before it is closed
    log.close()
    for entry, (event, values) in zip(entries(path) if payload else [], payload, strict=True):
        assert list(entry) == ["time", "event", "trial", "values"]
        assert entry["event"] == event and entry["trial"] == trial and set(entry["values"]) <= set(values)
        assert entry["time"].endswith("Z")
        when = datetime.datetime.fromisoformat(entry["time"])
        assert abs((datetime.datetime.now(datetime.UTC) - when).total_seconds()) < 60


def test_a_full_disk_is_told_once_and_leaves_whole_lines(tmp_path):
    path, said = tmp_path / "events.jsonl", []
    log = EventLog(str(path), said.append)
    log.write("note", {"text": "before"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))  # room for a part of a line
    try:
        for _ in range(3):
            log.write("note", {"text": "lost"})
        assert len(said) == 1 and str(path) in said[0] and "the sweep continues" in said[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write("note", {"text": "after"})
    log.close()
    assert [entry["values"]["text"] for entry in entries(path)] == ["before", "after"]
    assert len(said) == 2 and "again" in said[1]


def test_a_device_that_is_always_full(monkeypatch):
    said = []
    log = EventLog("/dev/full", said.append)
    for _ in range(3):
        log.write("note", {"text": "lost"})
    log.close()
    assert len(said) == 1 and "No space left" in said[0]


def test_a_reader_that_has_gone(tmp_path):
    said, fifo = [], tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = EventLog(str(fifo), said.append)
    log.write("note", {"text": "heard"})
    assert json.loads(os.read(reader, 10_000))["values"] == {"text": "heard"}
    os.close(reader)
    for _ in range(3):
        log.write("note", {"text": "lost"})
    log.close()
    assert len(said) == 1 and "pipe" in said[0]


def test_after_a_line_that_was_cut_off_the_next_is_whole_and_what_was_there_stays(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "note"}\n{"event": "no')
    log = EventLog(str(path))
    log.write("note", {})
    log.close()
    before, cut, after = path.read_text().splitlines()
    assert before == '{"event": "note"}' and cut == '{"event": "no' and json.loads(after)["event"] == "note"


def test_lines_of_several_threads_do_not_mix(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(str(path))
    threads = [
        threading.Thread(target=lambda n=n: [log.write("note", {"text": str(n) * 5000}) for _ in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(entry["values"]["text"][0] for entry in entries(path)) == sorted("0123" * 20)


@pytest.mark.parametrize("place", ["s3://bucket/events.jsonl", "file/below.jsonl", "folder"])
def test_a_place_that_cannot_be_is_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"log={place}") as refusal:
        EventLog(place)
    assert "\n" not in str(refusal.value)
