"""Provenance of a run: version of the code, data set, and tags to search by."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data import Store
from pipeline.runtime.redaction import without_query
from pipeline.tracking.locations import CONFIG_FILE

__all__ = ["code_version", "describe_dataset", "shown_params", "tags"]

_PACKAGE = "gebm-pipeline"
# Keys that identify a run. MLflow repeats a run's parameters above each picture, where they leave room for few.
_IDENTIFYING = (
    "model.networks",
    "train.objective",
    "sampler.name",
    "seed",
)


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


def shown_params(config: Config, searched: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run that MLflow shows: the searched keys, to six digits, and those that identify it.

    All keys are in the run's ``config.yaml``, with all their digits.

    Args:
        config: Config of the run.
        searched: Keys that the search has set, and their values.

    Returns:
        Flat parameters, those of the search first.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}})
        >>> shown = shown_params(config, {"train.base_lr": 10**-3.5})
        >>> len(shown), shown["train.base_lr"], shown["model.networks"]
        (5, 0.000316228, 'dcgan')
    """
    short = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in searched.items()}
    return short | {key: attrgetter(key)(config) for key in _IDENTIFYING if key not in searched}


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
        "config": f"artifact {CONFIG_FILE}",
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
