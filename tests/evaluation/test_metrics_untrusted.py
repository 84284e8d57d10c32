"""Untrusted tensor files: one documented error, and statistics that are no such are computed again."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.evaluation.metrics.reference_statistics import _are_valid
from pipeline.evaluation.metrics.saved_tensors import SavedTensors
from pipeline.runtime import safetensors_io
from pipeline.runtime.safetensors_io import TensorFileError

MANY = settings(max_examples=200, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEY = {"extractor": "linear", "weights": "0a", "data": "0b", "num_samples": 5, "num_features": 5}
TENSORS = {
    "mu": torch.zeros(3, dtype=torch.float64),
    "sigma": torch.eye(3, dtype=torch.float64),
    "features": torch.ones(5, 3),
}
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool]


def signed(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "statistics" / "linear-5.safetensors"
    safetensors_io.write(str(path), TENSORS, KEY)
    return path


def read(path: Path) -> dict[str, torch.Tensor] | None:
    """Read it as the statistics of the store that it is in."""
    store = SimpleNamespace(url=str(path.parent.parent))
    return SavedTensors(store, path.stem, "the statistics").read(KEY, lambda tensors: _are_valid(tensors, 5))


def look(path: Path, content: bytes) -> None:
    """Read it as any tensor file is read, and as statistics."""
    path.write_bytes(content)
    try:
        found = safetensors_io.read(str(path))
        assert isinstance(found.header, dict) and all(
            isinstance(tensor, torch.Tensor) for tensor in found.tensors.values()
        )
    except TensorFileError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read(path)
    if found is not None:
        assert {name: found[name].shape for name in TENSORS} == {name: value.shape for name, value in TENSORS.items()}
        assert found["features"].dtype == torch.float32


@MANY
@given(content=st.binary(max_size=300))
@example(content=signed([[]] * 3))
@example(content=struct.pack("<Q", 200_000) + b"[" * 200_000)
@example(content=signed({"__metadata__": {"gebm": "[" * 200_000}}))
@example(content=signed({"__metadata__": {"gebm": "1" * 5000}}))
def test_any_bytes(file, content):
    look(file, content)


@MANY
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_file_that_was_changed(file, at, byte, cut):
    safetensors_io.write(str(file), TENSORS, KEY)
    data = bytearray(file.read_bytes())
    data[at % len(data)] = byte
    look(file, bytes(data[: len(data) - cut]))


@MANY
@given(data=st.data(), other=JSON, content=st.binary(max_size=40))
def test_any_header(file, data, other, content):
    """Of the format, of one tensor, and our own."""
    names = ["mu", "sigma", "features", "__metadata__", "more"]
    header = {
        name: {
            "dtype": data.draw(
                st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "BOOL", "U8", "I64", "C64"])
            ),
            "shape": data.draw(st.lists(st.integers(-1, 4), max_size=3)),
            "data_offsets": [0, len(content)],
        }
        for name in data.draw(st.sets(st.sampled_from(names), max_size=2))
    }
    header["__metadata__"] = data.draw(st.sampled_from([{"gebm": json.dumps(KEY)}, {"gebm": json.dumps(other)}, other]))
    look(file, signed(header, content))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_any_type_under_the_right_header(file, dtype):
    for name, right in TENSORS.items():
        safetensors_io.write(str(file), TENSORS | {name: right.to(dtype)}, KEY)
        look(file, file.read_bytes())


@MANY
@given(
    name=st.sampled_from(sorted(TENSORS)),
    shape=st.lists(st.integers(0, 6), max_size=3),
    value=st.sampled_from([0.0, 1.0, float("nan"), float("inf")]),
)
def test_numbers_of_any_shape_under_the_right_header(file, name, shape, value):
    other = torch.full(shape, value, dtype=TENSORS[name].dtype)
    safetensors_io.write(str(file), TENSORS | {name: other}, KEY)
    look(file, file.read_bytes())
    if value not in (0.0, 1.0) and other.numel():
        with pytest.warns(UserWarning, match="damaged"):
            assert read(file) is None
