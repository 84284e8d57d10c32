"""A trained model as an MLflow model: packaged without a pickle, registered once, served over HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from gebm import samplers
from gebm.folding import folded
from pipeline import config as schema
from pipeline.config.own_choices import keep_choices
from pipeline.config.warm_up import FOUND_KERNEL
from pipeline.data import open_store, sources, write_store
from pipeline.evaluation import metrics
from pipeline.runtime.errors import UserError
from pipeline.sweep.finalize import _found_sampler
from pipeline.tasks.open_store import split_store
from pipeline.tracking.journal import PermanentError
from pipeline.tracking.registry import BEST, MEASURE, _log, is_better_version, register
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.training.build_model import build_model, load_model, make_trainer
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.export import write_package

pytestmark = pytest.mark.usefixtures("mlflow_tables")

SAMPLER = {"name": "ula", "step_size": 1e-2, "num_steps": 5}


def trained(config: schema.Config, folder: Path, more: dict[str, Any] | None = None) -> str:
    """A checkpoint as a trial leaves it, of a model that has learnt nothing yet."""
    model = build_model(config)
    training = {"trainer": make_trainer(model, config, torch.device("cpu")).state_dict(), "plateau": {}}
    report = {"base_step": 8, "fid_gebm": 5.0, "extractor": "any", **(more or {})}
    state = {"config": schema.to_dict(config), "report": report, "lr_scale": 1.0}
    return Checkpoints(str(folder)).save(8, model=model.state_dict(), training=training, state=state, score=1.0)


MALA = {"name": "mala", "step_size": 1e-3, "num_steps": 5, "warm_up_steps": 7}
FOUND = {"step_size": 0.25, "inverse_mass": [0.5, 1.0, 1.5, 2.0]}


@pytest.mark.parametrize("search", [False, True], ids=["trained", "searched"])
def test_the_kernel_that_was_scored_is_served_without_another_warm_up(small, stores, tmp_path, monkeypatch, search):
    """Of a training the checkpoint has what the warm-up found, and of a search over the sampler the summary."""
    monkeypatch.setenv("GEBM_STORES", str(stores))
    config = small(sampler=SAMPLER if search else MALA, seed=3)
    url = trained(config, tmp_path / "trial", {} if search else {FOUND_KERNEL: FOUND})
    params = {f"sampler.{key}": value for key, value in MALA.items()}
    records = SweepSummary(str(tmp_path), metric="fid_gebm", mode="min", shown=(), facts={})
    place = f"{tmp_path}/trials/000/checkpoints/step-00000008"
    records.evaluated(records.add("000", params), {"base_step": 8, "fid_gebm": 1.0}, place, kernel=FOUND)
    records.write()
    [best] = read_summary(str(tmp_path))[1]
    monkeypatch.setattr("pipeline.training.export.find_kernel", lambda *_, **__: pytest.fail("it warms up again"))
    write_package(url, tmp_path / "package", sampler=_found_sampler(config, best) if search else {})
    settings = json.loads((tmp_path / "package" / "artifacts" / "gebm-model" / "settings.json").read_text())
    assert (settings["sampler"]["sampler"], settings["sampler"]["step_size"]) == ("mala", 0.25)
    assert settings["sampler_settings"]["inverse_mass"] == FOUND["inverse_mass"]


@pytest.mark.parametrize("found", [{"step_size": -1.0}, {"step_size": math.nan}, {"mass": 1.0}, [1.0], "x"])
def test_a_kernel_that_no_warm_up_finds_is_one_line(small, stores, tmp_path, monkeypatch, found):
    monkeypatch.setenv("GEBM_STORES", str(stores))
    url = trained(small(sampler=MALA), tmp_path / "trial", {FOUND_KERNEL: found})
    with pytest.raises(UserError, match="is damaged") as refusal:
        write_package(url, tmp_path / "package")
    assert "\n" not in str(refusal.value)


@pytest.fixture
def checkpoint(small, stores, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("GEBM_STORES", str(stores))
    return trained(small(sampler=SAMPLER, seed=3), tmp_path / "trial")


def request(count: int) -> pd.DataFrame:
    return pd.DataFrame({"num_samples": [count]})


def pixels(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))


def test_it_gives_the_samples_and_the_energies_of_the_model(checkpoint, tmp_path):
    write_package(checkpoint, tmp_path / "package")
    served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    found = served.predict(request(6), params={"num_steps": 7, "seed": 11})
    model, config, *_ = load_model(checkpoint, {})
    kernel = samplers.make("ula", step_size=1e-2, prior=model.prior)
    whole = folded(model)
    samples = whole.sample(6, kernel, 7, config.sampler.beta, torch.Generator().manual_seed(11))
    assert np.array_equal(
        np.stack([pixels(image) for image in found["image"]]), metrics.to_uint8(samples)[:, 0].numpy()
    )
    with torch.no_grad():
        assert np.allclose(found["energy"], whole.energy(samples).numpy(), atol=1e-6)
    assert served.predict(request(6), params={"num_steps": 7, "seed": 11}).equals(found)
    assert not served.predict(request(6), params={"num_steps": 7, "seed": 12})["image"].equals(found["image"])
    # Without parameters it is sampled as it was evaluated: from the training's seed, by its sampler.
    assert served.predict(request(2)).equals(served.predict(request(2), params={"num_steps": 5, "seed": 3}))


def test_what_a_search_over_samplers_found_is_what_it_is_sampled_with(checkpoint, tmp_path):
    write_package(checkpoint, tmp_path / "package", sampler={"name": "mala", "step_size": 0.5, "num_steps": 3})
    served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    asked = {"sampler": "mala", "step_size": 0.5, "num_steps": 3}
    assert served.predict(request(4)).equals(served.predict(request(4), params=asked))


def test_nothing_in_it_is_of_the_machine_that_made_it(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / "project" / name).write_text("# somebody's own\n")
    monkeypatch.chdir(tmp_path / "project")
    write_package(checkpoint, tmp_path / "package")
    expected_text = [
        path for path in (tmp_path / "package").rglob("*") if path.is_file() and path.name != "settings.json"
    ]
    assert not {"uv.lock", "pyproject.toml"} & {path.name for path in expected_text}
    here = [
        str(Path(__file__).parents[2]).encode(),
        str(tmp_path).encode(),
        os.fsencode(tempfile.gettempdir() + "/tmp"),
    ]
    assert not [path for path in expected_text for place in here if place in path.read_bytes()]


@pytest.mark.parametrize(
    ("count", "params", "expected_text"),
    [
        (0, {}, "ask for 1 to 10000"),
        (10_001, {}, "ask for 1 to 10000"),
        (1, {"sampler": "nothing"}, "choose one of"),
        (1, {"step_size": -1.0}, "step"),
        (1, {"num_steps": -1}, "num_steps=-1"),
        (1, {"beta": -0.5}, "beta=-0.5"),
        (1.5, {}, "num_samples=1.5: .* whole number"),
        (float("nan"), {}, "num_samples=nan"),
        (1, {"step_size": 1e30}, "step_size=1e[+]30.* chains diverged; lower step_size"),
        (4, {"step_size": 1e30, "sampler": "mala"}, "step_size=1e[+]30"),
        (1, {"step_size": math.inf}, "step_size=inf"),
        (1, {"step_size": math.nan}, "step_size=nan"),
        (1, {"friction": -1.0}, "friction=-1"),
        (1, {"seed": None}, "seed=null"),
        (1, {"seed": -1}, "seed=-1"),
        (1, {"seed": 2**63 - 1}, "seed=9223372036854775807"),
        (1, {"n_steps": 500}, "n_steps.* are unknown.*num_steps"),
        (1, {"num_steps": 5, "Beta": 2.0}, "Beta.* are unknown"),
        (1, {"num_steps": 1.5}, "num_steps"),
    ],
)
def test_a_bad_request_is_refused_in_a_line(checkpoint, tmp_path, count, params, expected_text):
    write_package(checkpoint, tmp_path / "package")
    served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    with pytest.raises(MlflowException, match=expected_text) as refusal:
        served.predict(request(count), params=params)
    assert refusal.value.error_code == "INVALID_PARAMETER_VALUE" and "\n" not in refusal.value.message


@pytest.mark.parametrize(("sampler", "steps"), [("ula", 3), ("mala", 4), ("kla", 2), ("ula", 0)])
def test_an_answer_says_how_each_chain_went(checkpoint, tmp_path, monkeypatch, sampler, steps):
    write_package(checkpoint, tmp_path / "package")
    served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    monkeypatch.setattr(sys.modules[type(served.unwrap_python_model()).__module__], "BATCH_SIZE", 2)
    found = served.predict(request(5), params={"sampler": sampler, "num_steps": steps, "step_size": 1e-3})
    assert list(found) == ["image", "energy", "acceptance", "divergences", "distance"]
    assert (found["divergences"] == 0).all() and found["acceptance"].between(0, 1).all()
    moved = found["distance"] > 0
    assert moved.equals(found["acceptance"] > 0) if steps else not moved.any()


def test_the_package_needs_gebm_and_no_pickle(checkpoint, tmp_path):
    """Loaded where nothing of the pipeline and no unpickling of ours can be had."""
    package = tmp_path / "package"
    write_package(checkpoint, package)
    kinds = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert kinds <= {".py", ".json", ".yaml", ".txt", ".typed", ".safetensors", ""}, kinds
    program = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "ray", "hydra", "webdataset", "torch_fidelity", "torchvision"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Wall())
import pickle, mlflow, pandas as pd
def refuse(*_, **__): raise AssertionError("unpickled")
import cloudpickle; pickle.load = pickle.loads = cloudpickle.load = cloudpickle.loads = refuse
found = mlflow.pyfunc.load_model(sys.argv[1]).predict(pd.DataFrame({"num_samples": [2]}))
import gebm; assert gebm.__file__.startswith(sys.argv[1]), gebm.__file__
print(len(found))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-P", "-c", program, str(package)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == "2", done.stderr


def test_rows_come_in_the_units_of_the_table(tmp_path):
    write_store(sources.make("toy"), str(tmp_path / "toy"), encoding="rows", channels=3)
    store = open_store(str(tmp_path / "toy"))
    values = {
        "name": "toy",
        "task": "points",
        "data": {"store": store.url, "resolution": None, "channels": 3, "encoding": "rows", "source": {"kind": "toy"}},
        "model": {"networks": "mlp", "latent_dim": 2, "width": 8},
        "sampler": SAMPLER,
        "sweep": {"metric": "distance_validation_gebm"},
    }
    config = schema.from_dict(values)
    config.data.split_seed = 0
    keep_choices(str(tmp_path), config)
    checkpoint = trained(config, tmp_path / "trial")
    write_package(checkpoint, tmp_path / "package")
    found = mlflow.pyfunc.load_model(str(tmp_path / "package")).predict(request(5))
    model, *_ = load_model(checkpoint, {})
    samples = model.sample(5, samplers.make("ula", step_size=1e-2), 5, 1.0, torch.Generator().manual_seed(0))
    assert np.allclose(np.array(found["row"].tolist()), split_store(config, store).restore(samples).numpy(), atol=1e-5)


VALUES = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.integers(-5, 5).map(float))


@given(st.lists(st.tuples(VALUES, st.sampled_from(["x", "y"])), max_size=12), st.sampled_from(["min", "max"]))
def test_the_alias_only_ever_moves_to_a_better_one_measured_alike(versions, mode):
    best = None
    for value, extractor in versions:
        new = {"value": repr(value), "mode": mode, "metric": "fid", "extractor": extractor}
        if is_better_version(new, best):
            assert math.isfinite(value)
            if best is not None:
                assert extractor == best["extractor"]
                assert value < float(best["value"]) if mode == "min" else value > float(best["value"])
            best = new
    alike = [value for value, extractor in versions if best and extractor == best["extractor"] and math.isfinite(value)]
    if best is None:
        assert not any(math.isfinite(value) for value, _ in versions)
    else:
        assert float(best["value"]) == (min if mode == "min" else max)(alike)


def entry(checkpoint: str, value: float, **tags: str) -> dict:
    measure = dict.fromkeys(MEASURE, "alike") | {"mode": "min", "value": repr(value), "checkpoint": checkpoint} | tags
    return {
        "name": "small",
        "checkpoint": checkpoint,
        "sampler": {},
        "base_step": 8,
        "description": "a model",
        "tags": measure,
    }


def packaged(value: float, **tags: str):
    """Packages a checkpoint as if its report had this score."""

    def package(*args: object, **kwargs: object) -> dict[str, str]:
        return write_package(*args, **kwargs) | dict.fromkeys(MEASURE, "alike") | {"value": repr(value), **tags}

    return package


def test_a_versions_score_is_its_checkpoints_and_not_what_an_entry_says(checkpoint, tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("small", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    register(client, experiment, run, entry(checkpoint, 1e-9, metric="x", extractor="y"), write_package)
    tags = client.get_model_version_by_alias("small", BEST).tags
    assert (tags["value"], tags["metric"], tags["mode"], tags["extractor"]) == ("5.0", "fid_gebm", "min", "any")


def test_it_is_registered_once_and_the_alias_stays_with_the_best(checkpoint, tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("small", artifact_location=(tmp_path / "artifacts").as_uri())
    runs = [client.create_run(experiment).info.run_id for _ in range(4)]

    def best() -> str:
        return str(client.get_model_version_by_alias("small", BEST).version)

    assert register(client, experiment, runs[0], entry(checkpoint, 5.0), packaged(5.0)) is None
    register(
        client, experiment, runs[0], entry(checkpoint, 5.0), packaged(5.0)
    )  # sent again, by a driver that died in between
    assert len(client.search_model_versions("name = 'small'")) == 1 and best() == "1"
    register(client, experiment, runs[1], entry(checkpoint, 6.0), packaged(6.0))
    assert best() == "1"
    register(client, experiment, runs[2], entry(checkpoint, 4.0), packaged(4.0))
    assert best() == "3"
    expected_text = register(client, experiment, runs[3], entry(checkpoint, 1.0), packaged(1.0, extractor="another"))
    assert best() == "3" and "measured otherwise" in expected_text and "\n" not in expected_text
    with pytest.raises(PermanentError, match="cannot be made a model"):
        register(client, experiment, runs[3], entry(str(tmp_path / "gone"), 1.0), write_package)
    # A driver that died between the two leaves a logged model, which is registered and not logged anew.
    run = client.create_run(experiment).info.run_id
    _log(client, experiment, run, entry(checkpoint, 9.0), packaged(9.0))
    register(client, experiment, run, entry(checkpoint, 9.0), packaged(9.0))
    assert len(client.search_logged_models([experiment], f"source_run_id = '{run}'")) == 1
    version = client.get_model_version_by_alias("small", BEST)
    assert version.run_id == runs[2] and version.tags["value"] == "4.0"
    outputs = client.get_run(runs[2]).outputs.model_outputs
    assert [output.step for output in outputs] == [8]
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        assert len(mlflow.pyfunc.load_model(f"models:/small@{BEST}").predict(request(3))) == 3
    finally:
        mlflow.set_tracking_uri(None)


def test_it_is_served(checkpoint, tmp_path):
    write_package(checkpoint, tmp_path / "package")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["models", "serve", "-m", str(tmp_path / "package"), "--env-manager", "local", "--port", str(port)]
    # As in an environment that is activated: MLflow starts uvicorn by its name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--workers", "1"],
            stdout=log, stderr=log, start_new_session=True, cwd=tmp_path, env={**os.environ, "PATH": path},
        )  # fmt: skip
    try:
        end = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.3)

        def ask(count: int, **params: object) -> dict:
            body = {"dataframe_split": {"columns": ["num_samples"], "data": [[count]]}, "params": params}
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            return json.load(urllib.request.urlopen(asked, timeout=60))

        found = ask(3, num_steps=4, seed=1)["predictions"]
        assert [pixels(row["image"]).shape for row in found] == [(8, 8)] * 3
        assert all(math.isfinite(row["energy"]) for row in found)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(0)
        assert refusal.value.code == 400 and "ask for 1 to 10000" in json.load(refusal.value)["message"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
