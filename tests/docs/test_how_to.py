"""The how-to pages: their code is saved and their commands are run as they are typed there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.docs.test_documents import FENCE
from tests.helpers.cli import run

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture
def page(home: Path) -> list[list[str]]:
    """Save the Python of the page on networks and samplers as ``mine.py``, and return its commands."""
    text = (PAGES / "network-and-sampler.md").read_text(encoding="utf-8")
    blocks = {kind: [m["code"] for m in FENCE.finditer(text) if m["language"] == kind] for kind in ("python", "sh")}
    (home / "mine.py").write_text("\n".join(blocks["python"]))
    return [shlex.split(line) for block in blocks["sh"] for line in block.splitlines()]


def test_my_network_and_my_sampler(page, home):
    (_, _, train, *trained), (_, _, sample, *sampled) = page
    run(home, train.removeprefix("pipeline."), *trained, "train.warmup_energy_steps=1")
    summary = json.loads((home / "tower" / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["finished"]
    printed = run(home, sample.removeprefix("pipeline."), *sampled, "output=drawn")
    assert "64 samples (3,)" in printed and np.isfinite(np.load(home / "drawn" / "samples.npy")).all()
    settings = json.loads((home / "drawn" / "settings.json").read_text())["sampler"]
    assert (settings["name"], settings["settings"]) == ("warm", {"gamma": 1.5})

    # Named for the sweep here, it need not be named again; of a copy of the folder somebody has to trust it.
    words = [word for word in sampled if not word.startswith(("plugins=", "checkpoint="))]
    run(home, "sample", "checkpoint=tower/trials/000", *words, "output=again")
    assert np.array_equal(np.load(home / "again" / "samples.npy"), np.load(home / "drawn" / "samples.npy"))
    os.rename(home / "tower", home / "elsewhere")
    refused = run(home, "sample", "checkpoint=elsewhere/trials/000", "output=none", status=2)
    assert re.search(rf"needs model.networks=tower, .* add 'plugins=\[{home}/mine.py\]'", refused)
