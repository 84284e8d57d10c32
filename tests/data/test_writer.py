"""Making stores: what is in them, that it is the same each time, and what an interruption leaves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from pipeline.data import MissingStore, Position, load_images, open_store, sources, write_store
from pipeline.data.image_codec import resize_center_crop
from pipeline.data.writing import writer
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import Numbered, forget, make_reader
from tests.helpers.s3 import s3_bucket

ROOT = Path(__file__).resolve().parents[2]


def sums(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@pytest.mark.parametrize(("encoding", "other"), [("blocks", 2), ("images", 1)])
def test_the_bytes_depend_on_nothing_but_the_images(tmp_path, encoding: str, other: int) -> None:
    found = []
    for name, num_processes in (("a", 1), ("b", other)):
        settings = {"resolution": 8, "channels": 1, "encoding": encoding, "samples_per_shard": 500}
        report = write_store(sources.make("digits"), str(tmp_path / name), num_processes=num_processes, **settings)
        assert report.num_images == report.manifest.num_samples == 1797 and report.broken == ()
        found.append(sums(tmp_path / name))
    assert found[0] == found[1]
    assert sorted(found[0]) == ["manifest.json", *(f"shard-00000{i}.tar" for i in range(4))]


@pytest.mark.parametrize("encoding", ["blocks", "images"])
def test_a_store_holds_every_digit_unchanged(encoding: str) -> None:
    url = f"memory://writer/{encoding}"
    forget(url)
    write_store(sources.make("digits"), url, resolution=8, channels=1, encoding=encoding, samples_per_shard=500)
    images, labels = load_images(open_store(url))
    source = sources.make("digits")
    published = sorted((source.read(index)[0].tobytes(), source.read(index)[1]) for index in range(len(source)))
    stored = sorted((image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True))
    assert stored == published
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64


def test_each_shard_is_a_mixture_of_a_source_sorted_by_class() -> None:
    forget("memory://writer/mixture")

    class Sorted(Numbered):
        def read(self, index: int) -> tuple[np.ndarray, int]:
            return super().read(index)[0], index * 3 // self.size

    write_store(Sorted(600), "memory://writer/mixture", resolution=2, channels=1, samples_per_shard=100)
    labels = load_images(open_store("memory://writer/mixture"))[1].reshape(6, 100)
    for shard in labels:
        counts = torch.bincount(shard, minlength=3)
        # Drawn without replacement, a class has 100/3 of a shard; the standard deviation is < sqrt(100 * 2/9) < 4.8.
        assert (counts - 100 / 3).abs().max() < 5 * 4.8


def test_webdataset_reads_a_store(tmp_path) -> None:
    for encoding, names in (("images", {"png", "cls"}), ("blocks", {"images.npy", "labels.npy"})):
        write_store(
            Numbered(10), str(tmp_path / encoding), resolution=2, channels=1, encoding=encoding, num_processes=1
        )
        samples = list(webdataset.WebDataset(str(tmp_path / encoding / "shard-000000.tar"), shardshuffle=False))
        assert all({name for name in sample if not name.startswith("__")} == names for sample in samples)
        assert len(samples) == (10 if encoding == "images" else 1)


def test_a_finished_store_is_not_written_over(tmp_path) -> None:
    write_store(Numbered(4), str(tmp_path), resolution=2, channels=1)
    before = sums(tmp_path)
    with pytest.raises(UserError, match="there is a finished store at"):
        write_store(Numbered(5), str(tmp_path), resolution=2, channels=1)
    assert sums(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 0}, "not positive"),
        ({"resolution": 10**6}, "8192 pixels at most"),
        ({"channels": 4}, "1 or 3 channels"),
        ({"encoding": "pickle"}, "choose one of images, blocks"),
        ({"samples_per_shard": 0}, "at least one"),
        ({"num_processes": 0}, "at least one"),
    ],
)
def test_settings_that_make_no_store_are_one_line(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_store(Numbered(4), "memory://writer/never", **{"resolution": 2, "channels": 1, **change})


@pytest.mark.parametrize(("limit", "counts"), [(10**9, [10]), (12, [3, 3, 3, 1]), (1, [1] * 10)])
def test_a_shard_of_large_images_has_fewer_of_them(monkeypatch, tmp_path, limit: int, counts: list[int]) -> None:
    monkeypatch.setattr(writer, "_SHARD_BYTES", limit)
    manifest = write_store(Numbered(10), str(tmp_path), resolution=2, channels=1).manifest
    assert [shard.num_samples for shard in manifest.shards] == counts


def test_a_place_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot reach") as caught:
        write_store(Numbered(4), str(tmp_path / "file" / "store"), resolution=2, channels=1)
    assert "\n" not in str(caught.value)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for image in (pixels, png(Image.fromarray(pixels))):
        assert np.array_equal(resize_center_crop(image, 16, 3), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (21, 64), (20, 20)])
def test_the_middle_square_is_kept(shape: tuple[int, int]) -> None:
    """Outside the central square all is white and inside all is black: nothing of the outside may be seen."""
    height, width = shape
    side = min(shape)
    pixels = np.full((*shape, 1), 255, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side + (height - side) % 2, left : left + side + (width - side) % 2] = 0
    fitted = resize_center_crop(pixels, 10, 1)
    # Away from its border: the filter reaches three pixels, and mixes those with the pixels next to it.
    assert fitted.shape == (1, 10, 10) and (fitted[:, 3:-3, 3:-3] == 0).all() and fitted.mean() < 30


def test_reducing_antialiases() -> None:
    """A checkerboard of single pixels is grey from afar; taking every eighth pixel would give black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert (np.abs(resize_center_crop(board, 8, 1).astype(int) - 127) <= 8).all()


