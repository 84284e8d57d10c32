"""What a sweep leaves in MLflow: a real server, and the SQLite file that is the default."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow.data
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.utils.validation import _validate_param
from PIL import Image

from pipeline.config.scores import ChainPoint
from pipeline.runtime.errors import UserError
from pipeline.sweep.trial_runs import restore_runs
from pipeline.tracking import database
from pipeline.tracking.journal import Journal, PermanentError
from pipeline.tracking.journal_entries import parse_entry, read_artifact
from pipeline.tracking.mlflow_entities import param_names
from pipeline.tracking.registry import BEST, model_name
from pipeline.tracking.resumed_run import why_not_continued
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker, flatten
from tests.helpers.mlflow_database import copy_database
from tests.helpers.sweep import DATA

pytestmark = pytest.mark.usefixtures("mlflow_tables")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serve(folder: Path, port: int) -> subprocess.Popen:
    """Start a server, and wait until it answers; it has a group of its own, which can be killed whole."""
    words = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "kept"),
        "--workers",
        "1",
    ]
    command = [sys.executable, "-m", "mlflow", "server", *words, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    wait_until_it_answers(f"http://127.0.0.1:{port}/health", process)
    return process


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory, mlflow_tables):
    """A server's address."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    copy_database(mlflow_tables, folder / "mlflow.db")
    process = serve(folder, port)
    yield f"http://127.0.0.1:{port}"
    kill(process)


def wait_until_it_answers(url: str, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError as error:
            assert process.poll() is None and time.monotonic() < end, error
            time.sleep(0.2)


class Way:
    """A way to a server, which can be cut off and opened again, as if the server went away and came back."""

    def __init__(self, server: str) -> None:
        self._target = server.rpartition("/")[2].split(":")
        self._listener: socket.socket | None = None
        self._ends: list[socket.socket] = []
        self.port = free_port()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        """Refuse connections from now on, and break those that there are."""
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(tuple(self._target))
                self._ends += near, far
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=[source, sink], daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def way(server) -> Iterator[Way]:
    way = Way(server)
    way.open()
    yield way
    way.cut()


@pytest.fixture(params=["server", "file"])
def place(request, tmp_path):
    """A tracker's address, and where its artifacts go."""
    if request.param == "server":
        return request.getfixturevalue("server"), None
    return f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()


PARAMS = {"train": {"base_lr": 1e-4, "more": {f"key{index}": index for index in range(150)}}, "seed": 0, "space": {}}


def test_a_sweep_and_its_trials(place, tmp_path):
    uri, artifacts = place
    tracker = Tracker(uri, "digits", artifacts=artifacts, journal=tmp_path / "journal", folder=str(tmp_path))
    parent = tracker.start_sweep("sweep", PARAMS, "**what it is**", extractor="any-1a2b")
    tracker.log_data(DATA)
    tracker.share_view(["fid_base", "fid_gebm"], "fid_gebm", "min", ["train.base_lr"], has_finals=True)
    tracker.start_trial("000", {"train": {"base_lr": 3e-4}}, {"experiment": "digits"}, "train:\n  base_lr: 0.0003\n")
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
            "ess_bulk": 80.0,
            "r_hat": 1.5,
            "nearest_gebm": 1.25,
            "system/cpu_utilization_percentage": 50.0,
            "extractor": "any-1a2b",
        }
        tracker.log_metrics("000", values, step)
        chain = {0: ChainPoint(fid + 1, 0.5), 50: ChainPoint(math.nan), 100: ChainPoint(fid)}
        tracker.log_chain("000", "fid", chain, step)
    (tmp_path / "grid.png").write_bytes(b"picture")
    tracker.log_files("000", [str(tmp_path / "grid.png")], folder="step-00000020")
    tracker.log_files(None, [str(tmp_path / "grid.png")])
    tracker.describe("000", "finished", {"status": "finished"})
    tracker.end("000", "FINISHED")
    tracker.end(None, "KILLED")
    assert tracker.close(flush_timeout=60) == 0

    client, child = MlflowClient(uri), str(tracker.trial_run_id("000"))
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
    config = client.download_artifacts(child, "config.yaml", str(tmp_path))
    assert Path(config).read_text() == "train:\n  base_lr: 0.0003\n"
    view = json.loads(client.get_experiment(above.info.experiment_id).tags[f"mlflow.sharedViewState.{parent}"])
    assert view["orderByKey"] == "metrics.`best/fid_gebm.any-1a2b`" and view["orderByAsc"] is True
    assert "metrics.`final_fid/gebm.any-1a2b`" in view["selectedColumns"]
    assert [run.info.run_id for run in client.search_runs([tracker.experiment_id], view["searchFilter"])] == [child]
    assert found.data.metrics == {
        "fid/base.any-1a2b": 5.0,
        "fid/gebm.any-1a2b": 4.0,
        "kid_std/gebm.any-1a2b": 0.5,
        "train/energy_loss": 1.5,
        "kale/log_partition": -2.0,
        "rate/images_per_second": 100.0,
        "mcmc/acceptance_rate": 0.5,
        "mcmc/ess_bulk": 80.0,
        "mcmc/r_hat": 1.5,
        "nearest/gebm.any-1a2b": 1.25,
        "system/cpu_utilization_percentage": 50.0,
        "fid_chain/00000.any-1a2b": 5.0,
        "fid_chain/00000_standard_error.any-1a2b": 0.5,
        "fid_chain/00100.any-1a2b": 4.0,
    }
    history = client.get_metric_history(child, "fid/gebm.any-1a2b")
    assert [(point.step, point.value) for point in history] == [(10, 5.0), (20, 4.0)]
    assert [entry.path for entry in client.list_artifacts(child, "step-00000020")] == ["step-00000020/grid.png"]
    got = client.download_artifacts(child, "step-00000020/grid.png", str(tmp_path))
    with open(got, "rb") as file:
        assert file.read() == b"picture"
    assert [entry.path for entry in client.list_artifacts(parent)] == ["grid.png"]
    for run in (found, above):
        assert run.data.tags["store_checksum"] == DATA["checksum"]
        [seen] = run.inputs.dataset_inputs
        assert (seen.dataset.name, seen.dataset.digest) == ("digits-8", DATA["checksum"])
        assert mlflow.data.get_source(seen.dataset).uri == DATA["url"]
        profile = json.loads(seen.dataset.profile)
        assert profile == {"num_rows": 1797, "num_elements": 1797 * 64, "num_shards": 2, "num_bytes": 125_000}
        assert {tag.key: tag.value for tag in seen.tags} == {"mlflow.data.context": "training"}


