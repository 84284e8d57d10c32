"""The one door for documents that anybody may have written: JSON, YAML, safetensors and PNG, parsed within limits.

Each limit holds before memory is asked for what it limits: the bytes of a file before they are read, the number of
values or pixels, their depth and the aliases before a parser builds them. What is beyond a limit is an
:class:`InvalidDocument`, which the callers turn into one line about their file. Nothing here runs code that a document
names.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
import yaml

from pipeline.runtime.errors import one_line

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "JOURNAL",
    "SUMMARY",
    "MANIFEST",
    "PICTURE",
    "InvalidDocument",
    "Limits",
    "parse_json",
    "parse_picture",
    "parse_yaml",
    "read_bytes",
]


class InvalidDocument(ValueError):
    """Document that is beyond a limit, or that cannot be parsed; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """Limits of a document.

    Attributes:
        num_bytes: Bytes of the file.
        values: Values in it, whatever their kind, each of which takes about a hundred bytes; of a picture its pixels.
        depth: Levels of lists and mappings.
    """

    num_bytes: int
    values: int
    depth: int = 100


CONFIG = Limits(num_bytes=2**18, values=20_000, depth=30)
"""A config: a few hundred keys."""

CHECKPOINT = Limits(num_bytes=2**25, values=1_000_000)
"""The state and the index of a checkpoint, without its tensors."""

SUMMARY = Limits(num_bytes=2**28, values=10_000_000)
"""The summary of a sweep: thousands of trials, each with its evaluations."""

MANIFEST = Limits(num_bytes=2**27, values=10_000_000)
"""The manifest of a store: half a million shards."""

JOURNAL = Limits(num_bytes=2**22, values=100_000)
"""A line of a journal."""

PICTURE = Limits(num_bytes=2**23, values=2**24)
"""A picture of a trial's samples: four thousand pixels each way."""

# Bytes that begin another value of a JSON document.
_SEPARATORS = (b",", b"[", b"{", b":")
# A text, in which brackets mean nothing, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def read_bytes(files: fsspec.AbstractFileSystem, path: str, limits: Limits) -> bytes:
    """Read a file, unless it is larger than its kind can be.

    Args:
        files: The file system.
        path: The file.
        limits: Limits of its kind.

    Raises:
        InvalidDocument: It is larger.
        OSError: It cannot be read.
    """
    # One byte more than is allowed, whatever size the file system has told before.
    content = files.cat_file(path, start=0, end=limits.num_bytes + 1)
    content = content.encode() if isinstance(content, str) else bytes(content)
    _require(len(content) <= limits.num_bytes, f"it has more than {limits.num_bytes:,} bytes")
    return content


def parse_json(content: bytes | str, limits: Limits) -> Any:
    """Parse JSON.

    Args:
        content: The document.
        limits: Limits of its kind.

    Raises:
        InvalidDocument: It is not JSON, or beyond a limit.

    Example:
        >>> parse_json(b'{"a": [1, 2]}', CONFIG)
        {'a': [1, 2]}
        >>> parse_json(b"[" * 1000, CONFIG)
        Traceback (most recent call last):
        ...
        pipeline.runtime.untrusted.InvalidDocument: it is nested more than 30 levels deep
    """
    data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    _require(len(data) <= limits.num_bytes, f"it has more than {limits.num_bytes:,} bytes")
    _require(sum(map(data.count, _SEPARATORS)) <= limits.values, f"it has more than {limits.values:,} values")
    _require(not _is_deeper(data, limits.depth), f"it is nested more than {limits.depth} levels deep")
    try:
        return json.loads(data)
    # Numbers of thousands of digits are a ValueError as well.
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"it is not JSON ({one_line(error, limit=100)})") from None


def parse_yaml(content: bytes, limits: Limits) -> Any:
    """Parse YAML of plain values, without aliases: a few of them, nested in one another, fill any memory.

    Args:
        content: The document.
        limits: Limits of its kind.

    Raises:
        InvalidDocument: It is not YAML, has an alias, or is beyond a limit.

    Example:
        >>> parse_yaml(b"train: {base_steps: 3}", CONFIG)
        {'train': {'base_steps': 3}}
    """
    _require(len(content) <= limits.num_bytes, f"it has more than {limits.num_bytes:,} bytes")
    try:
        depth = 0
        for count, event in enumerate(yaml.parse(content, yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _require(not isinstance(event, yaml.AliasEvent), "it has aliases")
            _require(depth <= limits.depth, f"it is nested more than {limits.depth} levels deep")
            _require(count <= limits.values, f"it has more than {limits.values:,} values")
        return yaml.safe_load(content)
    except InvalidDocument:
        raise
    # Values that look like dates and numbers and are none are ValueErrors.
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
        raise InvalidDocument(f"it is not YAML ({type(error).__name__})") from None


def parse_picture(content: bytes, limits: Limits) -> Image.Image:
    """Decode a PNG file.

    Args:
        content: The file.
        limits: Limits of its kind.

    Returns:
        Its pixels, of mode "RGB", and nothing else of the file.

    Raises:
        InvalidDocument: It is not PNG, is damaged, or beyond a limit.

    Example:
        >>> parse_picture(b"GIF89a", PICTURE)
        Traceback (most recent call last):
        ...
        pipeline.runtime.untrusted.InvalidDocument: it is not a PNG picture (UnidentifiedImageError)
    """
    # Only reports have pictures.
    from PIL import Image

    _require(len(content) <= limits.num_bytes, f"it has more than {limits.num_bytes:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
                # The size in the header, before any memory is asked for.
                _require(opened.width * opened.height <= limits.values, f"it has more than {limits.values:,} pixels")
                return Image.frombytes("RGB", opened.size, opened.convert("RGB").tobytes())
    except InvalidDocument:
        raise
    # Pillow raises exceptions of many kinds.
    except Exception as error:
        raise InvalidDocument(f"it is not a PNG picture ({type(error).__name__})") from None


def _is_deeper(data: bytes, most: int) -> bool:
    """Return whether lists and mappings of a JSON document are nested more than ``most`` levels deep."""
    depth = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        if depth > most:
            return True
    return False


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise InvalidDocument(reason)
