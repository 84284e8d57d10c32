"""What a store must be to be opened and read: anything else is one line, and nothing in a shard is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Manifest, MissingStore, Shard, Store, load_images, open_store, resolve_url
from pipeline.data.manifest import Source
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import forge, forget, numbered_store

URL = "memory://manifest/store"


@pytest.fixture
def store() -> Store:
    forget(URL)
    return numbered_store(URL, 8)


def refused(message: str) -> None:
    """Opening and reading the store fails with one line that says this and names the store."""
    with pytest.raises(UserError, match=message) as caught:
        load_images(open_store(URL))
    assert "\n" not in str(caught.value) and URL in str(caught.value)


@given(
    st.builds(
        lambda sizes, samples, source: Manifest(
            num_samples=sum(sizes),
            shards=tuple(Shard(f"{i}.tar", size, 10**6 * size, f"{size:064x}") for i, size in enumerate(sizes)),
            source=source,
            **samples,
        ),
        sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
        samples=st.fixed_dictionaries(
            {
                "resolution": st.integers(1, 512),
                "channels": st.sampled_from([1, 3]),
                "encoding": st.sampled_from(["images", "blocks"]),
                "labels": st.none() | st.lists(st.text(), min_size=1, max_size=4).map(tuple),
            }
        )
        | st.fixed_dictionaries(
            {
                "resolution": st.none(),
                "channels": st.integers(1, 1000),
                "encoding": st.just("rows"),
                "labels": st.none(),
            }
        ),
        source=st.builds(Source, kind=st.text(), url=st.none() | st.text(), split=st.none() | st.text()),
    )
)
def test_a_manifest_is_what_was_written(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json(), URL)
    assert again == manifest and again.digest == manifest.digest
    assert np.empty(manifest.sample_shape, manifest.dtype).nbytes == manifest.sample_bytes


def test_the_digest_changes_with_a_shard(store: Store) -> None:
    before = store.manifest.digest
    forge(store, {"000000000.labels.npy": None, "000000000.labels.npy ": b""})
    assert open_store(URL).manifest.digest != before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resolution", 0, "resolution should be"),
        ("resolution", "32", "resolution should be"),
        ("resolution", True, "resolution should be"),
        ("channels", 2, "channels should be"),
        ("channels", True, "channels should be"),
        ("encoding", "pickles", "encoding should be"),
        ("labels", "cat", "labels should be a valid list"),
        ("labels", [1], r"labels\[0\] should be a valid string"),
        ("source", None, "source should be an object"),
        ("source", {"kind": "digits"}, "no key source.url"),
        ("num_samples", 9, "num_samples should be 8 as in the shards, not 9"),
        ("num_samples", 0, "num_samples should be 8"),
        ("shards", [], "shards should have at least 1 item"),
        ("shards", {}, "shards should be a valid list"),
        ("shards", [3], r"shards\[0\] should be an object"),
        ("format_version", 2, "format_version should be 1, not 2"),
        ("more", 1, "unknown key more"),
        ("more\nlines", 1, r"unknown key 'more\\nlines'"),
    ],
)
def test_a_wrong_manifest_is_one_line(store: Store, key: str, value: object, message: str) -> None:
    path = f"{store.path}/manifest.json"
    manifest = json.loads(store.fs.cat_file(path))
    store.fs.pipe_file(path, json.dumps({**manifest, key: value}).encode())
    refused(message)


@pytest.mark.parametrize("key", ["name", "num_samples", "bytes", "sha256"])
@pytest.mark.parametrize("value", ["../../etc/passwd.tar", 0, -1, None, 1.5, "0" * 63])
def test_a_wrong_shard_entry_is_one_line(store: Store, key: str, value: object) -> None:
    path = f"{store.path}/manifest.json"
    manifest = json.loads(store.fs.cat_file(path))
    manifest["shards"][0][key] = value
    store.fs.pipe_file(path, json.dumps(manifest).encode())
    refused(rf"shards\[0\]\.{key} should")


def test_every_key_is_needed(store: Store) -> None:
    path = f"{store.path}/manifest.json"
    manifest = json.loads(store.fs.cat_file(path))
    for key in manifest.keys() - {"resize_filter", "ledger"}:
        store.fs.pipe_file(path, json.dumps({k: v for k, v in manifest.items() if k != key}).encode())
        refused(f"no key {key}")


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"", "is empty"), (b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "it should be an object")],
)
def test_a_manifest_that_is_none_is_one_line(store: Store, text: bytes, message: str) -> None:
    store.fs.pipe_file(f"{store.path}/manifest.json", text)
    refused(message)


def test_no_store_is_said_by_its_url_alone() -> None:
    with pytest.raises(MissingStore) as caught:
        open_store("memory://manifest/nowhere")
    assert str(caught.value) == "no finished store at memory://manifest/nowhere"


def test_a_place_that_cannot_be_reached_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot reach nosuch://bucket/store") as caught:
        open_store("nosuch://bucket/store")
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MissingStore):
        open_store(str(tmp_path / "file"))


def test_names_lie_under_the_root_of_stores(monkeypatch, tmp_path) -> None:
    for root in (str(tmp_path), "s3://bucket/stores/"):
        monkeypatch.setenv("GEBM_STORES", root)
        assert resolve_url("cifar10-32") == f"{root.rstrip('/')}/cifar10-32"
        for given_whole in ("s3://other/x", "/abs/x", "memory://x"):
            assert resolve_url(given_whole) == resolve_url(f"{given_whole}/") == given_whole
        for relative in ("./x", "../x", "~/x"):
            assert resolve_url(relative) == os.path.abspath(os.path.expanduser(relative))
    monkeypatch.setenv("GEBM_STORES", "stores")
    assert resolve_url("digits") == os.path.abspath("stores/digits")  # workers run elsewhere
    monkeypatch.delenv("GEBM_STORES")
    assert resolve_url("digits").endswith(os.path.join("gebm", "stores") + "/digits")
    with pytest.raises(UserError, match="empty"):
        resolve_url("")


def test_a_shard_that_is_missing_or_cut_short_is_seen_when_the_store_is_opened(store: Store) -> None:
    path = store.shard_path(store.manifest.shards[1])
    data = store.fs.cat_file(path)
    store.fs.pipe_file(path, data[:-1])
    refused("shard-000001.tar .* its manifest says")
    store.fs.rm_file(path)
    refused("shard-000001.tar is missing")


class _Trap:
    """Untrusted object in a shard: unpickling it would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


