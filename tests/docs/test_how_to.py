"""The how-to pages: their code is saved and their commands are run as they are typed there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np

from tests.docs.test_documents import FENCE
from tests.helpers.cli import run

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


def save(page: str, home: Path) -> list[list[str]]:
    """Save the Python of a page as ``mine.py``, and return its commands."""
    text = (PAGES / page).read_text(encoding="utf-8")
    blocks = {kind: [m["code"] for m in FENCE.finditer(text) if m["language"] == kind] for kind in ("python", "sh")}
    (home / "mine.py").write_text("\n".join(blocks["python"]))
    return [shlex.split(line) for block in blocks["sh"] for line in block.splitlines()]


def test_my_metric(tmp_path):
    shards, evaluate, train = save("my-metric.md", tmp_path)
    for _, _, verb, *words in (shards, evaluate):
        run(tmp_path, verb.removeprefix("pipeline."), *words)
    scores = json.loads((tmp_path / "scores" / "evaluation.json").read_text())["scores"]
    assert abs(scores["gap"]) < 1e-3 < scores["gap_standard_error"] and "kid" not in scores
    printed = run(tmp_path, "train", *train[3:], "train.warmup_energy_steps=1")
    [trial] = json.loads((tmp_path / "gap" / "summary.json").read_text())["trials"]
    assert trial["metrics"]["gap_gebm"] > 0 and trial["metrics"]["gap_base_standard_error"] > 0
    assert "gap" in printed


def test_my_network_and_my_sampler(home):
    (_, _, train, *trained), (_, _, sample, *sampled) = save("network-and-sampler.md", home)
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
