"""What a run is of: its code, its data and its parts, in words to search by."""

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
    """The revision of the code, with ``-dirty`` where files differ from it; of an installed package its version.

    Args:
        folder: where the code lies.

    Example:
        >>> bool(code_version())
        True
    """
    # Only where the repository has this very code: an environment may lie in somebody else's.
    known = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
    revision = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if known else None
    if revision:
        return revision
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:  # sent to a cluster as files
        return "unknown"


def tags(config: Config) -> dict[str, str]:
    """What a search in the tracker may ask for of a run, beside the checksum of what it has seen.

    Args:
        config: the run's own.

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
    """A store as the tracker is told of it.

    Args:
        store: what a run is trained on.

    Returns:
        ``name``, ``url`` without what lets one in, ``checksum`` of the manifest, which has those of all shards,
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


def _git(folder: Path, *words: str) -> str | None:
    """What git says, in a line; None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
