"""``python -m benchmarks.dataloading``: images per second that one process reads from a store on an object storage.

The storage is moto's S3 server in a process of its own on this machine, which lets each request wait before it answers,
as one that is far away does; the bytes themselves come as fast as that server sends them. The same epoch is read

- *one after the other*: each shard when it is wanted (``data.prefetch_shards=0``);
- *read ahead*: those of the next window in threads, while the present one is used, as it is by default;
- *into an empty cache*: read ahead, and each shard is written to this machine's disk (``data.cache``);
- *from a full cache*: each shard from there, when it is wanted;
- *from the disk*: a local copy of the store, as a ceiling.

Twice: as fast as it can be read, and with a pause after each batch in place of a training step, during which a GPU
would be busy and the processor is not. *Waited* is the share of the time in which such a training waits for a batch.
Each repetition has a reader of its own and keeps no shard in memory; a window holds a few shards, so there are many.
Ratios are against the first way, in the same round.

*What a trial reads, by ranks*: requests that a small store gets, and bytes that it sends, when all ranks of a trial
have taken an epoch's batches, with a lane for each shard and with one lane, as it was before there were lanes.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import torch
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from benchmarks import cli, harness
from benchmarks.packing import RandomImages
from benchmarks.scale import storage
from pipeline.data import Batch, BatchSpec, Reader, ShardCache, Store, open_store, write_store

__all__ = ["main"]


# Of the store that ranks share out.
_SHARDS = 16
_UNITS = {"requests": "gets", "bytes": "bytes that are read"}


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay, as they do to S3

    def log(self, type: str, message: str, *args: object) -> None:
        """Say nothing of each request."""


def _serve(parent: Connection, delay: float) -> None:
    """Answer S3's requests, each after some seconds, until the process is ended."""
    application = DomainDispatcherApplication(create_backend_app)

    def late(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        time.sleep(delay)
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, late, threaded=True, request_handler=_Quiet)
    parent.send(server.server_port)
    server.serve_forever()


@contextlib.contextmanager
def _storage(delay: float) -> Iterator[None]:
    """Serve a bucket named ``bucket``, to which the environment points."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, delay), daemon=True)
    process.start()
    try:
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{here.recv()}",
            AWS_ACCESS_KEY_ID="key",
            AWS_SECRET_ACCESS_KEY="secret",
            AWS_DEFAULT_REGION="us-east-1",
        )
        boto3.client("s3").create_bucket(Bucket="bucket")
        fsspec.filesystem("s3").clear_instance_cache()
        yield
    finally:
        process.kill()
        process.join()


class _Training:
    """Reads an epoch with a pause after each batch, and keeps the shares of the time in which it waited for batches."""

    def __init__(self, read: Callable[[], Reader], device: torch.device, pause: float) -> None:
        self._read, self._device, self._pause = read, device, pause
        self.waited: list[float] = []

    def __call__(self) -> None:
        reader = self._read()
        began, waited = time.perf_counter(), 0.0
        batches = _generator(reader)
        for _ in range(reader.batches_per_epoch):
            asked = time.perf_counter()
            next(batches).images.to(self._device, non_blocking=True)
            waited += time.perf_counter() - asked
            time.sleep(self._pause)
        self.waited.append(waited / (time.perf_counter() - began))
        batches.close()


def _generator(reader: Reader) -> Generator[Batch, None, None]:
    """Iterate over the batches of a reader, which is a generator: closing it closes the reader's workers."""
    batches = iter(reader)
    assert isinstance(batches, Generator)
    return batches


def _epoch(read: Callable[[], Reader], device: torch.device) -> Callable[[], None]:
    def work() -> None:
        reader = read()
        batches = _generator(reader)
        for batch in itertools.islice(batches, reader.batches_per_epoch):
            batch.images.to(device, non_blocking=True)
        batches.close()

    return work


def _by_ranks() -> list[dict[str, Any]]:
    """Count what all ranks of a trial read, with a lane for each shard, and with one."""
    many, one = (storage.requests(_SHARDS, lanes)[1:] for lanes in (_SHARDS, 1))
    return [
        {"ranks": ranks}
        | {f"{unit}, {_SHARDS} lanes": row[key] for unit, key in _UNITS.items()}
        | {f"{unit}, 1 lane": before[key] for unit, key in _UNITS.items()}
        for ranks, row, before in zip(storage.RANKS, many, one, strict=True)
    ]


def _arguments() -> Any:
    parser = cli.parser(__doc__, repeat=5)
    parser.add_argument("--images", type=cli.positive, default=40_960, help="images in the store")
    parser.add_argument("--resolution", type=cli.positive, default=32, help="pixels on a side, a multiple of 4")
    parser.add_argument("--shard", type=cli.positive, default=2048, help="images in a shard")
    parser.add_argument("--window", type=cli.positive, default=4, help="shards in a window")
    parser.add_argument("--batch", type=cli.positive, default=128, help="images in a batch")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before the storage answers a request")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds after a batch, as a training step takes")
    return parser.parse_args()


def main() -> None:
    """Write the store, read it in each way, print, and write the JSON file."""
    arguments = _arguments()
    device = cli.pick_device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch, _storage(arguments.delay):
        source = RandomImages(arguments.images, arguments.resolution, arguments.seed)
        local = f"{scratch}/store"
        size = {"resolution": arguments.resolution, "channels": 3, "samples_per_shard": arguments.shard}
        write_store(source, local, num_processes=1, **size)
        fsspec.filesystem("s3").put(local, "bucket/store", recursive=True)

        def reader(store: Store, **settings: Any) -> Reader:
            window = arguments.window * arguments.shard * store.manifest.sample_bytes
            return Reader(store, BatchSpec(arguments.batch, window=window), cache_bytes=0, **settings)

        def kept(folder: str) -> Store:
            return open_store("s3://bucket/store", cache=ShardCache(Path(scratch, folder), 2**40))

        full, far, near, places = kept("full"), open_store("s3://bucket/store"), open_store(local), itertools.count()
        empty = {number: kept(f"empty-{number}") for number in range(2 * (arguments.repeat + 1))}
        _epoch(lambda: reader(full), device)()
        ways: dict[str, Callable[[], Reader]] = {
            "one after the other": lambda: reader(far, prefetch_shards=0),
            "read ahead": lambda: reader(far),
            "into an empty cache": lambda: reader(empty[next(places)]),
            "from a full cache": lambda: reader(full, prefetch_shards=0),
            "from the disk": lambda: reader(near),
        }
        trainings = {name: _Training(read, device, arguments.pause) for name, read in ways.items()}
        fastest = harness.interleaved(
            {name: _epoch(read, device) for name, read in ways.items()}, device, arguments.repeat
        )
        training = harness.interleaved(trainings, device, arguments.repeat)
    count = arguments.images // arguments.batch * arguments.batch

    def row(name: str, seconds: dict[str, harness.Timing]) -> dict[str, Any]:
        timing = seconds[name]
        slowest = seconds["one after the other"]
        return {
            "shards": name,
            "seconds": timing,
            "images/s": count / timing.median,
            "ratio": harness.ratio(slowest, timing),
        }

    results: dict[str, list[dict[str, Any]]] = {
        "as fast as it can be read": [row(name, fastest) for name in ways],
        "with a training step": [
            {**row(name, training), "waited": float(np.median(trainings[name].waited[1:]))} for name in ways
        ],
        "what a trial reads, by ranks": _by_ranks(),
    }
    for rows in results.values():
        print(harness.table(rows), end="\n\n")
    print(f"written: {harness.write(arguments.out, 'dataloading', device, vars(arguments), results)}")


if __name__ == "__main__":
    main()
