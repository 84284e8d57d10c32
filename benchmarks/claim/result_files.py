"""Result files of the claim: written whole or not at all, and shared between processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["own_share", "write_json"]

_T = TypeVar("_T")


def own_share(jobs: Sequence[_T], share: str) -> Sequence[_T]:
    """Return the jobs of one of several processes.

    Args:
        jobs: All jobs.
        share: ``i/n``: the i-th of n processes, counted from 0.

    Example:
        >>> own_share(["a", "b", "c"], "1/2")
        ['b']
    """
    index, count = map(int, share.split("/"))
    return jobs[index::count]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a file under another name, and rename it: an interrupted run leaves no half of it.

    Args:
        path: The file.
        values: Its contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)
