"""Whole files: the old content or the new, at every moment."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.runtime.filesystem import filesystem, write_file


def test_of_several_writers_at_once_one_is_the_last_and_nothing_else_is_left(tmp_path):
    url = f"{tmp_path}/folder/file"
    contents = [bytes([number]) * 200_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_file(url, content), contents * 4))
    assert (tmp_path / "folder" / "file").read_bytes() in contents
    assert os.listdir(tmp_path / "folder") == ["file"]


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    url = f"{tmp_path}/file"
    write_file(url, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(url, b"new")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a::b.zip", "a b (1).zip", "a,b=c#d.zip", "josé.zip", "[1]*?.zip", "100%.zip"])
def test_a_path_may_have_any_name_and_begin_at_home(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_bytes(b"here")
    for url in (f"~/{name}", f"{tmp_path}/{name}"):
        files, path = filesystem(url)
        assert files.cat_file(path) == b"here"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_share_that_cannot_sync_takes_a_file_all_the_same(tmp_path, monkeypatch, code):
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_file(f"{tmp_path}/file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and os.listdir(tmp_path) == ["file"]