def test_pictures_of_one_name_are_a_slider_over_base_steps(place, tmp_path):
    """Under names that MLflow itself gives images, since its UI takes their step from there."""
    uri, artifacts = place
    tracker = Tracker(uri, "pictures", artifacts=artifacts, journal=tmp_path / "journal", folder=str(tmp_path))
    tracker.start_sweep("sweep", {}, "note", extractor="any")
    tracker.start_trial("000", {}, {})
    for step in (10, 20):
        Image.new("RGB", (600, 300), (step, 0, 0)).save(tmp_path / "base_and_gebm.png")
        (tmp_path / "chain.gif").write_bytes(b"moving")
        tracker.log_pictures("000", [str(tmp_path / name) for name in ("base_and_gebm.png", "chain.gif")], step)
        assert tracker._journal.flush(flush_timeout=60) == 0
    assert tracker.close(flush_timeout=60) == 0
    client, run = MlflowClient(uri), str(tracker.trial_run_id("000"))
    # What MLflow writes for an image of its own, read in the same way.
    client.log_image(run, Image.new("RGB", (600, 300)), key="base_and_gebm", step=30, synchronous=True)
    names = [Path(entry.path).name for entry in client.list_artifacts(run, "images")]
    form = r"base_and_gebm\+step\+(\d+)\+timestamp\+(\d{13})\+[0-9a-f-]{36}(\.png|\+compressed\.webp)"
    parts = [re.fullmatch(form, name) for name in names]
    assert all(parts), names
    assert sorted((int(part[1]), part[3]) for part in parts) == [
        (step, ending) for step in (10, 20, 30) for ending in ("+compressed.webp", ".png")
    ]
    assert client.get_run(run).data.tags["mlflow.loggedImages"] == "True"
    for part in parts:
        image = Image.open(client.download_artifacts(run, f"images/{part[0]}", str(tmp_path)))
        thumbnail = (256, 128) if part[1] == "30" else (702, 702)
        assert image.size == ((600, 300) if part[3] == ".png" else thumbnail)
        if part[3] == ".png" and part[1] != "30":
            assert image.getpixel((0, 0)) == (int(part[1]), 0, 0)
    assert [entry.path for entry in client.list_artifacts(run, "step-00000020")] == ["step-00000020/chain.gif"]


