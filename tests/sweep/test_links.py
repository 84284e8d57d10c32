"""A link inside a folder that is resumed or written to leads nowhere: it is refused, and what it names is untouched."""

from __future__ import annotations

import os

import pytest
import yaml

from pipeline import config as schema
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import refuse_links, write_file
from pipeline.sweep.plan import load_sweep
from pipeline.tracking.journal import Journal
from pipeline.tracking.summary import SweepSummary


@pytest.fixture
def sweep(tmp_path, small):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(schema.to_dict(small())))
    SweepSummary(str(folder), metric="fid_gebm", mode="min", shown=(), facts={}).write()
    return folder


PLACES = ["trials", "trials/000", "trials/000/checkpoints", "trials/000/checkpoints/step-00000008", "tracking.jsonl"]


@pytest.mark.parametrize("place", [*PLACES, "tracking.jsonl.sent", "report", "report/report.html", ".ray", "dangling"])
def test_a_link_at_any_place_of_a_folder_that_is_resumed_is_refused(sweep, tmp_path, place):
    theirs = tmp_path / "theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    (theirs / "checkpoints/index.json").write_text("{}")
    load_sweep(str(sweep))
    (sweep / place).parent.mkdir(parents=True, exist_ok=True)
    (sweep / place).symlink_to(theirs if place != "dangling" else tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{place} is a link"):
        load_sweep(str(sweep))
    assert (theirs / "checkpoints/index.json").read_text() == "{}"


def test_a_sweep_into_a_folder_with_a_link_is_refused_as_well_as_its_resumption(refused, sweep, tmp_path):
    (sweep / "trials").mkdir()
    (sweep / "trials/000").symlink_to(tmp_path)
    assert "trials/000 is a link" in refused("sweep", f"resume={sweep}")
    (sweep / "summary.json").unlink()
    assert "trials/000 is a link" in refused("sweep", "conf=digits", f"output={sweep}")


def test_a_folder_that_is_reached_by_a_link_and_what_ray_made_in_its_own_are_fine(sweep, tmp_path):
    (tmp_path / "link").symlink_to(sweep)
    (sweep / ".ray").mkdir()
    (sweep / ".ray" / "latest").symlink_to(sweep)
    refuse_links(str(tmp_path / "link"), skip=(".ray",))
    load_sweep(str(tmp_path / "link"))


def test_a_pipe_is_refused_and_not_waited_for(sweep):
    os.mkfifo(sweep / "tracking.jsonl")
    with pytest.raises(UserError, match="is not a regular file"):
        load_sweep(str(sweep))


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.jsonl.sent", "journal.jsonl.sent.new"])
def test_a_journal_writes_through_no_link(tmp_path, name):
    theirs = tmp_path / "theirs"
    theirs.write_text("")
    (tmp_path / name).symlink_to(theirs)
    if name == "journal.jsonl":
        with pytest.raises(UserError, match=r"cannot write the journal .*journal\.jsonl"):
            Journal(tmp_path / "journal.jsonl", lambda entries: None)
    else:
        theirs.write_text("0")
        journal = Journal(tmp_path / "journal.jsonl", lambda entries: None)
        journal.put({"metric": 1.0})
        assert journal.close(flush_timeout=30) == 0
    assert theirs.read_text() == ("" if name == "journal.jsonl" else "0")


def test_a_file_takes_the_place_of_a_link_and_not_of_what_it_names(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    (tmp_path / "file").symlink_to(theirs)
    write_file(str(tmp_path / "file"), b"ours")
    assert theirs.read_text() == "theirs" and (tmp_path / "file").read_text() == "ours"
