"""The stores of the three settings, made once from what their publishers distribute."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.claim.settings import SETTINGS, experiment
from pipeline.data.store import MissingStore, open_store

__all__ = ["make_stores"]

_CLASS = "horse"


def make_stores(photographs: Path | None, folder: Path) -> None:
    """Make the stores that are missing, under ``GEBM_STORES``.

    Args:
        photographs: A zip of the photographs as an image folder, ``train/<class>/*.jpg``.
        folder: Where the one class is unpacked to.
    """
    _make("digits")
    if photographs is None:
        print("no --photographs: the stores of photographs and horses are not made")
        return
    _make("photographs", f"data.source.url={photographs.absolute()}", "data.source.split=train")
    unpacked = folder.absolute() / "source"
    with zipfile.ZipFile(photographs) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"train/{_CLASS}/")]
        archive.extractall(unpacked, names)
    _make("horses", f"data.source.url={unpacked}", "data.source.split=null")


def _make(name: str, *overrides: str) -> None:
    config = experiment(SETTINGS[name], "gan", 0)
    try:
        store = open_store(config.data.store)
    except MissingStore:
        pass
    else:
        print(f"{store.url} is finished already")
        return
    keys = {
        "data.store": config.data.store,
        "data.resolution": config.data.resolution,
        "data.channels": config.data.channels,
        "data.source.kind": config.data.source.kind,
        "model.networks": config.model.networks,
    }
    words = [f"{key}={value}" for key, value in keys.items()]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.shards", "conf=digits", *words, *overrides], env=os.environ, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
