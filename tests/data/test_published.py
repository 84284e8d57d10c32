"""Published counts: what is smaller than its publisher says, or another table, makes no store unless that is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config.schema import Data, Source
from pipeline.data import open_store, sources
from pipeline.data.sources.published import PUBLISHED, Part, check_counts
from pipeline.data.writing.build import build_store
from pipeline.runtime.errors import UserError
from tests.data.test_sources import cifar10, encoded, lsun, npz, pack
from tests.data.test_tables import NAMES, SEPARATORS, small


def settings(kind: str, url: str, store: Path, split: str | None = None, published_counts: bool = True) -> Data:
    shape = (
        {"encoding": "rows", "resolution": None}
        if kind in NAMES
        else {"encoding": "blocks", "resolution": 8, "channels": 3}
    )
    source = Source(kind=kind, url=url, split=split, published_counts=published_counts)
    return Data(store=str(store), source=source, samples_per_shard=100, num_writers=1, **shape)


def cut_cifar10(folder: Path) -> tuple[str, str]:
    return pack(folder / "cifar-10-binary.tar.gz", cifar10()), "data_batch_1.bin has 3 images, not 10,000"


def cut_celeba(folder: Path) -> tuple[str, str]:
    url = pack(folder / "img_align_celeba.zip", {"img_align_celeba/000001.jpg": encoded(1, "JPEG")})
    return url, "all has 1 images, not 202,599"


def cut_imagenet32(folder: Path) -> tuple[str, str]:
    batches = {f"train_data_batch_{number}.npz": npz(number, 2) for number in range(1, 10)}
    return pack(folder / "Imagenet32_train_npz.zip", batches), "train has 18 images, not 1,281,167"


def cut_lsun(folder: Path) -> tuple[str, str]:
    lsun(folder / "tower_val_lmdb", {b"a": encoded(1, "WEBP")})
    return str(folder / "tower_val_lmdb"), "tower_val has 1 images, not 300"


def zipped_lsun(folder: Path) -> tuple[str, str]:
    lsun(folder / "x", {b"a": encoded(1, "WEBP")})
    files = {"data.mdb": (folder / "x" / "data.mdb").read_bytes()}
    return pack(folder / "church_outdoor_train_lmdb.zip", files), "church_outdoor_train has 1 images, not 126,227"


CUT = {
    "cifar10": cut_cifar10,
    "celeba": cut_celeba,
    "imagenet32": cut_imagenet32,
    "lsun": cut_lsun,
    "lsun in a zip file": zipped_lsun,
}


@pytest.mark.parametrize("case", CUT)
def test_a_part_of_a_data_set_is_refused_unless_it_was_asked_for(tmp_path, case: str) -> None:
    make: Callable[[Path], tuple[str, str]] = CUT[case]
    url, message = make(tmp_path)
    kind, store = case.partition(" ")[0], tmp_path / "store"
    with pytest.raises(UserError, match=f"{message}; .*published_counts=false") as caught:
        build_store(settings(kind, url, store))
    assert "\n" not in str(caught.value) and not (store / "manifest.json").exists()
    build_store(settings(kind, url, store, published_counts=False))
    assert open_store(str(store)).manifest.num_samples > 0


@pytest.mark.parametrize("kind", NAMES)
def test_a_part_of_a_table_is_refused_unless_it_was_asked_for(tmp_path, kind: str) -> None:
    (tmp_path / NAMES[kind]).write_bytes(small(kind)[0])
    with pytest.raises(UserError, match=f"is not {kind} as it was published: .* has [0-9]+ .*, not [0-9,]+; fetch"):
        build_store(settings(kind, str(tmp_path / NAMES[kind]), tmp_path / "store"))
    build_store(settings(kind, str(tmp_path / NAMES[kind]), tmp_path / "store", published_counts=False))


@pytest.mark.parametrize("kind", ["redwine", "whitewine", "parkinsons"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_table_that_was_cut_in_its_last_number_is_too_short(tmp_path, monkeypatch, kind: str, cut: int) -> None:
    """As many rows as published, and no more than a digit missing: the last number is another one."""
    data, rows = small(kind)
    data = data.rstrip(b"\n")
    path = tmp_path / NAMES[kind]
    lines = data.decode().splitlines()[1:]
    counts = {(path.name, "rows"): len(rows), (path.name, "characters"): sum(map(len, lines))}
    monkeypatch.setitem(PUBLISHED, kind, counts)
    for whole in (data, data + b"\n", data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + data + b"\n\n"):
        path.write_bytes(whole)
        check_counts(sources.make(kind, str(path)))
    path.write_bytes(data[:-cut])
    with pytest.raises(UserError, match=r"has .* characters, not "):
        check_counts(sources.make(kind, str(path)))


@pytest.mark.parametrize("tail", [bytes(100), b"\n" + bytes(100), SEPARATORS["redwine"] + bytes(10)])
def test_a_table_with_a_tail_of_zeros_is_damaged(tmp_path, tail: bytes) -> None:
    """As a download leaves that reserved its space."""
    path = tmp_path / NAMES["redwine"]
    path.write_bytes(small("redwine")[0].rstrip(b"\n") + tail)
    with pytest.raises(UserError, match=r"^line 2[12] of .*: fetch it again$"):
        sources.make("redwine", str(path))


def test_the_file_of_another_table_is_not_taken_for_this_one(tmp_path) -> None:
    (tmp_path / "winequality-white.csv").write_bytes(small("whitewine")[0])
    with pytest.raises(UserError, match=r"is the file of whitewine, not winequality-red\.csv"):
        sources.make("redwine", str(tmp_path / "winequality-white.csv"))


def test_what_is_published_in_full_passes() -> None:
    source = SimpleNamespace(kind="imagenet32", url="x", parts=(Part("train", 1_281_167), Part("val", 50_000)))
    check_counts(source)
    check_counts(sources.make("digits"))
    source.parts = (Part("train", 1_281_167), Part("val", 49_999))
    with pytest.raises(UserError, match="val has 49,999 images, not 50,000"):
        check_counts(source)


def test_the_published_splits_add_up() -> None:
    counts = {name: number for (name, _), number in PUBLISHED["celeba"].items()}
    assert counts["train"] + counts["valid"] + counts["test"] == counts["all"]
    assert sum(PUBLISHED["cifar10"].values()) == 60_000


def test_a_batch_that_is_a_copy_of_another_is_refused(tmp_path) -> None:
    """As many images as published, and a fifth of them twice."""
    files = cifar10(200)
    for name in files:
        if name.endswith(".bin"):
            batch = np.frombuffer(files[name], np.uint8).reshape(-1, 3073).copy()
            batch[:, 0] = np.random.default_rng(int(batch[0, 1])).integers(0, 10, 200)
            files[name] = batch.tobytes()
    sources.make("cifar10", pack(tmp_path / "whole", files)).close()
    first, second = (f"cifar-10-batches-bin/data_batch_{number}.bin" for number in (1, 2))
    with pytest.raises(UserError, match=r"data_batch_2\.bin of .* has the labels of data_batch_1\.bin"):
        sources.make("cifar10", pack(tmp_path / "copied", files | {second: files[first]}))
    batches = {f"train_data_batch_{number}.npz": npz(min(number, 2), 200) for number in (1, 2, 3)}
    with pytest.raises(UserError, match=r"train_data_batch_3\.npz of .* has the labels of train_data_batch_2\.npz"):
        sources.make("imagenet32", pack(tmp_path / "batches", batches))
