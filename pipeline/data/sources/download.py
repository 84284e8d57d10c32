"""Download of one file by HTTP: one request, for as long as bytes come; one that breaks off resumes where it was."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import IO

import requests

from pipeline.runtime.errors import UserError, one_line

__all__ = ["download", "is_http"]

# Seconds until a connection and until the next bytes; there is no limit for the whole.
_TIMEOUTS = (30.0, 60.0)
# Attempts in a row that bring nothing new, and before anything has come; seconds before the second.
_MAX_ATTEMPTS = 5
_MAX_FIRST_ATTEMPTS = 2
_PAUSE = 1.0
# What is less than this when a connection breaks is requested again.
_CHUNK = 2**16


@dataclass
class _Transfer:
    """State of a download: bytes that are on the disk, of how many, and the version of the file that they are of."""

    received: int = 0
    total: int | None = None
    version: str | None = None


def is_http(url: str) -> bool:
    """Return whether a URL is of HTTP.

    Example:
        >>> is_http("https://example.org/photos.zip"), is_http("s3://bucket/photos.zip")
        (True, False)
    """
    return url.lower().startswith(("http://", "https://"))


def download(url: str, path: str) -> bool:
    """Download a file, unless the URL turns out to be a folder's, which the server sends to a URL with a slash.

    Args:
        url: URL of HTTP.
        path: Path of the copy, which is made or written over.

    Returns:
        Whether it was a file.

    Raises:
        UserError: If there is no such file, the server refuses, or the download does not get on.
        OSError: If the copy cannot be written.
    """
    transfer, failures, most = _Transfer(), 0, 0
    with requests.Session() as session, open(path, "wb") as file:
        while True:
            try:
                if _is_folder(_receive(session, url, file, transfer)):
                    return False
                if transfer.total is None or transfer.received >= transfer.total:
                    return True
                problem = f"it ended after {transfer.received:,} of {transfer.total:,} bytes"
            except requests.RequestException as error:
                problem = one_line(error, limit=200)
                # What there is may be of another version, which is shorter.
                if error.response is not None and error.response.status_code == 416:
                    transfer.received = 0
            failures = 0 if transfer.received > most else failures + 1
            most = max(most, transfer.received)
            if failures >= (_MAX_ATTEMPTS if most else _MAX_FIRST_ATTEMPTS):
                raise UserError(f"cannot fetch {url} ({problem}): try again, or fetch it by other means")
            time.sleep(_PAUSE * failures)


def _receive(session: requests.Session, url: str, file: IO[bytes], transfer: _Transfer) -> str:
    """Make one request for what is missing, write what comes, and return the URL that the server has sent it from."""
    # As it is stored: a length that counts, and an archive that is as its publisher packed it.
    headers = {"Accept-Encoding": "identity"}
    if transfer.received:
        headers |= {"Range": f"bytes={transfer.received}-"}
        headers |= {"If-Range": transfer.version} if transfer.version else {}
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response:
        _check_status(response, url)
        if response.status_code == 206 and not _continues(response, transfer):
            transfer.received = 0
            raise requests.ConnectionError("it sends another part than it was asked for")
        if response.status_code != 206:
            # From the beginning: the first time, from a server without ranges, or as the file is another by now.
            transfer.received, transfer.total, transfer.version = 0, _length(response), _strong_version(response)
            file.seek(0)
            file.truncate()
        if _is_folder(response.url):
            return response.url
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            transfer.received += len(chunk)
        return response.url


def _check_status(response: requests.Response, url: str) -> None:
    """Refuse what another attempt would not change; raise ``HTTPError`` for what it might."""
    status = response.status_code
    if status in (404, 410):
        raise UserError(f"there is no data at {url}: check the source's url")
    if 400 <= status < 500 and status not in (408, 416, 425, 429):
        raise UserError(f"the server refuses {url} (status {status}): check the source's url and your access to it")
    response.raise_for_status()


def _continues(response: requests.Response, transfer: _Transfer) -> bool:
    """Return whether a part is what is missing, of a file that is still as long."""
    content_range = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if content_range is None:
        return False
    start, end, total = map(int, content_range.groups())
    return (start, end + 1, total) == (transfer.received, transfer.total, transfer.total)


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _strong_version(response: requests.Response) -> str | None:
    """Return what a server is asked by whether the file is still the same, or None where it does not say."""
    tag = response.headers.get("ETag")
    return response.headers.get("Last-Modified") if tag is None or tag.startswith("W/") else tag


def _is_folder(url: str) -> bool:
    return url.partition("?")[0].partition("#")[0].endswith("/")
