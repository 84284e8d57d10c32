"""A server does not decide which files of this machine are written."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.runtime.errors import UserError
from pipeline.tracking.artifacts import require_remote, upload_file, upload_folder
from pipeline.tracking.journal import PermanentError
from pipeline.tracking.journal_delivery import Delivery
from pipeline.tracking.tracker import Tracker

LOCAL = [
    "{0}", "file://{0}", "FILE://{0}", "file:{0}", "file://localhost{0}", "./x", "", "runs:/0/x", "models:/x/1",
    "C:\\x", " file://{0}", "file",
]  # fmt: skip


@given(scheme=st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]{0,8}", fullmatch=True), path=st.text(max_size=8))
@example(scheme="FILE", path="//x")
@example(scheme="http", path="//host/x")
def test_only_a_place_that_is_reached_by_network_is_accepted_of_a_server(scheme, path):
    remote = ("mlflow-artifacts", "http", "https", "s3", "r2", "b2", "gs", "wasbs", "abfss", "dbfs", "hdfs", "viewfs")
    uri = f"{scheme}:{path}"
    if scheme.lower() in (*remote, "ftp", "sftp"):
        return
    with pytest.raises(UserError):
        require_remote("http://tracker.example", uri)


@pytest.mark.parametrize("form", LOCAL)
def test_nothing_is_written_where_a_server_says(tmp_path, form):
    (tmp_path / "victim").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "authorized_keys").write_text("a key")
    location = form.format(tmp_path / "victim")
    client = SimpleNamespace(
        tracking_uri="https://tracker.example",
        get_run=lambda _: SimpleNamespace(info=SimpleNamespace(artifact_uri=location)),
    )
    for upload in (upload_file, upload_folder):
        with pytest.raises(UserError, match="tracker"):
            upload(client, location, tmp_path / "sweep", None)
    delivery = Delivery(client, "1", "run", str(tmp_path / "sweep"), None, notify=print)
    entry = {"kind": "file", "trial": None, "file": "authorized_keys", "folder": None}
    with pytest.raises(PermanentError, match="place on this machine"):
        delivery.deliver([entry])
    assert not list((tmp_path / "victim").iterdir())


@contextlib.contextmanager
def fake_server(answer: dict):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_with_local_artifacts_is_refused_before_anything_starts(tmp_path):
    experiment = {
        "experiment_id": "1",
        "name": "x",
        "artifact_location": (tmp_path / ".ssh").as_uri(),
        "lifecycle_stage": "active",
    }
    with (
        fake_server({"experiment": experiment}) as uri,
        pytest.raises(UserError, match="a place on this machine"),
    ):
        Tracker(uri, "x", artifacts=None, journal=tmp_path / "journal", folder=str(tmp_path))
    assert not (tmp_path / ".ssh").exists()
