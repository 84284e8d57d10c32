"""Files of untrusted weights: safetensors, or a torch file read by torch's restricted unpickler.

Nothing in such a file is run. What it holds is bounded before it is used: its bytes, those of its members once they
are unpacked, the number and depth of its values, and the bytes that its tensors claim to have.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import as_user_error, filesystem
from pipeline.runtime.untrusted import CHECKPOINT, InvalidDocument, parse_json

__all__ = ["WeightsFile", "read_tensors", "read_weights"]

_MAX_BYTES = 2**33
_MAX_DEPTH = 4
_MAX_TENSORS = 100_000
# What a torch file of tensors and plain values refers to. The restricted unpickler knows more, such as what makes a
# tensor or an array of any size of one number.
_NAMES = re.compile(
    r"torch\.\w+Storage|torch\.storage\.UntypedStorage|torch\.(bfloat16|float\w+|u?int\d+|bool|complex\d+)|torch\.Size|"
    r"torch\.device|torch\.Tensor|torch\._tensor\._rebuild_from_type_v2|torch\._utils\._rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?|sparse_tensor|qtensor)|"
    r"torch\.serialization\._get_layout|torch\.nn\.parameter\.Parameter|collections\.(OrderedDict|Counter)|"
    r"(__builtin__|builtins)\.(set|complex)|_codecs\.encode|numpy\.dtype|numpy\.(core|_core)\.multiarray\.scalar"
)
# A torch file that is no archive has so many pickles before its numbers.
_PICKLES = 5
# Numbers of training scripts, such as a best score; what makes them makes numbers only.
_NUMBERS = ("f8", "f4", "i8", "i4", "b1")


class _NumberType:
    """Stand-in for ``numpy.dtype`` in a pickle, which is one of a few types of numbers.

    Args:
        name: Its name, as NumPy pickles it.
    """

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in _NUMBERS:
            raise InvalidDocument(f"it holds more than tensors (numpy.dtype {name!r:.20})")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        # Version and byte order; what follows is that of fields and arrays.
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise InvalidDocument("it holds more than tensors (the state of a numpy.dtype)")
        self.dtype = self.dtype.newbyteorder(state[1])


def _make_number(kind: Any, content: Any) -> Any:
    """Return a number of NumPy, whose bytes are those that the file has."""
    if not isinstance(kind, _NumberType) or not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        raise InvalidDocument("it holds more than tensors (a scalar of numpy that is no number)")
    return np.frombuffer(content, kind.dtype)[0]


_STAND_INS: list[Any] = [
    _NumberType,
    (_NumberType, "numpy.dtype"),
    (_make_number, "numpy.core.multiarray.scalar"),
    (_make_number, "numpy._core.multiarray.scalar"),
]


class WeightsFile(NamedTuple):
    """Content of a file of weights.

    Attributes:
        url: The file.
        groups: Its mappings of names to tensors, by the keys that lead to each; the whole file is ``""``.
        rest: Keys of values that are no tensors.
        digest: SHA-256 of the file, hexadecimal.
    """

    url: str
    groups: dict[str, dict[str, Tensor]]
    rest: tuple[str, ...]
    digest: str


def read_weights(url: str, key: str) -> WeightsFile:
    """Read a file of weights.

    Args:
        url: A path or any fsspec URL.
        key: The key that names it, for messages.

    Raises:
        UserError: It cannot be read, is no file of weights, or holds more than tensors and plain values.
    """
    data = _read(url, key)
    tree, groups, rest = read_tensors(data, f"{key}={url}"), {}, []
    for path, value in _walk(tree, (), 0):
        group, name = ".".join(path[:-1]), path[-1] if path else ""
        if isinstance(value, Tensor):
            groups.setdefault(group, {})[name] = value
        else:
            rest.append(".".join(path))
        if sum(map(len, groups.values())) + len(rest) > _MAX_TENSORS:
            raise UserError(f"{key}={url}: it has more than {_MAX_TENSORS:,} values, and is no file of weights")
    _require_sizes(groups, len(data), f"{key}={url}")
    return WeightsFile(url, groups, tuple(rest), hashlib.sha256(data).hexdigest())


def read_tensors(data: bytes, name: str) -> Any:
    """Return the content of a file of weights, read by readers that make tensors and plain values, and nothing else.

    Args:
        data: The file.
        name: The file, for messages.

    Raises:
        UserError: It is no file of weights, or has code in it.
    """
    if not data:
        raise UserError(f"{name}: the file is empty; get it again")
    if data.lstrip()[:1] == b"<":
        raise UserError(
            f"{name}: it is a web page, as of a login or a preview, and no weights; download the file itself"
        )
    try:
        if _is_safetensors(data):
            return safetensors.torch.load(data)
        _refuse_packed(data)
        _refuse_makers(data)
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # The restricted unpickler fails in many ways on a file that is not one.
    except Exception as error:
        reason = _reason(error)
        raise UserError(f"{name}: {reason}, and was not loaded; give tensors alone, such as a state_dict") from None


def _read(url: str, key: str) -> bytes:
    files, path = filesystem(url)
    with as_user_error(f"{key}={url}"):
        files.invalidate_cache(path.rsplit("/", 1)[0])
        if not files.exists(path):
            raise UserError(f"{key}={url}: there is no such file; give the path or the URL of weights")
        # A pipe would be waited for without end.
        if not files.isfile(path):
            raise UserError(f"{key}={url}: it is no file; give the path or the URL of weights")
        content = files.cat_file(path, start=0, end=_MAX_BYTES + 1)
    data = content.encode() if isinstance(content, str) else bytes(content)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{key}={url}: it has more than {_MAX_BYTES >> 30} GiB, and is no generator or discriminator")
    return data


def _is_safetensors(data: bytes) -> bool:
    """Return whether a file begins as safetensors do, by the length of a header that is a JSON object."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > len(data) - 8:
        return False
    parse_json(data[8 : 8 + length], CHECKPOINT)
    return True