@pytest.mark.parametrize("member", ["pkl", "pickle", "pyd", "images.npy", "labels.npy", "pth", "json"])
def test_a_pickle_is_refused_and_not_executed(store: Store, tmp_path, member: str) -> None:
    target = tmp_path / "executed"
    trap = np.empty(1, object)
    trap[0] = _Trap(str(target))
    for payload in (pickle.dumps(trap[0]), _npy(trap, allow_pickle=True)):
        forget(URL)
        store = numbered_store(URL, 8)
        forge(store, {f"000000000.{member}": payload})
        refused("shard-000000.tar .* has the member '000000000." + member)
        assert not target.exists()
    # REDUCE is the instruction that calls a function when it is read.
    operations = {operation.name for operation, _, _ in pickletools.genops(pickle.dumps(trap[0]))}
    assert "REDUCE" in operations, "the trap does not work, so the test shows nothing"


def _npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"000000000.images.npy": _npy(np.zeros((4, 1, 3, 3), np.uint8))}, "is not an array"),
        ({"000000000.images.npy": _npy(np.zeros((4, 3, 2, 2), np.uint8))}, "is not an array"),
        ({"000000000.images.npy": _npy(np.zeros((4, 1, 2, 2), np.float32))}, "is not an array"),
        ({"000000000.images.npy": _npy(np.zeros((3, 1, 2, 2), np.uint8))}, "with 4 labels for 3 images"),
        ({"000000000.images.npy": _npy(np.zeros((4, 1, 2, 2), np.uint8))[:-1]}, "no array of numbers"),
        ({"000000000.labels.npy": _npy(np.array([0, 1, 2, 3]))}, "a label that is not below 3"),
        ({"000000000.labels.npy": _npy(np.array([0, -1, 2, 1]))}, "a label that is not below 3"),
        ({"000000000.labels.npy": None}, "with images.npy only"),
        ({"000000000.labels.npy": None, "000000000.images.npy": None}, "holds 0 images, its manifest says 4"),
        ({"noextension": b""}, "no part of a store"),
        ({"__hidden__.pkl": b""}, "no part of a store"),
        ({"../000000000.images.npy": b""}, "no part of a store"),
    ],
)
def test_blocks_that_are_not_what_the_manifest_says(store: Store, change: dict, message: str) -> None:
    forge(store, change)
    refused(f"shard-000000.tar .*{message}")


def _png(shape: tuple[int, ...]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"000000000.png": _png((3, 3))}, r"has shape \(1, 3, 3\)"),
        ({"000000000.png": _png((2, 2, 3))}, r"has shape \(3, 2, 2\)"),
        ({"000000000.png": _png((2, 2, 4))}, "mode is RGBA"),
        ({"000000000.png": b"no image"}, "is not an image of a store"),
        ({"000000000.cls": b"3"}, "no label below 3"),
        ({"000000000.cls": b"-1"}, "no label below 3"),
        ({"000000000.cls": b"one"}, "no label below 3"),
        ({"000000000.cls": None}, "with png only"),
        ({"000000000.jpg": b""}, "with jpg only"),
        ({"000000000.cls": None, "000000000.png": None}, "holds 3 images, its manifest says 4"),
        ({"000000000.images.npy": b""}, "no part of a store"),
    ],
)
def test_images_that_are_not_what_the_manifest_says(change: dict, message: str) -> None:
    forget(URL)
    forge(numbered_store(URL, 8, encoding="images"), change)
    refused(f"shard-000000.tar .*{message}")