def test_a_resumed_sweep_goes_on_in_its_runs(place, tmp_path):
    uri, artifacts = place
    first = Tracker(uri, "resumed", artifacts=artifacts, journal=tmp_path / "journal", folder=str(tmp_path))
    parent = first.start_sweep("sweep", {"seed": 0, "output": str(tmp_path)}, "note", extractor="any")
    first.start_trial("000", {"seed": 0}, {})
    first.log_metrics("000", {"fid_gebm": 2.0}, 10)
    first.end("000", "KILLED", "trial 000, pruned")
    first.end(None, "KILLED")
    assert first.close(flush_timeout=60) == 0
    assert MlflowClient(uri).get_run(str(first.trial_run_id("000"))).info.run_name == "trial 000, pruned"
    again = Tracker(uri, "resumed", artifacts=artifacts, journal=tmp_path / "journal", folder=str(tmp_path))
    assert again.experiment_id == first.experiment_id
    # Keys given to `resume` may differ from the run's params, which MLflow does not change.
    assert again.start_sweep("sweep", {"seed": 1}, "note", extractor="any", run_id=parent) == parent
    again.start_trial("000", {"seed": 1}, {})
    client, child = MlflowClient(uri), str(first.trial_run_id("000"))
    assert again._journal.flush(flush_timeout=60) == 0
    assert client.get_run(child).info.run_name == "trial 000"
    assert client.get_run(child).info.status == client.get_run(parent).info.status == "RUNNING"
    again.log_metrics("000", {"fid_gebm": 1.0}, 20)
    again.end("000", "FINISHED")
    assert again.close(flush_timeout=60) == 0
    assert [point.step for point in client.get_metric_history(child, "fid/gebm.any")] == [10, 20]
    assert client.get_run(child).info.status == "FINISHED"
    assert client.get_run(child).data.params == {"seed": "0"}
    assert len(client.search_runs([first.experiment_id])) == 2


def sweep_of_two(tracker: Tracker, picture: Path) -> None:
    """Entries of a sweep of two trials."""
    tracker.log_data(DATA)
    for trial in ("000", "001"):
        tracker.start_trial(trial, {"seed": trial}, {"experiment": "two"})
        for step in range(1, 6):
            tracker.log_metrics(trial, {"fid_gebm": 10.0 - step, "base_loss": float(step)}, step)
        tracker.log_files(trial, [str(picture)], folder="step-5")
        tracker.log_pictures(trial, [str(picture)], 5)
        tracker.describe(trial, "finished", {"status": "finished"})
        tracker.end(trial, "FINISHED")
    tracker.log_metrics(None, {"fid_gebm": 5.0}, 0)
    tracker.end(None, "FINISHED")