def _refuse_packed(data: bytes) -> None:
    """Refuse an archive whose members are larger than they are in it: torch writes them as they are."""
    if data[:2] != b"PK":
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise InvalidDocument("it is compressed, as no file of torch is")


def _refuse_makers(data: bytes) -> None:
    """Refuse what refers to more than tensors and plain values need, before any of it is made."""
    for pickled in _pickles(data):
        names, texts = set[str](), set[str]()
        for opcode, argument, _ in pickled:
            if opcode.name == "GLOBAL":
                names.add(str(argument).replace(" ", "."))
            elif isinstance(argument, str):
                texts.add(argument)
        if unknown := sorted(name for name in names if not _NAMES.fullmatch(name)):
            raise InvalidDocument(f"it holds more than tensors ({unknown[0]:.100})")
        # Bytes are pickled as a text in Latin-1. Other encodings double what they are given, time after time.
        if "_codecs.encode" in names and any(map(_is_other_codec, texts)):
            raise InvalidDocument("it holds more than tensors (_codecs.encode)")


def _pickles(data: bytes) -> Iterator[Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]]:
    """Yield the operations of each pickle of a torch file."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith(".pkl"):
                    yield pickletools.genops(archive.read(member))
        return
    stream = io.BytesIO(data)
    for _ in range(_PICKLES):
        yield pickletools.genops(stream)


def _is_other_codec(text: str) -> bool:
    try:
        return codecs.lookup(text).name != "iso8859-1"
    except (LookupError, ValueError):
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidDocument):
        return one_line(error, limit=200)
    text = one_line(error)
    _, unsupported, name = text.partition("Unsupported global: GLOBAL ")
    return f"it holds more than tensors ({name.split()[0]})" if unsupported else "it is damaged or no file of weights"


def _walk(value: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the tensors and the keys of plain values of nested mappings, down to a few levels."""
    if isinstance(value, Tensor) or not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        yield path, value
        return
    for name, inner in value.items():
        # Steps and moments of an optimizer are no weights of a network.
        is_deeper = isinstance(inner, Mapping) and "param_groups" not in inner
        yield from _walk(inner, (*path, str(name)), depth + 1) if is_deeper else [((*path, str(name)), inner)]


def _require_sizes(groups: Mapping[str, Mapping[str, Tensor]], num_bytes: int, name: str) -> None:
    """Refuse tensors that claim more bytes than the file has, as views of a single number can."""
    tensors = [tensor for group in groups.values() for tensor in group.values()]
    if any(tensor.layout != torch.strided or tensor.is_quantized for tensor in tensors):
        raise UserError(
            f"{name}: it has sparse or quantized tensors, and no weights of a network here; save them dense"
        )
    for group in groups.values():
        # Two groups may share their tensors, as a generator and its moving average do at first.
        if sum(tensor.numel() * tensor.element_size() for tensor in group.values()) > num_bytes:
            raise UserError(f"{name}: its tensors claim more than its {num_bytes:,} bytes; save copies, and no views")
