"""Data from strangers that promise more than they hold: refused in one line, without the memory that they ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data import Manifest, Shard
from pipeline.data.manifest import Source
from pipeline.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, which may ask for a quarter of a gibibyte more than it has once everything is imported.
PROGRAM = """if True:
    import gzip, hashlib, io, json, resource, struct, sys, tarfile, zlib
    import fsspec, numpy as np
    from pathlib import Path
    from pipeline.data import Shard, open_store, sources
    from pipeline.data.reading.shard import read_shard
    from pipeline.data.sources import compression
    from pipeline.runtime.errors import UserError
    from tests.helpers.numbered_source import forge, numbered_store

    folder = Path(sys.argv[1])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width, height):
        deflate = zlib.compressobj(1)
        rows = b"".join(deflate.compress(bytes(1 + width)) for _ in range(height)) + deflate.flush()
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    def store(name, encoding):
        return numbered_store(f"memory://limits/{name}", 8, 8, encoding, labelled=False)

    def read(url):
        opened = open_store(url)
        return read_shard(opened, opened.manifest.shards[0]).gather(np.arange(8))

    def promise(encoding, **change):
        made = store("promise", encoding)
        path = f"{made.path}/manifest.json"
        manifest = json.loads(made.fs.cat_file(path))
        if "num_samples" in change:
            manifest["shards"][0]["num_samples"] = manifest["ledger"]["taken"] = change["num_samples"]
        made.fs.pipe_file(path, json.dumps(manifest | change).encode())
        try:
            read(made.url)
        finally:
            made.fs.rm(made.path, recursive=True)

    def large_png():
        made = store("png", "images")
        forge(made, {"000000000.png": png(13_300, 13_300)})
        read(made.url)

    def gzipped_shard():
        made = store("gzip", "images")
        path = made.shard_path(made.manifest.shards[0])
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
            info = tarfile.TarInfo("000000000.png")
            info.size = 2**29
            tar.addfile(info, io.BufferedReader(Zeros()))
        resign(made, buffer.getvalue())
        read(made.url)

    def sparse_shard():
        made = store("sparse", "images")
        info = tarfile.TarInfo("000000000.png")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:398] = header[398:410] = b"00000000000\\0"
        header[483:495] = b"%011o\\0" % 2**31
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\\0 " % sum(header)
        resign(made, bytes(header) + bytes(1024))
        read(made.url)

    def resign(made, data):
        made.fs.pipe_file(made.shard_path(made.manifest.shards[0]), data)
        path = f"{made.path}/manifest.json"
        manifest = json.loads(made.fs.cat_file(path))
        size = max(len(data), 8 * 1024)
        data += bytes(size - len(data))
        made.fs.pipe_file(made.shard_path(made.manifest.shards[0]), data)
        manifest["shards"][0] |= {"bytes": size, "sha256": hashlib.sha256(data).hexdigest()}
        made.fs.pipe_file(path, json.dumps(manifest).encode())

    class Zeros(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = bytes(len(buffer))
            return len(buffer)

    def long_manifest():
        made = store("long", "images")
        made.fs.pipe_file(f"{made.path}/manifest.json", bytes(2**27 + 1))
        read(made.url)

    def large_stream():
        compression._MOST_UNPACKED = 2**24
        with gzip.open(folder / "stream.tar.gz", "wb", 1) as file:
            for _ in range(64):
                file.write(bytes(2**20))
        sources.make("images", str(folder / "stream.tar.gz"))

    def long_line():
        with gzip.open(folder / "winequality-red.csv.gz", "wb", 1) as file:
            for _ in range(2**6):
                file.write(b"1" * 2**20)
        sources.make("redwine", str(folder / "winequality-red.csv.gz"))

    cases = {
        "many samples": lambda: promise("blocks", num_samples=300_000_000),
        "many encoded samples": lambda: promise("images", num_samples=300_000_000),
        "large images": lambda: promise("images", resolution=10_000_000),
        "large blocks": lambda: promise("blocks", resolution=10_000_000),
        "large PNG": large_png,
        "gzipped shard": gzipped_shard,
        "sparse shard": sparse_shard,
        "long manifest": long_manifest,
        "large stream": large_stream,
        "long line": long_line,
    }
    for made in ("blocks", "images"):
        read(store(f"whole-{made}", made).url)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    for name, case in cases.items():
        try:
            case()
            print(f"{name}: accepted")
        except UserError as error:
            print(f"{name}: {error}")
        except BaseException as error:
            print(f"{name}: {type(error).__name__}")
"""

EXPECTED = {
    "many samples": "num_samples of shard-000000.tar should be",
    "many encoded samples": "num_samples of shard-000000.tar should be",
    "large images": "num_samples of shard-000000.tar should be",
    "large blocks": "num_samples of shard-000000.tar should be",
    "large PNG": "has shape (1, 13300, 13300), its manifest says (1, 2, 2)",
    "gzipped shard": "is not a readable tar file",
    "sparse shard": "has the member '000000000.png', no part of a store",
    "long manifest": "too many: make the store again",
    "large stream": "unpacks to more than 100 times its size",
    "long line": "line 1 of ",
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_what_promises_more_than_it_holds_is_one_line(tmp_path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    lines = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    assert lines.keys() == EXPECTED.keys(), run.stderr
    for name, message in EXPECTED.items():
        assert message in lines[name], (name, lines[name])


@pytest.mark.parametrize(
    ("encoding", "resolution", "channels", "bytes", "most"),
    [("blocks", 8, 3, 10_240, 53), ("rows", None, 11, 10_240, 232), ("images", 8, 3, 10_240, 10)],
)
def test_a_shard_has_as_many_samples_as_its_bytes_can_hold(
    encoding: str, resolution: int | None, channels: int, bytes: int, most: int
) -> None:
    for number in (most, most + 1):
        shard = Shard("0.tar", number, bytes, "0" * 64)
        text = Manifest(resolution, channels, encoding, None, Source("x"), number, (shard,)).to_json()
        if number == most:
            Manifest.from_json(text, "here")
        else:
            with pytest.raises(UserError, match=f"should be {most} at most"):
                Manifest.from_json(text, "here")