def kept(client: MlflowClient, parent: str) -> dict[str, object]:
    """All that the tracker holds of a sweep, times included."""
    experiment = client.get_run(parent).info.experiment_id
    found = {}
    for run in client.search_runs([experiment]):
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        points = {name: [(p.step, p.value, p.timestamp) for p in points] for name, points in history.items()}
        files = [entry.path for entry in client.list_artifacts(run.info.run_id, "step-5")]
        files += [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
        files += [seen.dataset.digest for seen in run.inputs.dataset_inputs]
        found[run.info.run_name] = points, run.data.params, run.data.tags.get("status"), files, run.info.end_time
    return found


def test_a_tracker_that_goes_away_gets_all_of_it_once_when_it_is_back(way, tmp_path):
    said = []
    uri, journal, picture = f"http://127.0.0.1:{way.port}", tmp_path / "journal", tmp_path / "grid.png"
    Image.new("L", (8, 8)).save(picture)
    tracker = Tracker(uri, "away", artifacts=None, journal=journal, folder=str(tmp_path), notify=said.append)
    parent = tracker.start_sweep("sweep", {"seed": 0, "output": str(tmp_path)}, "note", extractor="any")
    way.cut()
    sweep_of_two(tracker, picture)  # returns although no server listens
    assert tracker._journal.flush(flush_timeout=3) == 26 and len(journal.read_text().splitlines()) == 26
    assert len(said) == 1 and "does not answer" in said[0] and str(journal) in said[0]
    way.open()
    assert tracker.close(flush_timeout=120) == 0
    assert len(said) == 2 and "26 entries" in said[1]
    client = MlflowClient(uri)
    found = kept(client, parent)
    assert sorted(found) == ["sweep", "trial 000", "trial 001"]
    for name in ("trial 000", "trial 001"):
        points, params, status, files, _ = found[name]
        assert [(step, value) for step, value, _ in points["fid/gebm.any"]] == [(n, 10.0 - n) for n in range(1, 6)]
        assert params == {"seed": name[-3:]} and status == "finished"
        assert files[0] == "step-5/grid.png" and files[-1] == DATA["checksum"] and len(files) == 4

    # The driver dies after an entry was sent and before it is noted, wherever that is: sent again, nothing changes.
    note = journal.with_name("journal.sent")
    for sent in (0, 7, 25):
        note.write_text(str(sent))
        again = Tracker(uri, "away", artifacts=None, journal=journal, folder=str(tmp_path))
        again.start_sweep("sweep", {}, "note", extractor="any", run_id=parent)
        assert again.close(flush_timeout=60) == 0
        assert kept(client, parent) == found


def test_entries_that_no_tracker_takes_do_not_hold_up_the_others(tmp_path):
    said = []
    uri, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()
    tracker = Tracker(
        uri, "refused", artifacts=artifacts, journal=tmp_path / "journal", folder=str(tmp_path), notify=said.append
    )
    parent = tracker.start_sweep("sweep", {}, "note", extractor="any")
    tracker.log_metrics("000", {"fid_gebm": 1.0}, 1)  # a trial that was never started
    tracker.log_files(None, [str(tmp_path / "gone.png")])
    (tmp_path / "broken.png").write_bytes(b"picture")
    tracker.start_trial("001", {}, {})
    tracker.log_pictures("001", [str(tmp_path / "broken.png")], 10)
    tracker.log_metrics(None, {"a name: with a colon?": 1.0, "fid_gebm": 2.0}, 1)
    tracker.log_metrics(None, {"fid_gebm": 3.0}, 2)
    assert tracker.close(flush_timeout=60) == 0
    assert [point.value for point in MlflowClient(uri).get_metric_history(parent, "fid/gebm.any")] == [3.0]
    assert len(said) == 4 and all("left out" in line for line in said)
    assert "gone.png" in said[1] and "the picture broken of base step 10 is no image" in said[2]


@pytest.mark.parametrize(
    ("journal", "sent"), [(b"{}\n\xff\n", None), (b"[1]\n", None), (b"{}\n", "2"), (b"{}\n", "many"), (b"{}\n", "-1")]
)
def test_a_damaged_journal_is_one_line(tmp_path, journal, sent):
    (tmp_path / "journal").write_bytes(journal)
    if sent is not None:
        (tmp_path / "journal.sent").write_text(sent)
    with pytest.raises(UserError, match="journal") as refusal:
        Journal(tmp_path / "journal", lambda entries: None)
    assert "\n" not in str(refusal.value)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 60), lost=st.integers(0, 3))
def test_whatever_was_written_of_the_journal_is_sent_in_order(tmp_path, cut, lost):
    entries = [{"number": number} for number in range(4)]
    whole = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "journal").write_bytes(whole[: min(cut, len(whole))])  # the driver died while it wrote
    there = whole[: min(cut, len(whole))].count(b"\n")
    (folder / "journal.sent").write_text(str(min(lost, there)))
    sent = []
    journal = Journal(folder / "journal", sent.extend)
    journal.put({"number": "new"})
    assert journal.close(flush_timeout=30) == 0
    assert sent == [*entries[min(lost, there) : there], {"number": "new"}]
    assert (folder / "journal").read_bytes().count(b"\n") == there + 1 == int((folder / "journal.sent").read_text())


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.lists(st.booleans(), max_size=40))
def test_of_entries_that_wait_together_those_are_found_that_nobody_takes(tmp_path, bad):
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "journal"
    path.write_text("".join(f'{{"number": {number}}}\n' for number in range(len(bad))))  # of a driver that died
    sent, said = [], []

    def deliver(entries):
        if any(bad[entry["number"]] for entry in entries):
            raise PermanentError("this one")
        sent.extend(entry["number"] for entry in entries)

    assert Journal(path, deliver, said.append).close(flush_timeout=30) == 0
    assert sent == [number for number, hopeless in enumerate(bad) if not hopeless]
    assert len(said) == sum(bad)
    assert path.with_name("journal.sent").exists() == bool(bad)