def test_every_mode_becomes_the_channels_of_the_store() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(np.stack([grey] * 3, -1)),
        Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])),
        Image.fromarray(grey).convert("P"),
    ):
        for channels in (1, 3):
            assert np.array_equal(resize_center_crop(png(image), 16, channels), np.stack([grey] * channels))


SCRIPT = """
import sys
from pipeline.data import sources, write_store
if __name__ == "__main__":
    write_store(sources.make("images", sys.argv[1]), sys.argv[2], resolution=16, channels=3,
                encoding=sys.argv[3], samples_per_shard=10, num_processes=2)
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> str:
    """Photographs that take a while: a run over them can be stopped in the middle."""
    path = tmp_path_factory.mktemp("photographs") / "photographs.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        photographs = [png(Image.fromarray(random.integers(0, 256, (512, 512, 3), np.uint8))) for _ in range(5)]
        for index in range(200):
            archive.writestr(f"{index:04d}.png", photographs[index % 5])
        archive.writestr("broken.png", b"broken")
    return str(path)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("how", "encoding"), [(signal.SIGKILL, "blocks"), (signal.SIGINT, "images")])
def test_an_interrupted_run_leaves_no_store_and_the_next_one_finishes_it(
    tmp_path, photographs: str, how: signal.Signals, encoding: str
) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", SCRIPT, photographs, str(store), encoding]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 180
    while len(list(store.glob("*.tar.json"))) < 4:
        assert run.poll() is None and time.monotonic() < deadline, run.stderr.read()
        time.sleep(0.002)
    workers = children(run.pid)
    assert len(workers) >= 2
    if how == signal.SIGKILL:
        run.kill()  # the parent alone: its workers have to notice
    else:
        os.killpg(run.pid, how)  # as a terminal does
    run.communicate(timeout=60)
    assert run.returncode != 0
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)

    with pytest.raises(MissingStore):
        open_store(str(store))
    finished = {file.name.removesuffix(".json") for file in store.glob("*.tar.json")}
    assert 4 <= len(finished) < 21, "the run was not stopped in the middle"
    before = {name: (store / name).stat().st_mtime_ns for name in finished}
    (store / "shard-000020.tar.part").write_bytes(b"cut short")
    reports = [
        write_store(
            sources.make("images", photographs),
            str(path),
            resolution=16,
            channels=3,
            encoding=encoding,
            samples_per_shard=10,
            num_processes=num_processes,
        )
        for path, num_processes in ((store, 2), (tmp_path / "undisturbed", 1))
    ]
    assert sums(store) == sums(tmp_path / "undisturbed")
    assert {name: (store / name).stat().st_mtime_ns for name in finished} == before, "finished shards were made again"
    assert reports[0].broken == reports[1].broken == ("broken.png",)
    assert reports[0].num_images == 200


def test_shards_of_other_settings_are_made_again(tmp_path) -> None:
    """What an interrupted run left is not what this one wants: none of it may get into the store."""
    other, wanted = tmp_path / "store", tmp_path / "undisturbed"
    write_store(Numbered(40), str(other), resolution=4, channels=1, samples_per_shard=4, num_processes=1)
    for index, shard in enumerate(sorted(other.glob("*.tar"))):
        (other / f"{shard.name}.json").write_text(['{"settings": {}}', "", "[]"][index % 3])
    (other / "manifest.json").unlink()
    (other / "notes.txt").write_text("mine")
    for path in (other, wanted):
        write_store(Numbered(40), str(path), resolution=2, channels=1, samples_per_shard=10, num_processes=1)
    assert sums(other) == {**sums(wanted), "notes.txt": sums(other)["notes.txt"]}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "shard-000000.tar"},
        {"name": "../shard-000001.tar"},
        {"num_samples": "4"},
        {"num_samples": -1},
        {"bytes": True},
        {"sha256": None},
        {"more": 1},
    ],
)
def test_a_sidecar_is_only_trusted_as_it_was_written(tmp_path, monkeypatch, change: dict) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    store, undisturbed = tmp_path / "store", tmp_path / "undisturbed"
    settings = {"resolution": 2, "channels": 1, "samples_per_shard": 4, "num_processes": 1}
    write_store(Numbered(12), str(undisturbed), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_publish_manifest", interrupt)
        with pytest.raises(Interrupted):
            write_store(Numbered(12), str(store), **settings)
    sidecar = store / "shard-000001.tar.json"
    entry = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(entry | {"shard": entry["shard"] | change}))
    write_store(Numbered(12), str(store), **settings)
    assert sums(store) == sums(undisturbed)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.mark.parametrize(("encoding", "workers"), [("blocks", 1), ("images", 0)])
def test_a_store_on_s3(bucket: str, tmp_path, encoding: str, workers: int, monkeypatch) -> None:
    monkeypatch.setenv("GEBM_STORES", f"{bucket}/stores")
    settings = {
        "resolution": 8,
        "channels": 1,
        "encoding": encoding,
        "samples_per_shard": 500,
        "num_processes": 1 + workers,
    }
    local = write_store(sources.make("digits"), str(tmp_path / "local"), **{**settings, "num_processes": 1})
    with pytest.raises(MissingStore):
        open_store(f"digits-{encoding}")
    remote = write_store(sources.make("digits"), f"digits-{encoding}", **settings)
    assert remote.manifest == local.manifest
    store = open_store(f"digits-{encoding}")
    assert store.url == f"{bucket}/stores/digits-{encoding}"
    names = {path.rpartition("/")[2] for path in store.fs.find(store.path)}
    # An object store keeps the file of a lock that was released.
    assert names - {".lease.json"} == {"manifest.json", *(shard.name for shard in store.manifest.shards)}

    kwargs = {"batch_size": 128, "position": Position(1, 5)}
    here = iter(make_reader(open_store(str(tmp_path / "local")), **kwargs))
    there = iter(make_reader(store, num_workers=workers, **kwargs))
    for _ in range(20):
        one, other = next(here), next(there)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    there.close()

    with pytest.raises(UserError, match="there is a finished store"):
        write_store(sources.make("digits"), f"digits-{encoding}", **settings)
    store.fs.rm_file(store.shard_path(store.manifest.shards[2]))
    with pytest.raises(UserError, match=r"shard-000002\.tar is missing"):
        open_store(f"digits-{encoding}")


def test_a_source_on_s3(bucket: str, tmp_path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(6):
            archive.writestr(f"{index}.png", png(Image.fromarray(np.full((2, 2), index, np.uint8))))
            fsspec.filesystem("s3").pipe_file(f"{bucket}/folder/{index}.png", png(Image.new("L", (2, 2), index)))
    fsspec.filesystem("s3").put_file(str(path), f"{bucket}/a.zip")
    for url in (f"{bucket}/a.zip", f"{bucket}/folder"):
        store = str(tmp_path / url.rpartition("/")[2]) + "-store"
        source = sources.make("images", url)
        write_store(source, store, resolution=2, channels=1, samples_per_shard=3, num_processes=1)
        images, labels = load_images(open_store(store))
        assert sorted(images[:, 0, 0, 0].tolist()) == list(range(6)) and labels is None


def test_an_endpoint_that_is_not_there_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(UserError, match="cannot reach s3://bucket/store") as caught:
        open_store("s3://bucket/store")
    assert "\n" not in str(caught.value)
    fsspec.filesystem("s3").clear_instance_cache()


def test_the_progress_of_a_job_without_a_terminal_is_a_line(tmp_path, capfd) -> None:
    write_store(Numbered(40), str(tmp_path / "s"), resolution=2, channels=1, progress=True, num_processes=1)
    output = capfd.readouterr()
    assert "40 of 40 images" in output.err and "images/s" in output.err and output.out == ""
