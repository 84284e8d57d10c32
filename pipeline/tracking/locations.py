"""Places of a sweep's files: relative to its folder where they are written down, so that the folder can be moved."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.runtime.printable import printable

__all__ = [
    "CONFIG_FILE",
    "absolute_folder",
    "imported_start",
    "is_imported_start",
    "own_checkpoint",
    "present_place",
    "relative_place",
]

CONFIG_FILE = "config.yaml"
"""The whole config, in a sweep's folder and among the artifacts of each run."""

_OWN = re.compile(
    r"(?:^|/)trials/(?P<trial>[0-9]{3,9})/checkpoints/(?P<name>(?:step|interim)-[0-9]{8,18}(?:-[0-9]{1,9})?)\Z"
)
_IMPORTED = re.compile(r"imported(?:/checkpoints/step-[0-9]{8,18}(?:-[0-9]{1,9})?)?")


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


def imported_start(folder: str) -> str:
    """Return the folder of the model of imported weights that a sweep's trials start from.

    Args:
        folder: The sweep's folder, behind any fsspec URL.

    Example:
        >>> imported_start("s3://bucket/sweep/")
        's3://bucket/sweep/imported'
    """
    return f"{absolute_folder(folder)}/imported"


def is_imported_start(path: str) -> bool:
    """Return whether a path, relative to a sweep's folder, is that of :func:`imported_start`, or its checkpoint.

    Example:
        >>> is_imported_start("imported"), is_imported_start("imported/checkpoints/step-00000000")
        (True, True)
        >>> is_imported_start("/elsewhere/imported"), is_imported_start("trials/000")
        (False, False)
    """
    return _IMPORTED.fullmatch(path) is not None


def own_checkpoint(folder: str, trial: str, checkpoint: str | None) -> str | None:
    """Return the URL of a trial's checkpoint in its sweep's folder, which may have been moved since it was written.

    Earlier versions wrote its URL. Whatever else is written there, the checkpoint is one of this trial in this folder,
    or the imported model that all trials of this folder start from.

    Args:
        folder: The sweep's folder, behind any fsspec URL.
        trial: Name of the trial.
        checkpoint: Place or URL of the checkpoint, as the summary has it.

    Raises:
        ValueError: It is no checkpoint of that trial.

    Example:
        >>> own_checkpoint("s3://bucket/copy", "000", "/old/sweep/trials/000/checkpoints/step-00000010")
        's3://bucket/copy/trials/000/checkpoints/step-00000010'
        >>> own_checkpoint("s3://bucket/copy", "000", "/old/sweep/imported")
        's3://bucket/copy/imported'
    """
    if checkpoint is None:
        return None
    if re.search(rf"(?:^|/){_IMPORTED.pattern}\Z", checkpoint):
        return imported_start(folder)
    match = _OWN.search(checkpoint)
    if match is None or match["trial"] != trial:
        raise ValueError(f"{printable(checkpoint)[:200]!r} is no checkpoint of trial {trial}")
    return f"{absolute_folder(folder)}/trials/{trial}/checkpoints/{match['name']}"


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
