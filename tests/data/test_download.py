"""Downloads: one request, no limit for the whole, and one that breaks off resumes if the server can."""

from __future__ import annotations

import http.server
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import sources
from pipeline.data.sources import download
from pipeline.runtime.errors import UserError
from tests.data.test_sources import encoded


class Server(http.server.ThreadingHTTPServer):
    """Server of one file: `sent` bytes a request, in ten parts with a `pause` before each, with ranges and versions."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone is none."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sent, self.pause = content, len(content), 0.0
        self.ranges, self.tags = True, ['"one"']
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted, start = self.headers.get("Range"), 0
        server.requests.append(wanted)
        path = self.path.partition("?")[0]
        if path in ("/403", "/404", "/503"):
            self.send_error(int(path[1:]))
            return
        if path == "/folder":
            self.send_response(301)
            self.send_header("Location", "/folder/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = b'<a href="1.png">1.png</a>' if path == "/folder/" else server.content
        tag = server.tags[0] if len(server.tags) == 1 else server.tags.pop(0)
        if wanted and server.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        # A listing says what it is; many servers say so of archives, too.
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start : start + server.sent]
        part = max(len(rest) // 10, 1)
        for offset in range(0, len(rest), part):
            time.sleep(server.pause)
            self.wfile.write(rest[offset : offset + part])
            self.wfile.flush()
        if start + len(rest) < len(content):
            self.close_connection = True


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSE", 0.01)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.png", encoded(1))
        archive.writestr("noise.txt", np.random.default_rng(0).bytes(400_000))
    server = Server(buffer.getvalue())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_archive_is_requested_once(server: Server) -> None:
    source = sources.make("images", f"{server.url}/photos.zip?signature=a%2Fb")
    assert source.read(0)[0] == encoded(1) and server.requests == [None]
    source.close()


def test_a_download_has_no_limit_but_between_two_bytes(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUTS", (5.0, 0.4))
    server.pause = 0.1
    start = time.monotonic()
    assert download.download(f"{server.url}/photos.zip", str(tmp_path / "copy"))
    assert time.monotonic() - start > 0.8 and server.requests == [None]
    server.pause = 0.8
    with pytest.raises(UserError, match=r"cannot fetch .*: try again"):
        download.download(f"{server.url}/photos.zip", str(tmp_path / "copy"))


def test_a_download_that_breaks_off_resumes_where_it_was(server: Server, tmp_path: Path) -> None:
    server.sent = 150_000
    assert download.download(f"{server.url}/photos.zip", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == server.content
    starts = [int(each.removeprefix("bytes=").removesuffix("-")) for each in server.requests[1:] if each]
    assert len(starts) == len(server.requests) - 1 >= 2 and starts == sorted(set(starts)) and starts[0] > 0


def test_a_file_that_changes_meanwhile_is_fetched_from_its_beginning(server: Server, tmp_path: Path) -> None:
    """Parts of two versions are no file."""
    server.sent, server.tags = 150_000, ['"one"', '"two"']
    assert download.download(f"{server.url}/photos.zip", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == server.content


def test_a_server_without_ranges_that_always_breaks_off_is_one_line(server: Server, tmp_path: Path) -> None:
    server.sent, server.ranges = 150_000, False
    with pytest.raises(UserError, match=r"cannot fetch .*photos\.zip .*: try again") as caught:
        download.download(f"{server.url}/photos.zip", str(tmp_path / "copy"))
    assert "\n" not in str(caught.value) and len(server.requests) <= 7


@pytest.mark.parametrize(
    ("path", "message"),
    [("404", "there is no data at"), ("403", "refuses .*status 403"), ("503", "cannot fetch .*503")],
)
def test_a_server_that_does_not_give_the_file_is_one_line(server: Server, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sources.make("images", f"{server.url}/{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["folder", "folder/"])
def test_a_folder_is_known_by_its_slash(server: Server, path: str) -> None:
    source = sources.make("images", f"{server.url}/{path}")
    assert [source.name(index) for index in range(len(source))] == ["1.png"]
