"""What is installed from a wheel is as complete as a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, as an installation lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize(
    ("words", "status", "expected_text"),
    [
        (["--help"], 0, "imagenet32"),
        (["conf=lsun", "sweeps=optuna"], 2, "python -m pipeline.shards conf=lsun"),
        (["conf=nothing"], 2, "celeba, cifar10, digits, hepmass, imagenet32, lsun, miniboone"),
    ],
)
def test_it_has_the_experiments_and_the_searches(installed, tmp_path, words, status, expected_text):
    environment = {**os.environ, "PYTHONPATH": str(installed), "GEBM_STORES": str(tmp_path / "stores")}
    found = subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == status and expected_text in found.stdout + found.stderr, found
    where = [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(installed))
