"""Sources whose files change: two versions of them are never mixed in one store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import Manifest, load_images, open_store, sources, write_store
from pipeline.data.sources import fingerprint
from pipeline.data.sources.fingerprint import fingerprint_files
from pipeline.data.writing import writer
from pipeline.runtime.errors import UserError
from tests.data.test_sources import pack

SETTINGS = {"resolution": 4, "channels": 3, "samples_per_shard": 3, "num_processes": 1}


class Interrupted(Exception):
    pass


def pictures(value: int, number: int = 9) -> dict[str, bytes]:
    """Images of one value, all encoded in as many bytes."""
    image = np.full((4, 4, 3), value, np.uint8)
    content = b"P6 4 4 255\n" + image.tobytes()
    return {f"{index}.ppm": content for index in range(number)}


def replace(path: Path, files: dict[str, bytes]) -> None:
    """Put other files of the same names and sizes in place, with the times of the former ones."""
    before = {each: each.stat() for each in ([path] if path.is_file() else sorted(path.iterdir()))}
    pack(path, files)
    for each, status in before.items():
        os.utime(each, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["photos", "photos.zip", "photos.tar", "photos.tar.gz"])
def test_what_was_made_of_other_bytes_is_made_again(tmp_path, monkeypatch, name: str) -> None:
    """Even where names, sizes and times are the same."""
    url, store = pack(tmp_path / name, pictures(10)), tmp_path / "store"

    def interrupt(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_publish_manifest", interrupt)
        with pytest.raises(Interrupted):
            write_store(sources.make("images", url), str(store), **SETTINGS)
    kept = (store / "shard-000001.tar").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_publish_manifest", interrupt)
        with pytest.raises(Interrupted):
            write_store(sources.make("images", url), str(store), **SETTINGS)
    assert (store / "shard-000001.tar").stat().st_mtime_ns == kept, "the same files were taken for others"
    replace(tmp_path / name, pictures(200))
    write_store(sources.make("images", url), str(store), **SETTINGS)
    assert np.unique(load_images(open_store(str(store)))[0].numpy()).tolist() == [200]


def test_files_that_change_while_a_store_is_made_of_them_make_none(tmp_path, monkeypatch) -> None:
    url, original = pack(tmp_path / "photos", pictures(10)), writer._write_shard

    def write(job, advance, task):
        if task.number == 1:
            (tmp_path / "photos" / "0.ppm").write_bytes(pictures(11)["0.ppm"])
        return original(job, advance, task)

    monkeypatch.setattr(writer, "_write_shard", write)
    with pytest.raises(UserError, match=r"photos changed while .*store was made of it: run the same command again$"):
        write_store(sources.make("images", url), str(tmp_path / "store"), **SETTINGS)
    assert not (tmp_path / "store" / "manifest.json").exists()
    monkeypatch.undo()
    write_store(sources.make("images", url), str(tmp_path / "store"), **SETTINGS)


def test_a_manifest_says_of_which_files_it_is(tmp_path) -> None:
    url = pack(tmp_path / "photos.zip", pictures(10))
    manifest = write_store(sources.make("images", url), str(tmp_path / "store"), **SETTINGS).manifest
    assert manifest.source.fingerprint == sources.make("images", url).fingerprint
    text = (tmp_path / "store" / "manifest.json").read_text()
    assert Manifest.from_json(text, "here") == manifest
    older = json.loads(text)
    del older["source"]["fingerprint"], older["resize_filter"]
    before = Manifest.from_json(json.dumps(older, indent=1) + "\n", "here")
    assert before.source.fingerprint is None and before.resize_filter is None
    assert before.to_json() == json.dumps(older, indent=1) + "\n", "the digest of an older store has changed"


@pytest.mark.parametrize("whole", [2**26, 0])
def test_a_fingerprint_changes_with_names_contents_and_times(tmp_path, monkeypatch, whole: int) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE", whole)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 1000)
    other.write_bytes(b"b" * 1000)
    files = {"one": str(one), "other": str(other)}
    before = [fingerprint_files(files), fingerprint_files({"one": str(one)})]
    assert before == [fingerprint_files(files), fingerprint_files({"one": str(one)})]
    assert fingerprint_files({"one": str(other), "other": str(one)}) != before[0]
    assert fingerprint_files({"two": str(one)}) != before[1]
    status = one.stat()
    one.write_bytes(b"a" * 999 + b"c")
    if not whole:
        assert fingerprint_files(files) != before[0], "the time has changed"
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint_files({"one": str(one)}) != before[1], "the tail has changed"
    assert (fingerprint_files(files) != before[0]) == bool(whole)


def test_a_folder_behind_a_network_is_known_by_what_its_storage_says() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for name, data in pictures(1).items():
        fs.pipe_file(f"/changing/{name}", data)
    before = sources.make("images", "memory://changing").fingerprint
    assert sources.make("images", "memory://changing").fingerprint == before
    fs.pipe_file("/changing/0.ppm", pictures(2)["0.ppm"])
    assert sources.make("images", "memory://changing").fingerprint != before


def test_a_list_of_splits_is_part_of_a_source(tmp_path) -> None:
    """A split of as many other images is another source."""
    picture = pictures(1)["0.ppm"]
    url = pack(tmp_path / "img_align_celeba.zip", {f"img_align_celeba/{i}.ppm": picture for i in range(4)})
    found = []
    for splits in ("0011", "1100"):
        lines = [f"{index}.ppm {split}\n" for index, split in enumerate(splits)]
        (tmp_path / "list_eval_partition.txt").write_text("".join(lines))
        found.append(sources.make("celeba", url, "train").fingerprint)
    assert found[0] != found[1]


@pytest.mark.parametrize("resize_filter", ["lanczos", "bicubic", "bilinear", "box"])
def test_a_store_is_resized_with_the_filter_that_was_asked_for(tmp_path, resize_filter: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    report = write_store(
        sources.make("images", str(tmp_path)), str(tmp_path / "store"), resize_filter=resize_filter, **SETTINGS
    )
    assert report.manifest.resize_filter == resize_filter
    stored = load_images(open_store(str(tmp_path / "store")))[0][0].numpy()
    expected = Image.fromarray(pixels).resize((4, 4), getattr(Image.Resampling, resize_filter.upper()))
    assert np.array_equal(stored, np.asarray(expected).transpose(2, 0, 1))


def test_shards_of_another_filter_are_made_again(tmp_path, monkeypatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / "0.png")
    settings = {**SETTINGS, "resize_filter": "box"}
    for name in ("store", "undisturbed"):
        source = sources.make("images", str(tmp_path / "0.png").removesuffix("/0.png"))
        if name == "store":
            write_store(source, str(tmp_path / name), **SETTINGS)
            (tmp_path / name / "manifest.json").unlink()
    with pytest.raises(UserError, match="choose one of lanczos, bicubic, bilinear, box"):
        write_store(source, str(tmp_path / "store"), **SETTINGS | {"resize_filter": "nearest"})
    manifests = [write_store(source, str(tmp_path / name), **settings).manifest for name in ("store", "undisturbed")]
    assert manifests[0] == manifests[1] and manifests[0].resize_filter == "box"


def test_a_second_writer_is_refused_before_its_source_is_fetched(tmp_path) -> None:
    """Whatever its settings: neither may finish over the other."""
    url, store, opened = pack(tmp_path / "photos", pictures(10)), str(tmp_path / "store"), []

    class Slow(sources.NAMES["images"]):
        def read(self, index: int):
            if not opened:
                opened.append(True)
                for resolution in (2, 4):
                    with pytest.raises(UserError, match=r"another process writes to .*store .*: wait for it"):
                        write_store(self.never, store, **SETTINGS | {"resolution": resolution})
            return super().read(index)

        def never(self):
            raise AssertionError("the source was opened")

    report = write_store(lambda: Slow(url, None), store, **SETTINGS)
    assert opened and report.manifest.resolution == 4 and not (tmp_path / "store" / ".lease.json").exists()
    with pytest.raises(UserError, match="there is a finished store"):
        write_store(lambda: pytest.fail("the source was opened"), store, **SETTINGS)


def test_a_source_that_is_not_there_leaves_no_folder(tmp_path) -> None:
    with pytest.raises(UserError, match="there is no data at"):
        write_store(lambda: sources.make("images", str(tmp_path / "nowhere")), str(tmp_path / "store"), **SETTINGS)
    assert not (tmp_path / "store").exists()
