"""What a cluster has to be able to reach."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import config as schema
from pipeline.data import resolve_url
from pipeline.runtime.errors import UserError

__all__ = ["no_shared_fs", "on_this_machine", "resolve_paths", "shared_fs", "under_mount"]


def on_this_machine(url: str) -> bool:
    """Whether a URL leads nowhere but to this machine, or is a path.

    Example:
        >>> [on_this_machine(url) for url in ("results", "file:///data", "memory://x", "s3://bucket/x")]
        [True, True, True, False]
    """
    scheme, colon, _ = url.partition("://")
    return not colon or scheme in ("file", "local", "memory")


def no_shared_fs(path: str) -> bool:
    """Of a cluster that shares no file system: none of the paths there are."""
    return False


def shared_fs(path: str) -> bool:
    """Of a cluster that shares its file system with this machine: all of the paths there are."""
    return True


def under_mount(mount: str) -> Callable[[str], bool]:
    """Of a cluster that shares one folder: the paths in it.

    Args:
        mount: the folder.

    Example:
        >>> [under_mount("/data")(path) for path in ("/data/results", "/data", "/database", "/data/../etc")]
        [True, True, False, False]
    """
    return lambda path: PurePosixPath(os.path.normpath(path)).is_relative_to(mount)


def resolve_paths(config: schema.Config, named: dict[str, Any], shared: Callable[[str], bool], advice: str) -> None:
    """Make every place of a config absolute, and refuse those that the cluster cannot reach.

    Args:
        config: the experiment; its places are replaced.
        named: keys that the command line names; those that are places are replaced as well.
        shared: of an absolute path, whether all nodes of the cluster see it.
        advice: what to write instead of a path that they do not see, with ``{key}`` for the key.

    Raises:
        UserError: one line that names the key.
    """
    if config.ray.address is not None:
        raise UserError(f"ray.address={config.ray.address}: a job runs on the cluster it is sent to; leave it out")
    places = {"checkpoint": config.checkpoint, "evaluation.weights": config.evaluation.weights}
    places["resume" if config.resume else "output"] = config.resume or config.output or "results"
    # A sweep that is resumed has a store already, and one from a checkpoint has that of the training.
    if not config.resume and (not config.checkpoint or "data.store" in named):
        places["data.store"] = resolve_url(config.data.store)
    for key, url in places.items():
        if url is None:
            continue
        if on_this_machine(url):
            path = str(Path(url.removeprefix("file://").removeprefix("local://")).expanduser().absolute())
            if url.startswith("memory://") or not shared(path):
                raise UserError(f"{key}={url}: the cluster does not see that folder; {advice.format(key=key)}")
            url = path
        group, _, name = key.rpartition(".")
        setattr(getattr(config, group) if group else config, name, url.rstrip("/"))
        if key in named:
            named[key] = url.rstrip("/")
