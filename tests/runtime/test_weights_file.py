"""Files of weights: what is next to the tensors, and files that ask for more memory than they have bytes."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.runtime.errors import UserError
from pipeline.runtime.weights_file import read_tensors
from tests.helpers.untrusted import one_line

NUMBERS = ("f8", "f4", "i8", "i4", "?")


def saved(content: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@given(st.data(), st.sampled_from(NUMBERS), st.booleans())
def test_numbers_of_numpy_are_read_as_they_were(data, kind, is_archive):
    number = np.dtype(kind).type(data.draw(arrays.from_dtype(np.dtype(kind))))
    content = saved({"w": torch.arange(3.0), "best": number}, _use_new_zipfile_serialization=is_archive)
    read = read_tensors(content, "G.pth")
    assert read["w"].tolist() == [0, 1, 2] and read["best"].tobytes() == number.tobytes()
    assert read["best"].dtype == number.dtype


@given(arrays.scalar_dtypes().filter(lambda kind: kind.newbyteorder("=").str[1:] not in ("f8", "f4", "i8", "i4", "b1")))
def test_scalars_of_other_types_are_refused_in_a_line(kind):
    number = np.zeros(1, kind)[0]
    with pytest.raises(UserError, match=r"^G.pth: it holds more than tensors .*, and was not loaded"):
        read_tensors(saved({"best": number}), "G.pth")


@given(st.binary(max_size=40), st.integers(0, 2000))
def test_damage_is_one_line(noise, at):
    whole = saved({"w": torch.arange(3.0), "best": np.float64(2)}, _use_new_zipfile_serialization=False)
    one_line(read_tensors, whole[:at] + noise + whole[at + len(noise) :], "G.pth")


# Torch itself reads types that are newer than its archives from those alone.
@pytest.mark.parametrize(
    ("kind", "is_archive"),
    [
        *((kind, True) for kind in (torch.float8_e4m3fn, torch.uint16)),
        *((kind, old) for kind in (torch.float32, torch.bfloat16, torch.bool, torch.int64) for old in (True, False)),
    ],
)
def test_tensors_of_each_type_parameters_and_attributes_are_read(kind, is_archive):
    tagged = torch.nn.Parameter(torch.ones(2))
    tagged.tag = "head"
    content = {"w": torch.ones(2, 3).to(kind), "p": tagged, "size": torch.Size([2]), "kind": kind, "names": {"a"}}
    read = read_tensors(saved(content, _use_new_zipfile_serialization=is_archive), "G.pth")
    assert read["w"].dtype is kind and read["w"].float().eq(1).all() and read["p"].tag == "head"
    assert (read["size"], read["kind"], read["names"]) == ((2,), kind, {"a"})


def test_no_file_of_weights_takes_more_memory_than_it_has_bytes():
    """In a process that may have little more than it has: what was made would be there, or a MemoryError."""
    program = textwrap.dedent(
        """
        import codecs, io, resource
        import numpy as np, torch
        from pipeline.runtime.errors import UserError
        from pipeline.runtime.weights_file import read_tensors

        class Call:
            def __init__(self, *call): self.call = call
            def __reduce__(self): return self.call[0], self.call[1:]

        def saved(content, **options):
            torch.save({"w": torch.ones(2), "x": content}, file := io.BytesIO(), **options)
            return file.getvalue()

        def doubled(codec):
            text = b"a" * 1000
            for _ in range(30): text = Call(codecs.encode, text, codec)
            return text

        scalar, many = np.float64(0).__reduce__()[0], 2**30
        bombs = {
            "void": Call(scalar, np.dtype(f"V{many}")),
            "text": Call(scalar, np.dtype(f"U{many // 4}")),
            "fields": Call(scalar, np.dtype([("a", "f8", (many // 8,))])),
            "subarray": Call(np.dtype, ("f8", (many // 8,))),
            "bytes": Call(bytearray, many),
            "codec": doubled("hex"),
            "tensor": Call(torch.Tensor, many // 4),
            "typed": Call(torch.FloatTensor, many // 4),
            "copy": Call(torch._utils._rebuild_device_tensor_from_cpu_tensor, torch.zeros(1).expand(many // 8),
                torch.float64, "cpu", False),
        }
        files = {(name, zipped): saved(bomb, _use_new_zipfile_serialization=zipped)
            for name, bomb in bombs.items() for zipped in (True, False)}
        # Whatever a reader imports at its first file.
        read_tensors(saved(np.float64(0)), "G.pth")
        own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + 2**27, own + 2**27))
        for (name, zipped), file in files.items():
            assert len(file) < 10_000, (name, len(file))
            try:
                read_tensors(file, "G.pth")
                print(name, "read")
            except UserError as error:
                print(name, error)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == 18
    # A tensor of untouched memory is the one thing that is asked for at all.
    assert {name for name, line in lines if "it holds more than tensors" not in line} <= {"tensor"}, done.stdout