def test_a_tracker_that_is_not_there_is_one_line_within_seconds(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, however long it is" * 100)
    for uri in (
        f"http://127.0.0.1:{free_port()}",
        "foo://nowhere",
        f"sqlite:///{tmp_path}/text.db",
    ):
        begun = time.monotonic()
        with pytest.raises(UserError, match="no MLflow tracker at") as refusal:
            Tracker(uri, "x", artifacts=None, journal=tmp_path / "journal", folder=str(tmp_path))
        assert uri in str(refusal.value) and "tracking.uri" in str(refusal.value) and "\n" not in str(refusal.value)
        assert time.monotonic() - begun < 60  # MLflow's own patience is minutes


def test_what_the_journal_has_no_room_for_is_sent_all_the_same(tmp_path):
    sent, said, path = [], [], tmp_path / "journal"
    journal = Journal(path, sent.extend, said.append)
    journal.put({"number": 0})
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 3, limits[1]))  # room for a part of a line
    try:
        journal.put({"number": 1})
        journal.put({"number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole and len(said) == 1 and "queueing in memory" in said[0]
    journal.put({"number": 3})
    assert journal.close(flush_timeout=20) == 0
    assert sent == [{"number": number} for number in range(4)]
    again = Journal(path, sent.extend)
    assert again.close(flush_timeout=20) == 0 and len(sent) == 4  # the journal knows what of it is out


WORDS = st.one_of(st.none(), st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.just("000"))
KEYS = st.sampled_from(["kind", "trial", "file", "folder", "time", "step", "metrics", "tags", "status", "params"])
KINDS = st.sampled_from(["start", "metrics", "file", "image", "data", "model", "tags", "end"])


@settings(max_examples=500)
@given(st.dictionaries(KEYS, st.one_of(WORDS, KINDS, st.dictionaries(st.text(max_size=3), WORDS), st.lists(WORDS))))
def test_an_entry_is_a_sweeps_or_refused(entry):
    try:
        parse_entry(entry)
    except PermanentError:
        return
    assert entry["trial"] is None if entry.get("trial") is None else entry["trial"].isdigit()
    if entry["kind"] in ("start", "tags", "model"):
        assert all(isinstance(value, str) for value in entry["tags"].values())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "link", "", "secret", "~", "file:", "sweep"]), min_size=1, max_size=6))
def test_no_name_leads_out_of_the_sweeps_folder(tmp_path, parts):
    sweep = tmp_path / "sweep"
    if not sweep.exists():
        (sweep / "a").mkdir(parents=True)
        (sweep / "a" / "secret").write_bytes(b"ours")
        (tmp_path / "secret").write_bytes(b"not ours")
        (sweep / "link").symlink_to(tmp_path)
    try:
        found = read_artifact(str(sweep), "/".join(parts))
    except (PermanentError, OSError):
        return
    assert found == b"ours"


def test_an_untrusted_journal_sends_nothing_of_this_machine(tmp_path):
    sweep, said = tmp_path / "sweep", []
    sweep.mkdir()
    (tmp_path / "secret").write_text("not ours")
    (sweep / "grid.gif").write_bytes(b"ours")
    ours = {"kind": "file", "trial": None, "file": "grid.gif", "folder": None}
    foreign = [
        {**ours, "file": "../secret"},
        {**ours, "file": str(tmp_path / "secret")},
        {**ours, "file": f"file://{tmp_path}/secret"},
        {"kind": "file", "trial": None, "url": str(tmp_path / "secret"), "folder": None},
        {"metric": 1.0},
    ]
    (sweep / "journal").write_text("".join(f"{json.dumps(entry)}\n" for entry in [*foreign, ours]))
    uri, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()
    payload = {"artifacts": artifacts, "journal": sweep / "journal", "folder": str(sweep), "notify": said.append}
    tracker = Tracker(uri, "strange", **payload)
    run = tracker.start_sweep("strange", {}, "", extractor=None)
    assert tracker.close(flush_timeout=60) == 0
    assert [entry.path for entry in MlflowClient(uri).list_artifacts(run)] == ["grid.gif"]
    assert sum("left out" in line for line in said) == len(foreign)


