"""What a sweep leaves in MLflow: a real server, and the SQLite file that is the default."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow import MlflowClient

from pipeline.errors import UserError
from pipeline.tracking import Tracker, flatten


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server's address."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    uri = f"http://127.0.0.1:{port}"
    words = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "kept"),
        "--workers",
        "1",
    ]
    command = [sys.executable, "-m", "mlflow", "server", *words, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            wait_until_it_answers(f"{uri}/health", process)
            yield uri
        finally:
            process.terminate()


def wait_until_it_answers(url: str, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError as error:
            assert process.poll() is None and time.monotonic() < end, error
            time.sleep(0.2)


@pytest.fixture(params=["server", "file"])
def place(request, tmp_path):
    """A tracker's address, and where its artifacts go."""
    if request.param == "server":
        return request.getfixturevalue("server"), None
    return f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()


PARAMS = {"train": {"base_lr": 1e-4, "more": {f"key{index}": index for index in range(150)}}, "seed": 0, "space": {}}


def test_a_sweep_and_its_trials(place, tmp_path):
    uri, artifacts = place
    tracker = Tracker(uri, "digits", artifacts=artifacts)
    parent = tracker.start_sweep("sweep", PARAMS, "**what it is**", extractor="any-1a2b")
    child = tracker.start_trial("trial 000", {"train": {"base_lr": 3e-4}}, {"trial": "000"})
    for step, fid in ((10, 5.0), (20, 4.0)):
        values = {
            "base_step": step,
            "seconds_left": 3.0,
            "fid_base": fid + 1,
            "fid_gebm": fid,
            "kid_std_gebm": 0.5,
            "energy_loss": math.nan if step == 10 else 1.5,
            "base_loss": math.inf,
            "log_partition": -2.0,
            "images_per_second": 100,
            "acceptance_rate": 0.5,
            "extractor": "any-1a2b",
        }
        tracker.log_metrics(child, values, step)
        tracker.log_chain(child, "fid", {0: fid + 1, "50": math.nan, 100: fid}, step)
    (tmp_path / "grid.png").write_bytes(b"picture")
    tracker.log_files(child, [str(tmp_path / "grid.png")], folder="step-00000020")
    tracker.log_text(parent, "text", "notes.txt")
    tracker.describe(child, "finished", {"status": "finished"})
    tracker.end(child, "FINISHED")
    tracker.end(parent, "KILLED")

    client = MlflowClient(uri)
    found, above = client.get_run(child), client.get_run(parent)
    assert client.get_experiment(above.info.experiment_id).name == "digits"
    assert found.data.tags["mlflow.parentRunId"] == parent and found.data.tags["trial"] == "000"
    assert found.data.tags["mlflow.note.content"] == "finished" and found.data.tags["status"] == "finished"
    assert above.data.tags["mlflow.note.content"] == "**what it is**"
    assert (found.info.run_name, above.info.run_name) == ("trial 000", "sweep")
    assert (found.info.status, above.info.status) == ("FINISHED", "KILLED")
    assert found.data.params == {"train.base_lr": "0.0003"}
    assert above.data.params == {key: str(value) for key, value in flatten(PARAMS).items()}
    assert len(above.data.params) == 153  # more than MLflow takes at once
    assert found.data.metrics == {
        "fid/base/any-1a2b": 5.0,
        "fid/gebm/any-1a2b": 4.0,
        "kid_std/gebm/any-1a2b": 0.5,
        "train/energy_loss": 1.5,
        "kale/log_partition": -2.0,
        "rate/images_per_second": 100.0,
        "mcmc/acceptance_rate": 0.5,
        "fid_chain/00000/any-1a2b": 5.0,
        "fid_chain/00100/any-1a2b": 4.0,
    }
    history = client.get_metric_history(child, "fid/gebm/any-1a2b")
    assert [(point.step, point.value) for point in history] == [(10, 5.0), (20, 4.0)]
    assert [entry.path for entry in client.list_artifacts(child, "step-00000020")] == ["step-00000020/grid.png"]
    got = client.download_artifacts(child, "step-00000020/grid.png", str(tmp_path))
    with open(got, "rb") as file:
        assert file.read() == b"picture"
    assert [entry.path for entry in client.list_artifacts(parent)] == ["notes.txt"]


def test_a_resumed_sweep_goes_on_in_its_runs(place):
    uri, artifacts = place
    first = Tracker(uri, "resumed", artifacts=artifacts)
    parent = first.start_sweep("sweep", {"seed": 0}, "note", extractor="any")
    child = first.start_trial("trial 000", {"seed": 0}, {})
    first.log_metrics(child, {"fid_gebm": 2.0}, 10)
    first.end(child, "KILLED")
    first.end(parent, "KILLED")
    again = Tracker(uri, "resumed", artifacts=artifacts)
    assert again.experiment_id == first.experiment_id
    # Keys given to `resume` may differ from the run's params, which MLflow does not change.
    assert again.start_sweep("sweep", {"seed": 1}, "note", extractor="any", run_id=parent) == parent
    assert again.start_trial("trial 000", {"seed": 1}, {}, child) == child
    client = MlflowClient(uri)
    assert client.get_run(child).info.status == client.get_run(parent).info.status == "RUNNING"
    again.log_metrics(child, {"fid_gebm": 1.0}, 20)
    again.end(child, "FINISHED")
    assert [point.step for point in client.get_metric_history(child, "fid/gebm/any")] == [10, 20]
    assert client.get_run(child).info.status == "FINISHED"
    assert client.get_run(child).data.params == {"seed": "0"}
    assert len(client.search_runs([first.experiment_id])) == 2


def test_a_run_that_this_tracker_does_not_know_is_one_line(place):
    uri, artifacts = place
    tracker = Tracker(uri, "unknown", artifacts=artifacts)
    with pytest.raises(UserError) as refusal:
        tracker.start_sweep("sweep", {}, "note", extractor="any", run_id="0123456789abcdef0123456789abcdef")
    assert uri in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_tracker_that_is_not_there_is_one_line_within_seconds(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, however long it goes on" * 100)
    for uri in (
        f"http://127.0.0.1:{free_port()}",
        "foo://nowhere",
        f"sqlite:///{tmp_path}/text.db",
    ):
        begun = time.monotonic()
        with pytest.raises(UserError, match="no MLflow tracker at") as refusal:
            Tracker(uri, "x", artifacts=None)
        assert uri in str(refusal.value) and "tracking.uri" in str(refusal.value) and "\n" not in str(refusal.value)
        assert time.monotonic() - begun < 60  # MLflow's own patience is minutes
