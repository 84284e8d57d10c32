"""Places of a sweep's files: relative to its folder where they are written down, so that the folder can be moved."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.runtime.filesystem import filesystem

__all__ = ["absolute_checkpoint", "absolute_folder", "present_place", "relative_place"]

# The end of the URL of a checkpoint that a trial of this name has written.
_OWN_CHECKPOINT = r"(?:^|/)(trials/{name}/checkpoints/(?:step|interim)-[0-9]+(?:-[0-9]+)?)$"


def absolute_folder(folder: str) -> str:
    """Return a folder in the form in which files below it are named.

    Args:
        folder: A path or an fsspec URL.

    Example:
        >>> absolute_folder("s3://bucket/sweep/"), absolute_folder("/results/sweep/")
        ('s3://bucket/sweep', '/results/sweep')
    """
    return folder.rstrip("/") if "://" in folder else str(Path(folder).absolute())


def relative_place(folder: str, url: str) -> str:
    """Return the place of a file relative to the sweep's folder; of one that is elsewhere, the URL.

    Args:
        folder: The sweep's folder, as :func:`absolute_folder` returns it.
        url: The file, or a folder.

    Example:
        >>> relative_place("s3://bucket/sweep", "s3://bucket/sweep/trials/000/checkpoints/step-00000008")
        'trials/000/checkpoints/step-00000008'
        >>> relative_place("s3://bucket/sweep", "s3://bucket/model")
        's3://bucket/model'
    """
    return url.removeprefix(f"{folder}/")


def absolute_checkpoint(folder: str, trial: str, place: str) -> str:
    """Return the URL of a trial's checkpoint, from the place that was written down.

    Earlier versions wrote the URL, which names another folder after the sweep was moved or copied: the trial's own
    checkpoint is then the one here, where there is one. A trial that was started from a model elsewhere names that.

    Args:
        folder: The sweep's folder, where it is now.
        trial: Name of the trial.
        place: What is written in the sweep's summary.

    Raises:
        ValueError: The place is a path that leads out of the folder.

    Example:
        >>> absolute_checkpoint("/new/sweep", "000", "trials/000/checkpoints/step-00000008")
        '/new/sweep/trials/000/checkpoints/step-00000008'
    """
    folder = absolute_folder(folder)
    if "://" not in place and not place.startswith("/"):
        if ".." in place.split("/"):
            raise ValueError("a place outside of the sweep's folder")
        return f"{folder}/{place}"
    own = re.search(_OWN_CHECKPOINT.format(name=re.escape(trial)), place)
    if own and not place.startswith(f"{folder}/"):
        files, path = filesystem(f"{folder}/{own[1]}")
        if files.exists(f"{path}/state.json"):
            return f"{folder}/{own[1]}"
    return place


def present_place(folder: str, url: str) -> str:
    """Return the URL of a file of a trial where the sweep is now.

    Args:
        folder: The sweep's folder, where it is now.
        url: The file, where the sweep was when it was written.

    Example:
        >>> present_place("s3://bucket/new", "/old/sweep/trials/000/figures/step-00000008/base.png")
        's3://bucket/new/trials/000/figures/step-00000008/base.png'
    """
    _, found, rest = url.rpartition("/trials/")
    return f"{absolute_folder(folder)}/trials/{rest}" if found else url
