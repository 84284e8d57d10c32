"""Where things are that no key names: the stores, the tracker, and what the user has chosen."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["default_tracker", "state_folder", "stores_root"]


def stores_root() -> str:
    """Return the path or URL under which a store's name is looked up: ``GEBM_STORES``, or a folder in the cache."""
    root = os.environ.get("GEBM_STORES") or os.path.join(platformdirs.user_cache_dir("gebm"), "stores")
    return root.rstrip("/")


def state_folder() -> Path:
    """Return the folder of what the user has chosen, outside of all results."""
    return Path(platformdirs.user_state_dir("gebm"))


def default_tracker() -> str:
    """Return the URI of the tracker where none is named: a SQLite file among the results of the working directory."""
    return f"sqlite:///{Path('results').absolute() / 'mlflow.db'}"
