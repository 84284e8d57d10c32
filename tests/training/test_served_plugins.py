"""A served model runs the plugin that came with it where whoever serves it consents to that code, and nowhere else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from gebm import networks
from pipeline import config as schema
from pipeline.config import plugins
from pipeline.training.build_model import build_model, make_trainer
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.export import write_package
from pipeline.training.served_model import load_plugins
from tests.helpers.plugins import NETWORKS, SAMPLER, forget, no_plugins

__all__ = ["no_plugins"]

pytestmark = pytest.mark.usefixtures("no_plugins")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as a served model's, with a plugin in it."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(NETWORKS)
    return tmp_path


DIGEST = hashlib.sha256(NETWORKS.encode()).hexdigest()
FILE = [{"file": "plugins/mine.py"}]


@pytest.mark.parametrize(
    "consent", [None, "", "mine.py", "plugins/mine.py", "sha256=", f"sha256={'0' * 64}", "other.py"]
)
def test_without_consent_to_its_content_a_plugin_is_not_run(package, monkeypatch, consent):
    monkeypatch.chdir(package)
    # Of the same name, and another content: what its owner uses.
    for path in (package / "mine.py", package / "other.py"):
        path.write_text("VALUE = 1")
    if consent is not None:
        monkeypatch.setenv("GEBM_PLUGINS", consent)
    if consent == "plugins/mine.py":
        load_plugins(FILE, package)
        assert "plain" in networks.NAMES
        return
    with pytest.raises(MlflowException, match=f"set GEBM_PLUGINS=sha256={DIGEST}") as refusal:
        load_plugins(FILE, package)
    assert "plain" not in networks.NAMES and "\n" not in str(refusal.value)


@pytest.mark.parametrize("others", ["", "my_package.parts,", "/none/a.py:"])
def test_the_consent_that_the_message_names_is_one(package, monkeypatch, others):
    monkeypatch.setenv("GEBM_PLUGINS", f"{others}sha256={DIGEST}")
    load_plugins(FILE, package)
    load_plugins(FILE, package)
    assert "plain" in networks.NAMES


def test_a_module_is_imported_by_its_name_alone(package, monkeypatch):
    monkeypatch.setenv("GEBM_PLUGINS", "json")
    load_plugins([{"name": "json"}], package)
    with pytest.raises(MlflowException, match=r"set GEBM_PLUGINS=os\.path "):
        load_plugins([{"name": "os.path"}], package)


def test_a_model_is_packaged_with_the_plugin_that_it_needs_and_served_by_consent(small, tmp_path, monkeypatch):
    path, other = tmp_path / "mine.py", tmp_path / "other.py"
    path.write_text(NETWORKS + SAMPLER)
    other.write_text("import gebm\ngebm.penalties.register('other')(gebm.NoPenalty)")
    plugins.load([str(path), str(other)])
    sampler = {"name": "scaled", "step_size": 1e-2, "num_steps": 3, "settings": {"gamma": 2.0}}
    config = small(
        model={"networks": "plain", "width": None, "settings": {"depth": 2}}, sampler=sampler, plugins=plugins.names()
    )
    model = build_model(config)
    training = {"trainer": make_trainer(model, config, torch.device("cpu")).state_dict(), "plateau": {}}
    state = {"config": schema.to_dict(config), "report": {"base_step": 1}, "lr_scale": 1.0}
    url = Checkpoints(str(tmp_path / "trial")).save(
        1, model=model.state_dict(), training=training, state=state, score=1
    )
    write_package(url, tmp_path / "package")
    settings = json.loads((tmp_path / "package" / "artifacts" / "gebm-model" / "settings.json").read_text())
    assert settings["plugins"] == [{"file": "plugins/0/mine.py"}]
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        with pytest.raises(MlflowException, match="set GEBM_PLUGINS=sha256="):
            mlflow.pyfunc.load_model(str(tmp_path / "package"))
        monkeypatch.setenv("GEBM_PLUGINS", f"sha256={hashlib.sha256(path.read_bytes()).hexdigest()}")
        served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
        answer = served.predict(pd.DataFrame({"num_samples": [3]}))
        assert len(answer) == 3 and answer["energy"].notna().all()
