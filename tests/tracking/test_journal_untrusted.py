"""An untrusted journal: it is refused in a one-line message, or each entry is sent or left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.tracking.journal import Journal, PermanentError
from pipeline.tracking.journal_delivery import _permanent_errors
from pipeline.tracking.journal_entries import read_artifact
from pipeline.tracking.tracker import Tracker
from tests.helpers.sweep import DATA
from tests.helpers.untrusted import JSON, changed, one_line, paths

MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sweep's, with a picture in it."""
    made = tmp_path_factory.mktemp("sweep")
    Image.new("RGB", (8, 8)).save(made / "grid.png")
    return made


def part(document: Any, path: tuple) -> Any:
    for key in path:
        document = document[key]
    return document


def read(path: Path) -> None:
    """Read a journal as a sweep does that resumes from it, and as a tracker's that takes all there is."""
    Journal(path, lambda entries: None).close(flush_timeout=30)


@MANY
@given(
    content=st.binary(max_size=100)
    | st.lists(JSON).map(lambda all_: "".join(f"{json.dumps(one)}\n" for one in all_).encode())
)
@example(content=b"[" * 200_000 + b"\n")
@example(content=b'{"a": ' * 200_000 + b"\n")
@example(content=b"1" * 5000 + b"\n")
def test_any_bytes_for_a_journal(folder, content):
    path = folder / "journal"
    path.write_bytes(content)
    path.with_name("journal.sent").unlink(missing_ok=True)
    one_line(read, path)


@MANY
@given(note=st.binary(max_size=20) | st.integers().map(lambda number: str(number).encode()))
@example(note=b"1" * 5000)
def test_any_bytes_for_the_note_of_what_is_out(folder, note):
    path = folder / "journal"
    path.write_bytes(b'{"kind": "end"}\n{"kind": "end"}\n')
    path.with_name("journal.sent").write_bytes(note)
    one_line(read, path)


TIME = 1_700_000_000_000
ENTRIES = [
    {"kind": "start", "trial": "000", "params": {"a": "1"}, "tags": {"b": "c"}, "time": TIME, "config": "seed: 0"},
    {"kind": "metrics", "trial": "000", "metrics": {"train/energy_loss": 1.5}, "step": 3, "time": TIME},
    {"kind": "file", "trial": None, "file": "grid.png", "folder": "figures"},
    {"kind": "image", "trial": "000", "file": "grid.png", "key": "grid", "step": 3, "time": TIME},
    {"kind": "data", "trial": "000", "data": DATA},
    {"kind": "tags", "trial": None, "tags": {"d": "e"}},
    {
        "kind": "model",
        "trial": "000",
        "name": "digits",
        "checkpoint": "trials/000",
        "sampler": {"beta": 1.0},
        "base_step": 3,
        "description": "it",
        "tags": {"value": "1.0"},
    },
    {"kind": "end", "trial": "000", "status": "FINISHED", "time": TIME, "name": "trial 000"},
    {"kind": "view", "trial": None, "view": "{}"},
]
# Each text of an entry by its path, and a name of one more value in each mapping that takes any.
TEXTS = [
    (entry, path, how)
    for entry in ENTRIES
    for path in paths(entry)[1:]
    for how, is_text in (
        ("another", isinstance(part(entry, path), str)),
        ("more", path[0] in ("params", "tags", "metrics", "sampler") and len(path) == 2),
    )
    if is_text
]


@pytest.fixture(scope="module")
def tracker(folder, mlflow_tables) -> Tracker:
    """With a trial in it, of a database on this machine."""
    uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
    made = Tracker(uri, "digits", artifacts=artifacts, journal=folder / "tracking.jsonl", folder=str(folder))
    made.start_sweep("sweep", {"seed": 0}, "what it is", extractor=None)
    made._deliver(ENTRIES[:1])
    yield made
    made.close(flush_timeout=0)


@settings(MANY, max_examples=200)
@given(
    data=st.data(),
    entry=st.sampled_from(ENTRIES),
    other=JSON | st.sampled_from([10**400, -(2**70), 1e308, "x" * 9000, "../..", "\x00", "a/b", "object", [[1] * 40]]),
    how=st.sampled_from(["another", "gone", "more"]),
)
def test_an_entry_with_anything_at_any_place_is_sent_or_refused(tracker, data, entry, other, how):
    """Whatever else it raised would count as a tracker that does not answer, and all that comes after would wait."""
    place = data.draw(st.sampled_from(paths(entry)[1:]))
    document = changed(entry, place, other, how)
    try:
        tracker._deliver([document])
    except PermanentError as error:
        assert "\n" not in str(error)


@settings(MANY, max_examples=300)
@given(
    text_of=st.sampled_from(TEXTS),
    # With lone surrogates, which JSON can have and UTF-8 cannot.
    text=st.text(st.characters(), min_size=1) | st.sampled_from(["\ud800", "a\udcffb", "\0", "x" * 3_000_000]),
)
def test_any_text_of_an_entry_is_sent_or_refused_on_a_line_that_can_be_logged(tracker, text_of, text):
    entry, path, how = text_of
    try:
        tracker._deliver([changed(entry, path, text, how)])
    except PermanentError as error:
        assert "\n" not in str(error) and str(error).encode()
        return
    assert len(text) < 2**20 and text.encode()


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (ValueError("a text with a NUL character"), PermanentError),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), PermanentError),
        # The page of a proxy while the tracker is away.
        (json.JSONDecodeError("Expecting value", "<html>", 0), json.JSONDecodeError),
        (requests.exceptions.JSONDecodeError("Expecting value", "<html>", 0), requests.exceptions.JSONDecodeError),
    ],
)
def test_a_value_that_no_tracker_takes_is_left_out_and_after_an_answer_that_is_no_json_an_entry_is_sent_again(
    error, becomes
):
    with pytest.raises(becomes), _permanent_errors():
        raise error


@pytest.mark.parametrize("how", ["file", "folder", "inside a folder", "chain"])
def test_no_link_of_a_folder_leads_to_another_file(tmp_path, how):
    """Whoever wrote the folder may have put links into it, and a name without dots may lead anywhere by one."""
    secret = tmp_path / "home" / ".ssh"
    secret.mkdir(parents=True)
    (secret / "id").write_text("secret")
    sweep = tmp_path / "sweep"
    (sweep / "figures").mkdir(parents=True)
    (sweep / "figures" / "own.png").write_text("own")
    name = {"file": "id", "folder": "ssh/id", "inside a folder": "figures/id", "chain": "two"}[how]
    links = {
        "id": secret / "id",
        "ssh": secret,
        "figures/id": secret / "id",
        "one": secret / "id",
        "two": sweep / "one",
    }
    for link, target in links.items():
        (sweep / link).symlink_to(target)
    with pytest.raises(PermanentError, match="not sent"):
        read_artifact(str(sweep), name)
    assert read_artifact(str(sweep), "figures/own.png") == b"own"
