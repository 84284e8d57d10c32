"""What the journal of a sweep may say, and the files that it may name.

The journal lies among the results, and whoever goes on with somebody else's sweep sends that one's entries with his own
credentials. So an entry that is none of a sweep's is refused, and a file is named from the sweep's folder and can lie
nowhere else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.tracking.journal import PermanentError

__all__ = ["read_artifact", "relative_name", "validate_entry"]

_TRIAL = re.compile(r"[0-9]{3,9}")
_MOST = 2**53  # of a step or a time
_LONGEST = 200  # letters of a name that becomes a file's
_NONE = type(None)
_KINDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "start": {"params": dict, "tags": dict, "time": int},
    "metrics": {"metrics": dict, "step": int, "time": int},
    "file": {"file": str, "folder": (str, _NONE)},
    "image": {"file": str, "key": str, "step": int, "time": int},
    "data": {"data": dict},
    "model": {
        "name": str, "checkpoint": str, "sampler": dict, "base_step": int, "description": str, "tags": dict,
    },
    "tags": {"tags": dict},
    "end": {"status": str, "time": int},
}  # fmt: skip
_DATA = {
    "name": str, "url": str, "checksum": str, "num_samples": int, "sample_shape": list, "dtype": str, "num_shards": int,
    "num_bytes": int,
}  # fmt: skip


def validate_entry(entry: dict[str, Any]) -> None:
    """Refuse an entry that no sweep can have written.

    Args:
        entry: of the journal.

    Raises:
        Refused: it has another kind, lacks what its kind has, or has it of another type.

    Example:
        >>> validate_entry({"kind": "end", "trial": "007", "status": "FINISHED", "time": 1})
        >>> validate_entry({"kind": "end", "trial": "' or '' = '"})
        Traceback (most recent call last):
        ...
        pipeline.tracking.journal.PermanentError: an entry of the journal is none of a sweep's
    """
    kind, trial = entry.get("kind"), entry.get("trial")
    wanted = _KINDS.get(kind) if isinstance(kind, str) else None
    named = trial is None or (isinstance(trial, str) and _TRIAL.fullmatch(trial) is not None)
    if wanted is None or not named or not _has(entry, {"trial": (str, _NONE), **wanted}):
        raise PermanentError("an entry of the journal is none of a sweep's")
    if "tags" in wanted and not all(isinstance(value, str) for value in entry["tags"].values()):
        raise PermanentError("an entry of the journal has a tag that is no text")
    if "metrics" in wanted and not all(_is_number(value) for value in entry["metrics"].values()):
        raise PermanentError("an entry of the journal has a metric that is no number")
    if "data" in wanted:
        data = entry["data"]
        shape = data.get("sample_shape")
        if not (_has(data, _DATA) and all(_is_count(size) for size in shape) and data["dtype"] in ("uint8", "float32")):
            raise PermanentError("an entry of the journal has data that are none of a store")
    for key in ("folder", "key"):
        if key in wanted and entry[key] is not None and not _is_name(entry[key]):
            raise PermanentError(f"an entry of the journal has a {key} that is no name")


def _has(entry: dict[str, Any], wanted: dict[str, type | tuple[type, ...]]) -> bool:
    return all(
        key in entry and (_is_count(entry[key]) if types is int else isinstance(entry[key], types))
        for key, types in wanted.items()
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_name(text: str) -> bool:
    """Whether a text names a place in a folder, and could be a file's name."""
    parts = PurePosixPath(text).parts
    return (
        bool(parts)
        and "://" not in text
        and not text.startswith("/")
        and ".." not in parts
        and text.isprintable()
        and all(len(part) <= _LONGEST for part in parts)
        and len(text) <= 4 * _LONGEST
    )


def relative_name(folder: str, url: str) -> str:
    """How an entry names a file of the sweep's folder; what lies elsewhere keeps its URL, and is refused when sent.

    Example:
        >>> relative_name("s3://bucket/sweep", "s3://bucket/sweep/trials/000/figures/step-8/base.png")
        'trials/000/figures/step-8/base.png'
    """
    return url.removeprefix(f"{folder}/")


def read_artifact(folder: str, name: str) -> bytes:
    """A file of the sweep's folder.

    Args:
        folder: behind any fsspec URL.
        name: from :func:`relative_name`.

    Raises:
        Refused: the name leads out of the folder, by its words or by a link.
        OSError: there is no such file.

    Example:
        >>> read_artifact("memory://doctest/sweep", "../../secret")
        Traceback (most recent call last):
        ...
        pipeline.tracking.journal.PermanentError: a file outside of the sweep's folder is not sent: ../../secret
    """
    files, root = filesystem(folder)
    inside = _is_name(name)
    if inside and is_local(files):
        inside = Path(root, name).resolve().is_relative_to(Path(root).resolve())
    if not inside:
        raise PermanentError(f"a file outside of the sweep's folder is not sent: {name}")
    return files.cat_file(f"{root}/{name}")
