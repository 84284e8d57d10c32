"""Untrusted stores: whatever is in them, nothing runs, and the error is a one-line message."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import Manifest, Shard, open_store
from pipeline.data.reading.shard import read_shard
from pipeline.runtime.errors import UserError
from tests.helpers.numbered_source import forget, members, numbered_store

MANY = settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("../x.tar"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def one_line(function, *arguments) -> str:
    """Return the message of a refusal, which has one line, or an empty one if nothing was refused."""
    try:
        function(*arguments)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    return ""


@pytest.fixture(scope="module", params=["blocks", "images"])
def store(request):
    url = f"memory://untrusted/{request.param}"
    forget(url)
    return numbered_store(url, 7, 4, request.param)


@MANY
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_a_manifest(content):
    one_line(Manifest.from_json, content, "s3://bucket/store")


@MANY
@given(data=st.data(), other=JSON)
def test_a_manifest_with_any_value_of_any_field(store, data, other):
    document = json.loads(store.manifest.to_json())
    parent, key = document, data.draw(st.sampled_from(sorted(document)))
    if key == "shards" and data.draw(st.booleans()):
        parent = document["shards"][data.draw(st.integers(0, len(document["shards"]) - 1))]
        key = data.draw(st.sampled_from(sorted(parent)))
    elif key == "source" and data.draw(st.booleans()):
        parent = document["source"]
        key = data.draw(st.sampled_from(sorted(parent)))
    parent[key] = other
    content = json.dumps(document).encode()
    refusal = one_line(Manifest.from_json, content, store.url)
    # A valid encoding, number or list of labels may also contradict another field, which is then the one that is named.
    assert not refusal or key in refusal or "should be" in refusal
    before = store.fs.cat_file(f"{store.path}/manifest.json")
    store.fs.pipe_file(f"{store.path}/manifest.json", content)
    try:
        one_line(open_store, store.url)
    finally:
        store.fs.pipe_file(f"{store.path}/manifest.json", before)


# What manifests of earlier versions do not have.
OPTIONAL = {"resize_filter", "ledger", "fingerprint"}


@MANY
@given(data=st.data(), name=st.text(max_size=60), other=JSON)
def test_a_manifest_with_any_other_key_or_one_key_less(store, data, name, other):
    document = json.loads(store.manifest.to_json())
    parent = data.draw(st.sampled_from([document, document["source"], *document["shards"]]))
    if data.draw(st.booleans()):
        del parent[missing := data.draw(st.sampled_from(sorted(parent.keys() - OPTIONAL)))]
        assert f"{missing}: make" in one_line(Manifest.from_json, json.dumps(document), store.url)
    elif name not in parent:
        parent[name] = other
        assert "has an unknown key" in one_line(Manifest.from_json, json.dumps(document), store.url)


def look(store, content: bytes) -> None:
    """Read a shard whose sum is right, and all that is in it."""
    path = store.shard_path(store.manifest.shards[0])
    before = store.fs.cat_file(path)
    store.fs.pipe_file(path, content)
    shard = Shard(store.manifest.shards[0].name, 4, max(len(content), 1), hashlib.sha256(content).hexdigest())
    try:
        one_line(lambda: read_shard(store, shard).gather(np.arange(4)))
    finally:
        store.fs.pipe_file(path, before)


@MANY
@given(content=st.binary(max_size=2000))
def test_any_bytes_for_a_shard(store, content):
    look(store, content)


@MANY
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 3000))
def test_a_shard_that_was_changed_and_signed_again(store, at, byte, cut):
    data = bytearray(store.fs.cat_file(store.shard_path(store.manifest.shards[0])))
    data[at % len(data)] = byte
    look(store, bytes(data[: len(data) - cut]))


NAMES = st.sampled_from(["../../x.png", "/etc/passwd", "a/b.images.npy", "x", "x.pkl", "x.py", "x.pth", "000000.cls"])


@MANY
@given(data=st.data(), content=st.binary(max_size=300), name=NAMES, kind=st.sampled_from("0125"))
def test_a_shard_whose_members_are_others(store, data, content, name, kind):
    contents = members(store.fs.cat_file(store.shard_path(store.manifest.shards[0])))
    if data.draw(st.booleans()):
        contents[data.draw(st.sampled_from(sorted(contents)))] = content
    else:
        contents[name] = content
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, value in contents.items():
            info = tarfile.TarInfo(member)
            info.size = len(value)
            if member == name:
                info.type, info.linkname = kind.encode(), "/etc/passwd"
                info.size = len(value) if kind == "0" else 0
            tar.addfile(info, io.BytesIO(value[: info.size]))
    look(store, buffer.getvalue())
