"""Files of folders, zip and tar files: links, separators, duplicates, ends, and that every file is accounted for."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.sources import archives, folder_walk
from pipeline.data.sources.archives import open_archive
from pipeline.data.sources.base import BrokenImage
from pipeline.runtime.errors import UserError

# What an entry of an archive or a folder can be: contents of a file, or a link to a name.
FILE, HARD, SYMBOLIC = "file", "hard", "symbolic"

NAMES = st.sampled_from(["1.png", "2.png", "a/1.png", "a/2.png", "a/b/1.png", "b/1.png", "c"])
TARGETS = st.sampled_from(["1.png", "a/1.png", "a/b/1.png", "../1.png", "a", "gone.png", "/etc/passwd", "../../x"])
ENTRIES = st.lists(st.tuples(NAMES, st.sampled_from([FILE, HARD, SYMBOLIC]), TARGETS), max_size=12)


def write_tar(entries: list[tuple[str, str, str]], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for number, (name, kind, target) in enumerate(entries):
            info = tarfile.TarInfo(name)
            if kind == FILE:
                data = b"%d" % number
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = tarfile.LNKTYPE if kind == HARD else tarfile.SYMTYPE, target
                archive.addfile(info)
    return buffer.getvalue()


def accounted(archive: archives.Archive) -> tuple[dict[str, bytes], dict[str, str], list[tuple[str, str]]]:
    """All that an archive holds: contents by name, reasons of what is broken by name, and what is left out."""
    contents, broken = {}, {}
    for name in archive.names:
        try:
            contents[name] = archive.read(name)
        except BrokenImage as error:
            broken[name] = error.reason
    archive.close()
    return contents, broken, archive.left_out


@given(entries=ENTRIES)
@example(entries=[("a/1.png", FILE, ""), ("b/1.png", HARD, "a/1.png"), ("2.png", SYMBOLIC, "b/1.png")])
@example(entries=[("1.png", HARD, "2.png"), ("2.png", HARD, "1.png")])
@example(entries=[("1.png", FILE, ""), ("1.png", FILE, ""), ("c", SYMBOLIC, "a"), ("a/1.png", FILE, "")])
@settings(max_examples=60)
def test_every_member_of_a_tar_file_is_accounted_for(entries: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        path.write_bytes(write_tar(entries))
        contents, broken, left_out = accounted(open_archive(str(path)))
    assert len(contents) + len(broken) + len(left_out) == len(entries)
    files = {b"%d" % number: name for number, (name, kind, _) in enumerate(entries) if kind == FILE}
    assert all(data in files for data in contents.values()), "something else than a member was read"


def test_links_inside_a_tar_file_are_read_as_their_target(tmp_path) -> None:
    entries = [
        ("a/1.png", FILE, ""),
        ("b/hard.png", HARD, "./a/1.png"),
        ("b/soft.png", SYMBOLIC, "../a/1.png"),
        ("b/chain.png", SYMBOLIC, "soft.png"),
        ("b/early.png", HARD, "b/late.png"),
        ("b/late.png", FILE, ""),
        ("b/gone.png", HARD, "a/2.png"),
        ("b/out.png", SYMBOLIC, "/etc/passwd"),
        ("b/up.png", SYMBOLIC, "../../x.png"),
        ("b/folder", SYMBOLIC, "../a"),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(write_tar(entries))
    contents, broken, left_out = accounted(open_archive(str(path)))
    assert {name: data for name, data in contents.items() if data == b"0"}.keys() == {
        "a/1.png",
        "b/hard.png",
        "b/soft.png",
        "b/chain.png",
    }
    assert contents["b/early.png"] == contents["b/late.png"] == b"5"
    assert broken == {"b/gone.png": "link to nothing"}
    assert sorted(left_out) == [
        ("b/folder", "link to a folder of the archive"),
        ("b/out.png", "link out of the archive"),
        ("b/up.png", "link out of the archive"),
    ]


@given(cut=st.integers(0, 10 * 1024 + 512))
@example(cut=6 * 1024)
@example(cut=5 * 1024 + 512)
def test_a_tar_file_that_was_cut_is_refused(cut: int) -> None:
    whole = write_tar([(f"{number}.png", FILE, "") for number in range(10)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        # Up to here there is no whole block of zeros after the last file.
        path.write_bytes(whole[: min(cut, 10 * 1024 + 511)])
        with pytest.raises(UserError, match=r"damaged|neither") as caught:
            open_archive(str(path))
        assert "\n" not in str(caught.value)
        path.write_bytes(whole[: 10 * 1024 + 512 + cut])
        assert len(open_archive(str(path)).names) == 10


def test_a_tar_file_with_another_in_place_of_a_header_or_behind_its_end(tmp_path) -> None:
    one, two = (write_tar([(f"{number}.png", FILE, "")]) for number in (1, 2))
    path = tmp_path / "a.tar"
    path.write_bytes(one + two)
    assert open_archive(str(path)).names == ["1.png", "2.png"]
    path.write_bytes(one + b"padding" * 200)
    assert open_archive(str(path)).names == ["1.png"]
    path.write_bytes(one[:1024] + b"garbage." * 64 + two)
    with pytest.raises(UserError, match="has no end-of-archive block after its 1 files"):
        open_archive(str(path))


def test_a_pipe_in_an_archive_or_a_folder_is_left_out_and_never_waited_for(tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "pipe.png", "pipe.png")
    assert open_archive(str(path)).left_out == [("pipe.png", "pipe, socket or device")]
    found = open_archive(str(folder))
    assert found.names == [] and [name for name, _ in found.left_out] == ["device.png", "pipe.png"]


def write_zip(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, data)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return str(path)


def test_names_in_a_zip_file_of_windows_have_slashes(tmp_path) -> None:
    files = {"train\\": b"", "train\\cat\\1.png": b"1", "train\\dog/2.png": b"2", "./3.png": b"3"}
    contents, broken, left_out = accounted(open_archive(write_zip(tmp_path / "a.zip", files)))
    assert contents == {"train/cat/1.png": b"1", "train/dog/2.png": b"2", "3.png": b"3"}
    assert broken == {} and left_out == []


def test_links_in_a_zip_file_are_read_as_their_target(tmp_path) -> None:
    links = {"b/1.png": "../a/1.png", "b/2.png": "2.png", "b/3.png": "/etc/passwd", "c": "a"}
    url = write_zip(tmp_path / "a.zip", {"a/1.png": b"1"}, links)
    contents, broken, left_out = accounted(open_archive(url))
    assert contents == {"a/1.png": b"1", "b/1.png": b"1"} and broken == {"b/2.png": "link to nothing"}
    assert sorted(left_out) == [("b/3.png", "link out of the archive"), ("c", "link to a folder of the archive")]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_two_files_of_one_name_is_read_and_the_other_counted(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for data in (b"1", b"2"):
            archive.writestr("1.png", data)
    contents, _, left_out = accounted(open_archive(str(tmp_path / "a.zip")))
    assert contents == {"1.png": b"2"} and left_out == [("1.png", "replaced by a later file of its name")]


def test_a_zip_file_whose_names_are_not_what_they_claim_is_one_line(tmp_path) -> None:
    path = tmp_path / "a.zip"
    write_zip(path, {"caf\u00e9.png": b"1"})
    path.write_bytes(path.read_bytes().replace("caf\u00e9".encode(), b"caf\xe9\xe9"))
    with pytest.raises(UserError, match=r"is a damaged zip file .*fetch it again"):
        open_archive(str(path))


def test_a_member_too_large_to_read_whole_is_one_broken_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 3)
    (tmp_path / "folder").mkdir()
    for name, data in (("1.png", b"123"), ("2.png", b"1234")):
        (tmp_path / "folder" / name).write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "folder", "")
    url = write_zip(tmp_path / "a.zip", {"1.png": b"123", "2.png": b"1234"})
    remote = "memory://too_large"
    fsspec.filesystem("memory").put(str(tmp_path / "folder"), "/too_large", recursive=True)
    for each in (url, str(tmp_path / "a.tar"), str(tmp_path / "folder"), remote):
        contents, broken, _ = accounted(open_archive(each))
        assert contents == {"1.png": b"123"} and broken == {"2.png": archives.TOO_LARGE}


def test_links_in_a_folder_are_followed_without_an_end_to_loops(tmp_path) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for folder in (root / "bird", elsewhere / "cat" / "deep"):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"1")
    (root / "cat").symlink_to("../elsewhere/cat")
    (root / "same").symlink_to("bird")
    (root / "bird" / "file.png").symlink_to("../../elsewhere/cat/deep/1.png")
    (root / "bird" / "gone.png").symlink_to("/nowhere/gone.png")
    (root / "bird" / "self.png").symlink_to("self.png")
    (root / "up").symlink_to("..")
    (root / "here").symlink_to(".")
    (elsewhere / "cat" / "back").symlink_to(root)
    (elsewhere / "cat" / "all").symlink_to("/")
    archive = open_archive(str(root))
    contents, broken, left_out = accounted(archive)
    assert set(contents) == {"bird/1.png", "bird/file.png", "cat/deep/1.png", "same/1.png", "same/file.png"}
    assert set(broken) == {f"{folder}/{name}.png" for folder in ("bird", "same") for name in ("gone", "self")}
    assert set(broken.values()) == {"link to nothing"}
    assert left_out == [(name, "link to a folder that it is in") for name in ("cat/all", "cat/back", "here", "up")]
    assert archive.followed["cat"] == str(elsewhere / "cat") and "same" not in archive.followed


@given(
    links=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8, unique=True),
    files=st.lists(st.integers(0, 3), max_size=4, unique=True),
)
@example(links=[(0, 1), (1, 0)], files=[0, 1])
@settings(max_examples=30)
def test_any_folders_that_link_to_each_other_have_an_end(links: list[tuple[int, int]], files: list[int]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for number in range(4):
            os.mkdir(f"{root}/{number}")
        for number in files:
            Path(f"{root}/{number}/file.png").write_bytes(b"%d" % number)
        for source, target in links:
            os.symlink(f"../{target}", f"{root}/{source}/to{target}")
        listing = folder_walk.list_folder(root)
        for name in listing.names:
            real = os.path.relpath(os.path.realpath(f"{root}/{name}"), os.path.realpath(root))
            assert real in {f"{number}/file.png" for number in files}
        assert {f"{number}/file.png" for number in files} <= set(listing.names)
        # Each way of links without a repetition, once.
        assert len(set(listing.names)) == len(listing.names) and all(name.count("/") <= 4 for name in listing.names)


def test_links_that_multiply_without_an_end_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_walk, "_MAX_FOLLOWED", 50)
    for number in range(12):
        (tmp_path / f"{number}").mkdir()
        for link in ("a", "b"):
            (tmp_path / f"{number}" / link).symlink_to(f"../{number + 1}")
    with pytest.raises(UserError, match="more than 50 links to folders"):
        open_archive(str(tmp_path))


def test_a_file_that_cannot_be_read_is_one_broken_file(tmp_path, monkeypatch) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"1")
    archive = open_archive(str(tmp_path))
    (tmp_path / "2.png").unlink()
    assert accounted(archive)[1] == {"2.png": "cannot be read (no such file or directory)"}

    def deny(path: str, **_: object) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(archive._fs, "cat_file", deny)
    with pytest.raises(BrokenImage) as caught:
        archive.read("1.png")
    assert caught.value.reason == "cannot be read (permission denied)"

    def exhaust(path: str, **_: object) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(archive._fs, "cat_file", exhaust)
    with pytest.raises(UserError, match="Too many open files"):
        archive.read("1.png")
