"""What the journal of a sweep may say, and the files that it may name.

The journal lies among the results, and whoever goes on with somebody else's sweep sends that one's entries with his own
credentials. So an entry that is none of a sweep's is refused, and a file is named from the sweep's folder and can lie
nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.files import is_local
from pipeline.outbox import Refused
from pipeline.stores.location import filesystem

__all__ = ["content", "name_in", "require_plausible"]

_TRIAL = re.compile(r"[0-9]{3,}")
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


def require_plausible(entry: dict[str, Any]) -> None:
    """Refuse an entry that no sweep can have written.

    Args:
        entry: of the journal.

    Raises:
        Refused: it has another kind, lacks what its kind has, or has it of another type.

    Example:
        >>> require_plausible({"kind": "end", "trial": "007", "status": "FINISHED", "time": 1})
        >>> require_plausible({"kind": "end", "trial": "' or '' = '"})
        Traceback (most recent call last):
        ...
        pipeline.outbox.Refused: an entry of the journal is none of a sweep's
    """
    kind, trial = entry.get("kind"), entry.get("trial")
    wanted = _KINDS.get(kind) if isinstance(kind, str) else None
    named = trial is None or (isinstance(trial, str) and _TRIAL.fullmatch(trial) is not None)
    if wanted is None or not named or not all(isinstance(entry.get(key), types) for key, types in wanted.items()):
        raise Refused("an entry of the journal is none of a sweep's")
    if "tags" in wanted and not all(isinstance(value, str) for value in entry["tags"].values()):
        raise Refused("an entry of the journal has a tag that is no text")
    if "metrics" in wanted and not all(type(value) in (int, float) for value in entry["metrics"].values()):
        raise Refused("an entry of the journal has a metric that is no number")


def name_in(folder: str, url: str) -> str:
    """How an entry names a file of the sweep's folder; what lies elsewhere keeps its URL, and is refused when sent.

    Example:
        >>> name_in("s3://bucket/sweep", "s3://bucket/sweep/trials/000/figures/step-8/base.png")
        'trials/000/figures/step-8/base.png'
    """
    return url.removeprefix(f"{folder}/")


def content(folder: str, name: str) -> bytes:
    """A file of the sweep's folder.

    Args:
        folder: behind any fsspec URL.
        name: from :func:`name_in`.

    Raises:
        Refused: the name leads out of the folder, by its words or by a link.
        FileNotFoundError: there is no such file.

    Example:
        >>> content("memory://doctest/sweep", "../../secret")
        Traceback (most recent call last):
        ...
        pipeline.outbox.Refused: a file outside of the sweep's folder is not sent: ../../secret
    """
    files, root = filesystem(folder)
    inside = "://" not in name and not name.startswith("/") and ".." not in PurePosixPath(name).parts
    if inside and is_local(files):
        inside = Path(root, name).resolve().is_relative_to(Path(root).resolve())
    if not inside:
        raise Refused(f"a file outside of the sweep's folder is not sent: {name}")
    return files.cat_file(f"{root}/{name}")
