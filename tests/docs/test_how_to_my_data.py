"""The page about one's own data: each command makes a store, as it is typed."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from scipy.stats import multivariate_normal

from pipeline import tasks
from pipeline.config import from_dict, to_dict
from pipeline.data import open_store
from pipeline.tasks.open_store import split_store
from pipeline.training.build_model import build_model
from pipeline.training.checkpoints import Checkpoints
from tests.docs.test_documents import FENCE
from tests.helpers.plugins import no_plugins

__all__ = ["no_plugins"]

DENSITIES = Path(__file__).parents[2] / "docs" / "densities.md"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "my-data.md"
COMMANDS = re.findall(r"^```sh\npython -m pipeline\.shards (.*)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def jpg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_data(folder: Path) -> None:
    """Six images of two classes in each of the three forms."""
    for number in range(6):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpg(number))
    (folder / "tars").mkdir()
    for tar in range(2):
        with tarfile.open(folder / "tars" / f"shard-{tar:03d}.tar", "w") as archive:
            for number in range(3 * tar, 3 * tar + 3):
                for name, data in ((f"{number}.jpg", jpg(number)), (f"{number}.cls", b"%d" % (number % 2))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    rows = {"image": [{"bytes": jpg(number), "path": None} for number in range(6)], "label": [0, 1] * 3}
    (folder / "rows").mkdir()
    pq.write_table(pa.table(rows), folder / "rows" / "train-00000-of-00001.parquet")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.search(r"kind=(\w+)", command)[1])
def test_the_command_makes_a_store(call, tmp_path: Path, monkeypatch, command: str) -> None:
    write_data(tmp_path)
    monkeypatch.setenv("GEBM_STORES", str(tmp_path / "stores"))
    monkeypatch.chdir(tmp_path)
    status, printed, errors = call("shards", *shlex.split(command))
    assert status == 0, errors
    assert "source: 6 = 6 taken + 0 broken + 0 passed over" in printed and "labels: 2 classes" in printed
    store = open_store(re.search(r"data\.store=(\S+)", command)[1])
    assert store.manifest.num_samples == 6 and len(store.manifest.labels) == 2


def test_what_the_store_prints_is_the_pages_training(call, tmp_path: Path, monkeypatch) -> None:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8").replace("s3://bucket", str(tmp_path))
    shards, train = re.findall(r"^python -m pipeline\.(\w+ .*name=photos.*)$", text, re.MULTILINE)
    status, printed, errors = call(*shlex.split(shards))
    assert status == 0, errors
    command = printed.splitlines()[-1].partition("train on it: python -m pipeline.")[2]
    verb, *words = shlex.split(train)
    assert shlex.split(command.replace("sweep", verb, 1)) == [verb, *words[:-1]] and verb == "train"
    assert words[-1].startswith("output=")
    assert open_store(f"{tmp_path}/stores/photos-64").manifest.resolution == 64


def test_a_table_of_ones_own(call, tmp_path: Path, monkeypatch, no_plugins) -> None:
    """The store is made, the training is accepted, and densities of a model of it are those that its rows have."""
    text = DENSITIES.read_text(encoding="utf-8").partition("\n## My own table\n")[2]
    source, densities = (match["code"] for match in FENCE.finditer(text) if match["language"] == "python")
    shards, train = re.findall(r"^python -m pipeline\.\w+ (.*)$", text, re.MULTILINE)
    rows = np.random.default_rng(0).normal([3, 5, -1], [2, 0.5, 30], (1000, 3))
    np.savetxt(tmp_path / "mine.csv", rows, delimiter=",", header="a,b,c", comments="")
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setenv("GEBM_STORES", str(tmp_path / "stores"))
    monkeypatch.chdir(tmp_path)
    status, printed, errors = call("shards", *shlex.split(shards))
    assert status == 0, printed + errors
    status, printed, errors = call("submit", *shlex.split(train), "launch=slurm", "launch.folder=job")
    assert status == 0, printed + errors
    config = from_dict(yaml.safe_load((tmp_path / "job" / "job.yaml").read_text())["config"])
    tasks.make(config).check(open_store("mine"))

    # A Gaussian that is the whitened rows' own, in place of a training.
    config.model.networks = "gaussian"
    state = {"config": to_dict(config)}
    model = build_model(config, None).state_dict()
    training = {"trainer": {"tensors": {}}}
    Checkpoints(str(tmp_path / "results/mine/trials/000")).save(
        1, model=model, training=training, state=state, score=0.0
    )
    scope: dict[str, torch.Tensor] = {}
    exec(densities, scope)
    splits = split_store(config, open_store("mine"))
    train_rows = splits.restore(splits.train).double().numpy()
    truth = multivariate_normal(train_rows.mean(0), np.cov(train_rows.T)).logpdf(scope["rows"].numpy())
    assert np.allclose(scope["log_densities"].numpy(), truth, rtol=1e-2)


def test_the_page_has_a_command_for_each_kind() -> None:
    assert len(COMMANDS) == 3