# Trackers as people leave them.


def file_tracker(folder, experiment="digits", **options):
    artifacts = (folder / "artifacts").as_uri()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return Tracker(uri, experiment, artifacts=artifacts, journal=folder / "journal", folder=str(folder), **options)


OPEN = """
import sys
from pathlib import Path
from pipeline.tracking.tracker import Tracker
folder = Path(sys.argv[1])
tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", "digits", artifacts=None, journal=folder / sys.argv[2],
                  folder=str(folder))
tracker.start_sweep(sys.argv[2], {}, "", extractor=None)
print(tracker.experiment_id, tracker.close(60))
"""


def test_processes_that_first_use_a_database_at_once_all_run(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(tmp_path), str(index)], stdout=-1, stderr=-1, text=True)
        for index in range(3)
    ]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    assert {out for out, _ in printed} == {"1 0\n"}


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b c.db", "/a/b c.db"),
        ("sqlite:///a.db?timeout=3", "a.db"),
        ("sqlite+pysqlite:///a.db", "a.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://host/db", None),
    ],
)
def test_only_a_database_in_a_file_is_locked(tmp_path, uri, path):
    assert database._database(uri) == path


@pytest.mark.parametrize("failure", [PermissionError("read only"), NotImplementedError("no flock"), OSError("ENOLCK")])
def test_where_no_file_can_be_locked_the_database_is_opened_all_the_same(tmp_path, monkeypatch, failure):
    def refuse(lock: object) -> None:
        raise failure

    monkeypatch.setattr(database.FileLock, "acquire", refuse)
    with database.opening(f"sqlite:///{tmp_path}/mlflow.db"):
        pass


def test_an_experiment_that_was_deleted_is_named_with_the_command_that_restores_it(tmp_path):
    tracker = file_tracker(tmp_path)
    MlflowClient(tracker.uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match=r"^experiment digits is deleted at sqlite:") as refusal:
        file_tracker(tmp_path)
    line = str(refusal.value)
    assert "tracking.experiment=" in line and "\n" not in line
    assert f"MLFLOW_TRACKING_URI={tracker.uri} mlflow experiments restore --experiment-id 1`" in line
    assert file_tracker(tmp_path, "another").experiment_id != tracker.experiment_id
    # What the command does.
    MlflowClient(tracker.uri).restore_experiment(tracker.experiment_id)
    assert file_tracker(tmp_path).experiment_id == tracker.experiment_id


@pytest.mark.parametrize("lost", ["run", "database"])
def test_a_sweep_whose_run_is_gone_gets_another_from_its_summary(tmp_path, small, lost):
    first = file_tracker(tmp_path)
    parent = first.start_sweep("sweep", {"seed": 0}, "note", extractor="any")
    assert first.close(60) == 0
    if lost == "run":
        MlflowClient(first.uri).delete_run(parent)
    lines = []
    # This process keeps a database that was opened open: one that is lost is another one.
    home = tmp_path if lost == "run" else tmp_path / "elsewhere"
    home.mkdir(exist_ok=True)
    again = file_tracker(home, notify=lines.append)
    run_id = again.start_sweep("sweep", {"seed": 0}, "note", extractor="any", run_id=parent)
    assert run_id != parent and [f"run {parent} is gone" in line for line in lines] == [True]
    done = TrialRecord("000", {"seed": 3}, "finished", {"base_step": 20, "fid_gebm": 2.0})
    done.evaluations = [{"base_step": 10, "fid_gebm": 3.0}, {"base_step": 20, "fid_gebm": 2.0}]
    failed = TrialRecord("001", {}, "failed", error="out of memory")
    left = TrialRecord("002", {}, "pending")
    trials = [done, failed, left]
    summary = SweepSummary(str(tmp_path), metric="fid_gebm", mode="min", shown=(), facts={}, trials=trials)
    restore_runs(small(), summary, again)
    assert again.close(60) == 0
    client = MlflowClient(again.uri)
    runs = {run.data.tags.get("trial"): run for run in client.search_runs([again.experiment_id])}
    assert set(runs) == {None, "000", "001"}
    assert runs["000"].info.status == "FINISHED" and runs["001"].info.status == "FAILED"
    assert runs["000"].data.tags["mlflow.parentRunId"] == run_id and runs["000"].data.params["seed"] == "3"
    history = client.get_metric_history(runs["000"].info.run_id, "fid/gebm.any")
    assert sorted({(point.step, point.value) for point in history}) == [(10, 3.0), (20, 2.0)]


