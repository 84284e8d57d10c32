"""Output that cannot be written is refused before anything is computed, with one line."""

from __future__ import annotations

import pytest

from pipeline.runtime import filesystem
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import require_writable


@pytest.mark.parametrize("name", ["in-the-way", "in-the-way/below", "in-the-way/deep/below"])
@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_checkpoint_is_read(refused, tmp_path, verb, name):
    (tmp_path / "in-the-way").write_text("a file")
    line = refused(verb, "checkpoint=nowhere", f"output={tmp_path / name}")
    assert f"cannot write to output={tmp_path / name}" in line


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_so_is_the_default_folder(refused, tmp_path, verb):
    (tmp_path / "results").write_text("a file")
    assert f"cannot write to output={tmp_path}/results/" in refused(verb, "checkpoint=nowhere")


@pytest.mark.parametrize("verb", ["sweep", "train"])
@pytest.mark.parametrize("words", [[], ["output=elsewhere"]])
def test_so_are_those_of_a_sweep_and_of_its_tracker(refused, tmp_path, stores, verb, words):
    (tmp_path / "results").write_text("a file")
    line = refused(verb, "conf=digits", f"data.store={stores}/digits-8", *words)
    assert f"cannot write to {'tracking.uri' if words else 'output'}={tmp_path}/results" in line


def test_a_look_leaves_nothing_and_changes_nothing(tmp_path):
    (tmp_path / ".writable").write_text("the user's own")
    require_writable(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".writable"]
    assert (tmp_path / ".writable").read_text() == "the user's own"


def test_a_storage_that_answers_with_errors_of_its_own_is_one_line(monkeypatch):
    class Refused(Exception):
        """As botocore's, which is no OSError."""

    def refuse(url: str, content: bytes) -> None:
        raise Refused("Access\n Denied")

    monkeypatch.setattr(filesystem, "write_file", refuse)
    with pytest.raises(UserError, match=r"^cannot write to output=memory://a/b \(Access Denied\): choose another"):
        require_writable("memory://a/b")
