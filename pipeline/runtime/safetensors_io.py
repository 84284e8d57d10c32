"""One safetensors file behind any fsspec URL: named tensors and a JSON header, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import fsspec
import safetensors
import safetensors.torch
from torch import Tensor

from pipeline.runtime.errors import one_line
from pipeline.runtime.filesystem import write_file
from pipeline.runtime.untrusted import CHECKPOINT, parse_json

__all__ = ["TensorFile", "TensorFileError", "exists", "read", "write"]

# safetensors' metadata maps strings to strings: everything typed goes into one JSON string under this key.
_KEY = "gebm"


class TensorFileError(Exception):
    """The file cannot be written, or cannot be read, or is none that :func:`write` made."""


class TensorFile(NamedTuple):
    """What :func:`read` returns.

    Attributes:
        tensors: the named tensors, on the CPU.
        header: the JSON object that was stored with them.
        digest: SHA-256 of the file's bytes, hexadecimal.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    digest: str


def exists(url: str) -> bool:
    """Whether there is a file.

    Args:
        url: any fsspec URL or local path.

    Returns:
        Whether there is one now; nothing is remembered from an earlier look.

    Example:
        >>> exists("memory://doc/none.safetensors")
        False
    """
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache(path.rsplit("/", 1)[0])
    return bool(filesystem.exists(path))


def read(url: str) -> TensorFile:
    """Read tensors and header; never unpickles.

    Args:
        url: any fsspec URL or local path.

    Returns:
        The tensors, the header and the file's digest.

    Raises:
        FileNotFoundError: there is no such file.
        TensorFileError: the file is out of reach, cut, corrupt or of another format.

    Example:
        >>> import torch
        >>> write("memory://doc/a.safetensors", {"x": torch.ones(2)}, {"made by": "hand"})
        >>> read("memory://doc/a.safetensors").header
        {'made by': 'hand'}
    """
    filesystem, path = fsspec.core.url_to_fs(url)
    # Each file system has exceptions of its own (botocore's and google's are no OSError), so none can be listed.
    try:
        data = filesystem.cat_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise TensorFileError(f"{url}: {one_line(error)}") from error
    try:
        length = int.from_bytes(data[:8], "little")
        header = parse_json(parse_json(data[8 : 8 + length], CHECKPOINT)["__metadata__"][_KEY], CHECKPOINT)
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TensorFileError(f"{url}: {one_line(error)}") from error
    if not isinstance(header, dict):
        raise TensorFileError(f"{url}: its header is not a JSON object")
    return TensorFile(tensors, header, hashlib.sha256(data).hexdigest())


def write(url: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header so that no reader ever sees half a file.

    Args:
        url: any fsspec URL or local path; missing folders are made.
        tensors: contiguous tensors by name.
        header: anything that JSON can hold.

    Raises:
        TensorFileError: the place cannot be written.

    Example:
        >>> import torch
        >>> write("memory://doc/b.safetensors", {"x": torch.zeros(3)}, {})
        >>> read("memory://doc/b.safetensors").tensors["x"].tolist()
        [0.0, 0.0, 0.0]
    """
    data = safetensors.torch.save(dict(tensors), metadata={_KEY: json.dumps(dict(header), sort_keys=True)})
    try:
        write_file(url, data)
    except Exception as error:
        raise TensorFileError(f"{url}: {one_line(error)}") from error