@pytest.mark.parametrize("fate", ["stays", "linked", "moved", "moved, and another there", "copied", "not a sweep's"])
def test_a_run_is_continued_from_its_own_folder_and_from_no_copy_of_it(tmp_path, fate):
    first = file_tracker(tmp_path)
    folder, now = tmp_path / "sweep", tmp_path / ("sweep" if fate == "stays" else "now")
    params = {} if fate == "not a sweep's" else {"output": str(folder)}
    run_id = first.start_sweep("sweep", params, "note", extractor=None)
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"mlflow_run_id": run_id}))
    match fate:
        case "linked":
            now.symlink_to(folder)
        case "moved" | "moved, and another there":
            folder.rename(now)
        case "copied" | "not a sweep's":
            shutil.copytree(folder, now)
    if fate == "moved, and another there":
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"mlflow_run_id": "0" * 32}))
    reason = why_not_continued(MlflowClient(first.uri), run_id, str(now))
    assert first.close(60) == 0
    if fate in ("stays", "linked", "moved", "moved, and another there"):
        assert reason is None
    elif fate == "copied":
        assert reason == f"belongs to {folder}, of which this folder is a copy"
    else:
        assert reason == "is not a sweep's"


@pytest.mark.parametrize(
    "origin", ["s3://elsewhere/sweep", "http://127.0.0.1:9/sweep", "ssh://host/sweep", "simplecache::s3://b/sweep"]
)
def test_a_run_does_not_decide_whom_to_talk_to(tmp_path, monkeypatch, origin):
    first = file_tracker(tmp_path)
    run_id = first.start_sweep("sweep", {"output": origin}, "note", extractor=None)
    monkeypatch.setattr("pipeline.tracking.resumed_run.filesystem", lambda url: pytest.fail(url))
    assert str(why_not_continued(MlflowClient(first.uri), run_id, str(tmp_path))).startswith(f"belongs to {origin}")
    assert first.close(60) == 0


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), unique=True, max_size=6))
@example(["spaces.my#space", "späce", "a/../b", "..", "a" * 300, "a" * 301, " ", ".", "a=b", "a\nb"])
def test_every_key_has_a_name_that_mlflow_takes(keys):
    names = param_names(keys)
    assert len(set(names)) == len(keys)
    for name in names:
        _validate_param(name, "value")
    assert param_names(["train.base_lr", "data.store"]) == ["train.base_lr", "data.store"]


@pytest.mark.parametrize("experiment", ["lsun.v2", "50% of it", "Bob's", 'a "b"', "a/b:c", "what?", "ümlaut #1 @home"])
def test_the_best_model_of_an_experiment_of_any_name_is_registered(tmp_path, mlflow_tables, experiment):
    """MLflow takes such an experiment, and not a model of that name."""
    notes, checkpoint = [], f"{tmp_path}/trials/000/checkpoints/step-00000010"

    def package(checkpoint: str, folder: Path, **settings: object) -> dict[str, str]:
        folder.mkdir()
        (folder / "MLmodel").write_text("flavors: {}\n")
        return {"value": "1.5", "metric": "fid_gebm", "mode": "min"}

    tracker = file_tracker(tmp_path, experiment, package=package, notify=notes.append)
    tracker.start_sweep("sweep", {}, "", extractor=None)
    tracker.start_trial("000", {}, {})
    name = model_name(experiment)
    tracker.log_model(
        "000",
        name=name,
        checkpoint=checkpoint,
        sampler={},
        base_step=10,
        description="",
        tags={"checkpoint": checkpoint},
    )
    assert tracker.close(60) == 0 and notes == []
    client = MlflowClient(tracker.uri)
    assert client.get_model_version_by_alias(name, BEST).tags["value"] == "1.5"
    # As the command that serves it names it.
    assert _parse_model_uri(f"models:/{name}@{BEST}").name == name
