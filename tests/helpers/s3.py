"""S3 servers on this machine, found as a user's are: through the environment."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

__all__ = ["s3_bucket", "s3_environment"]

_NUMBERS = itertools.count()


@contextlib.contextmanager
def s3_environment(endpoint: str) -> Iterator[str]:
    """Make a bucket at a server that the environment leads to; its URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = fsspec.get_filesystem_class("s3")
        files.clear_instance_cache()
        # What a server keeps, it keeps for the process: a name of its own.
        bucket = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
        fsspec.filesystem("s3").mkdir(bucket)
        yield f"s3://{bucket}"
        files.clear_instance_cache()


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """Start a server with a bucket; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        with s3_environment("http://{}:{}".format(*server.get_host_and_port())) as url:
            yield url
    finally:
        server.stop()
