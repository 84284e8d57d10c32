"""A source whose images carry their own number, so that a test can identify them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from typing import Any

import fsspec
import numpy as np
import torch
from hypothesis import strategies as st

from pipeline.data import BatchSpec, DeviceResidentReader, Reader, Store, open_store, write_store
from pipeline.data.sources import BrokenImage

IMAGE_BYTES = 4
STORE_KEYS = ("size", "broken", "samples_per_shard", "encoding", "labelled")  # of a reading: what the store is like


class Numbered:
    """`size` images of 2x2: the first two pixels of the first channel are the number, its label the number modulo 3."""

    kind, url, split, fingerprint = "numbered", None, None, None

    def __init__(
        self, size: int, channels: int = 1, labelled: bool = True, broken: frozenset[int] = frozenset()
    ) -> None:
        self.size, self.channels, self.broken = size, channels, broken
        self.labels = ("zero", "one", "two") if labelled else None

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"number {index}"

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        if index in self.broken:
            raise BrokenImage(self.name(index))
        image = np.full((2, 2, self.channels), 7, np.uint8)
        image[0, :, 0] = index % 256, index // 256
        return image, index % 3 if self.labels else None

    def close(self) -> None:
        pass


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 0, 1].int()).tolist()


def numbered_store(
    url: str, size: int, samples_per_shard: int = 4, encoding: str = "blocks", **source: object
) -> Store:
    """A store of numbered images; a broken one makes its shard smaller than the others."""
    numbered = Numbered(size, **source)
    write_store(
        numbered,
        url,
        resolution=2,
        channels=numbered.channels,
        encoding=encoding,
        samples_per_shard=samples_per_shard,
        num_processes=1,
    )
    return open_store(url)


def make_reader(store: Store, **settings: Any) -> Reader:
    """Build a reader from the fields of its spec and its own options, all by name."""
    spec, options = _split_settings(settings)
    return Reader(store, spec, **options)


def make_resident_reader(store: Store, device: torch.device | str, **settings: Any) -> DeviceResidentReader:
    """Build a device-resident reader from the fields of its spec and its own options, all by name."""
    spec, options = _split_settings(settings)
    return DeviceResidentReader(store, device, spec, **options)


def _split_settings(settings: dict[str, Any]) -> tuple[BatchSpec, dict[str, Any]]:
    names = {field.name for field in dataclasses.fields(BatchSpec)}
    spec = BatchSpec(**{name: value for name, value in settings.items() if name in names})
    return spec, {name: value for name, value in settings.items() if name not in names}


@st.composite
def readings(draw: st.DrawFn) -> dict:
    """A store of numbered images, by STORE_KEYS, and a way of reading it."""
    size = draw(st.integers(6, 40))
    broken = draw(st.frozensets(st.integers(0, size - 1), max_size=4))
    part = draw(st.integers(1, 4))
    world_size = draw(st.integers(1, 4).filter(lambda world: world * part <= size - len(broken)))
    return {
        "size": size,
        "broken": broken,
        "samples_per_shard": draw(st.integers(1, 11)),
        "encoding": draw(st.sampled_from(["blocks", "images"])),
        "labelled": draw(st.booleans()),
        "batch_size": world_size * part,
        "world_size": world_size,
        "seed": draw(st.integers(0, 2**40)),
        "window": draw(st.integers(0, 60)) * IMAGE_BYTES,
        "cache_bytes": draw(st.sampled_from([0, 40, 10**6])),
        "shuffle": draw(st.booleans()),
    }


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def forge(store: Store, change: dict[str, bytes | None]) -> None:
    """Changes members of the store's first shard, and its manifest so that sizes and sums agree with the new bytes."""
    path = store.shard_path(store.manifest.shards[0])
    contents = {**members(store.fs.cat_file(path)), **change}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in contents.items():
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    store.fs.pipe_file(path, buffer.getvalue())
    manifest = json.loads(store.fs.cat_file(f"{store.path}/manifest.json"))
    manifest["shards"][0]["bytes"] = len(buffer.getvalue())
    manifest["shards"][0]["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    store.fs.pipe_file(f"{store.path}/manifest.json", json.dumps(manifest).encode())


def forget(url: str) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)
