"""Provenance of a run: version of the code, data set, and tags to search by."""

from __future__ import annotations

import functools
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data import Store
from pipeline.runtime.redaction import without_query

__all__ = ["code_version", "describe_dataset", "tags"]

_PACKAGE = "gebm-pipeline"


@functools.cache
def code_version(folder: Path = Path(__file__).parent) -> str:
    """Return the revision of the code, with ``-dirty`` where files differ from it, or an installed package's version.

    Args:
        folder: Folder of the code.

    Example:
        >>> bool(code_version())
        True
    """
    # Only where the repository has this file: an environment may be inside another project's repository.
    tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
    revision = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None
    if revision:
        return revision
    try:
        return metadata.version(_PACKAGE)
    # The code was sent to a cluster as files.
    except metadata.PackageNotFoundError:
        return "unknown"


def tags(config: Config) -> dict[str, str]:
    """Return the tags of a run to search by in the tracker.

    Args:
        config: Config of the run.

    Returns:
        Tags and their values.
    """
    return {
        "experiment": config.name,
        "networks": config.model.networks,
        "sampler": config.sampler.name,
        "objective": config.train.objective,
        "code_version": code_version(),
    }


def describe_dataset(store: Store) -> dict[str, Any]:
    """Describe a store for the tracker.

    Args:
        store: Training data of the run.

    Returns:
        ``name``, ``url`` without its credentials, ``checksum`` of the manifest, which has those of all shards,
        ``num_samples``, ``sample_shape``, ``dtype``, ``num_shards`` and ``num_bytes``.
    """
    manifest, url = store.manifest, str(without_query(store.url)).rstrip("/")
    return {
        "name": url.rsplit("/", 1)[-1],
        "url": url,
        "checksum": manifest.digest,
        "num_samples": manifest.num_samples,
        "sample_shape": list(manifest.sample_shape),
        "dtype": str(manifest.dtype),
        "num_shards": len(manifest.shards),
        "num_bytes": sum(shard.bytes for shard in manifest.shards),
    }


def _git(folder: Path, *args: str) -> str | None:
    """Return the output of a git command, or ``None`` where there is no git or no repository."""
    try:
        process = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
