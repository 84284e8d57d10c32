"""Paths and URLs of a config, and whether the cluster can reach them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import config as schema
from pipeline.config.networks import is_weights
from pipeline.data import resolve_url
from pipeline.runtime.errors import UserError

__all__ = ["no_shared_fs", "on_this_machine", "resolve_paths", "shared_fs", "under_mount"]


def on_this_machine(url: str) -> bool:
    """Return whether a URL is a path, or one that only this machine can resolve.

    Example:
        >>> [on_this_machine(url) for url in ("results", "file:///data", "memory://x", "s3://bucket/x")]
        [True, True, True, False]
    """
    scheme, colon, _ = url.partition("://")
    return not colon or scheme in ("file", "local", "memory")


def no_shared_fs(path: str) -> bool:
    """Return ``False`` for every path: the cluster shares no file system."""
    return False


def shared_fs(path: str) -> bool:
    """Return ``True`` for every path: the cluster shares its file system with this machine."""
    return True


def under_mount(mount: str) -> Callable[[str], bool]:
    """Return the predicate of a cluster that shares one folder.

    Args:
        mount: The folder.

    Returns:
        A function of an absolute path: whether it is inside that folder.

    Example:
        >>> [under_mount("/data")(path) for path in ("/data/results", "/data", "/database", "/data/../etc")]
        [True, True, False, False]
    """
    return lambda path: PurePosixPath(os.path.normpath(path)).is_relative_to(mount)


def resolve_paths(config: schema.Config, overrides: dict[str, Any], shared: Callable[[str], bool], advice: str) -> None:
    """Make every path of a config absolute, and refuse those that the cluster cannot reach.

    Args:
        config: The experiment; its paths and URLs are replaced.
        overrides: Keys that the command line names; those that are paths or URLs are replaced as well.
        shared: Predicate of an absolute path: whether all nodes of the cluster see it.
        advice: What to write instead of a path that they do not see, with ``{key}`` for the key.

    Raises:
        UserError: When the cluster cannot reach one of them, by a one-line message that names its key.
    """
    if config.ray.address is not None:
        raise UserError(f"ray.address={config.ray.address}: a job runs on the cluster it is sent to; leave it out")
    locations = {"checkpoint": config.checkpoint, "evaluation.weights": config.evaluation.weights}
    locations["model.base"] = config.model.base
    locations["model.energy"] = config.model.energy if is_weights(config.model.energy) else None
    locations["resume" if config.resume else "output"] = config.resume or config.output
    # A sweep that is resumed has a store already, and one from a checkpoint has that of the training.
    if not config.resume and (not config.checkpoint or "data.store" in overrides):
        locations["data.store"] = resolve_url(config.data.store)
    for key, url in locations.items():
        if url is None:
            continue
        if on_this_machine(url):
            path = str(Path(url.removeprefix("file://").removeprefix("local://")).expanduser().absolute())
            if url.startswith("memory://") or not shared(path):
                raise UserError(f"{key}={url}: the cluster does not see that folder; {advice.format(key=key)}")
            url = path
        group, _, name = key.rpartition(".")
        setattr(getattr(config, group) if group else config, name, url.rstrip("/"))
        if key in overrides:
            overrides[key] = url.rstrip("/")
