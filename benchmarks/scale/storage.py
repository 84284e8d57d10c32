"""What a store and a checkpoint ask of an object storage: bytes, and requests counted at a real S3 endpoint.

The endpoint is moto's server on this machine, and whatever reaches it is counted. Photographs are crops of the two that
come with scikit-learn, scaled down, so that PNG packs them as it packs photographs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import torch
import yaml
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from PIL import Image
from sklearn.datasets import load_sample_images
from werkzeug.serving import make_server

from benchmarks import flops
from pipeline import config as schema
from pipeline.data import BatchSpec, Position, Reader, open_store, write_store
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.checkpoints import Checkpoints

__all__ = ["RANKS", "Photographs", "checkpoints", "images", "requests"]

RANKS = (1, 2, 4, 8)
"""Numbers of GPUs of a trial whose requests are counted."""

_SHARD = 256  # images of a shard, where requests are counted
_KINDS = {"GET": "get", "HEAD": "get", "PUT": "put", "POST": "put", "DELETE": "put"}  # as S3 bounds and bills them


class Photographs:
    """A source of crops (H, W, 3) of two photographs.

    Args:
        count: how many.
        resolution: pixels on a side.
    """

    kind = "photographs"
    url: str | None = None
    split: str | None = None
    fingerprint: str | None = None
    labels: tuple[str, ...] | None = None

    def __init__(self, count: int, resolution: int) -> None:
        self._count, self._resolution = count, resolution

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Return the crop's number."""
        return f"crop {index}"

    def read(self, index: int) -> tuple[np.ndarray, None]:
        """Pixels, uint8 (H, W, 3), and no label."""
        photographs = load_sample_images().images
        random = np.random.default_rng(index)
        photograph = photographs[index % len(photographs)]
        side = int(random.integers(192, min(photograph.shape[:2])))  # as wide as a thing in a photograph
        top, left = (int(random.integers(0, extent - side + 1)) for extent in photograph.shape[:2])
        crop = Image.fromarray(photograph[top : top + side, left : left + side])
        return np.asarray(crop.resize((self._resolution, self._resolution), Image.Resampling.LANCZOS)), None

    def close(self) -> None:
        """Nothing is held open."""


def images(folder: Path, resolutions: Iterable[int], count: int) -> list[dict[str, Any]]:
    """Bytes of an image in each encoding, and how fast one process reads it from a local disk.

    Args:
        folder: of the stores.
        resolutions: in pixels.
        count: images in each store.
    """
    rows = []
    for resolution, encoding in itertools.product(resolutions, ("blocks", "images")):
        path = str(folder / f"{encoding}-{resolution}")
        source = Photographs(count, resolution)
        write_store(source, path, resolution=resolution, channels=3, encoding=encoding, num_processes=1)
        store = open_store(path)
        speeds = []
        for _ in range(3):
            reader = Reader(store, BatchSpec(batch_size=128))
            began = time.perf_counter()
            for _ in itertools.islice(reader, reader.batches_per_epoch):
                pass
            speeds.append(128 * reader.batches_per_epoch / (time.perf_counter() - began))
        written = sum(shard.bytes for shard in store.manifest.shards)
        rows.append(
            {
                "encoding": encoding,
                "pixels": resolution,
                "bytes an image": written / count,
                "images/s, one process": sorted(speeds)[1],
            }
        )
    return rows


def checkpoints(resolutions: Iterable[int]) -> list[dict[str, Any]]:
    """Bytes and requests of a checkpoint, and the arithmetic of training, for each network.

    Args:
        resolutions: in pixels.
    """
    families = ("dcgan", "sngan_convnet", "sngan_resnet")
    return [_checkpoint(networks, resolution) for resolution, networks in itertools.product(resolutions, families)]


def _checkpoint(networks: str, resolution: int) -> dict[str, Any]:
    config, device = _experiment(networks, resolution), torch.device("cpu")
    model = model_to_train(config, device)
    trainer = make_trainer(model, config, device)
    batches = itertools.repeat(torch.zeros(config.train.batch_size, 3, resolution, resolution))
    counts = flops.count(lambda: trainer.step(batches, torch.Generator().manual_seed(0)))
    with _storage() as seen:
        kept = Checkpoints("s3://bucket/trial")
        for step in range(1, 4):  # the last of them supersedes the one before, as most do
            seen.clear()
            kept.save(
                step,
                model=model.state_dict(),
                training={"trainer": trainer.state_dict()},
                state={"config": schema.to_dict(config), "report": {}},
                score=1.0 / step,
            )
    return {
        "networks": networks,
        "pixels": resolution,
        "bytes a checkpoint": seen["bytes"],
        "puts and deletes": seen["put"],
        "gets": seen["get"],
        "gradients of a step, bytes": sum(p.numel() * p.element_size() for p in model.energy.parameters()),
        "GFLOP an image": counts.flops / (config.train.batch_size * config.train.energy_steps) / 1e9,
    }


def requests(shards: int, lanes: int = 64) -> list[dict[str, Any]]:
    """Count what reaches the storage when a store is opened, and when all ranks of a trial read it once.

    Readers keep no shard that is used up, as of a store larger than memory, and fetch nothing of the next epoch.

    Args:
        shards: of the store; a multiple of 8.
        lanes: in which it is read, at most.
    """
    rows = []

    def count(what: str, work: Callable[[], object]) -> None:
        fsspec.filesystem("s3").invalidate_cache()
        seen.clear()
        work()
        rows.append(
            {
                "what": what,
                "shards": shards,
                "gets": seen["get"],
                "puts and deletes": seen["put"],
                "bytes that are read": seen["read"],
            }
        )

    def read(ranks: int) -> None:
        for rank in range(ranks):
            spec = BatchSpec(batch_size=64, rank=rank, world_size=ranks, position=Position(lanes=lanes))
            reader = Reader(store, spec, cache_bytes=0, prefetch_shards=0)
            for _ in itertools.islice(reader, reader.batches_per_epoch):
                pass

    with _storage() as seen:
        source = Photographs(shards * _SHARD, 8)
        # What an earlier server has kept is there still.
        url = f"s3://bucket/{shards}-shards-{lanes}-lanes"
        write_store(source, url, resolution=8, channels=3, samples_per_shard=_SHARD, num_processes=1)
        store = open_store(url)
        count("a store is opened", lambda: open_store(url))
        for ranks in RANKS:
            count(f"a trial reads it through, over GPUs: {ranks}", lambda ranks=ranks: read(ranks))
    return rows


def _experiment(networks: str, resolution: int) -> schema.Config:
    values = yaml.safe_load((schema.config_root() / "conf" / "lsun.yaml").read_text())
    keys = {
        "model.networks": networks,
        "data.resolution": resolution,
        "train.batch_size": 4,
        "train.warmup_base_steps": 0,
    }
    return schema.apply(schema.from_dict(values), {**keys, "train.warmup_energy_steps": 5})


@contextlib.contextmanager
def _storage() -> Iterator[Counter[str]]:
    """Serve a bucket on this machine, named ``bucket``, and count its requests by kind, and bytes in and out."""
    seen: Counter[str] = Counter()
    application = DomainDispatcherApplication(create_backend_app)

    def counting_application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        seen[_KINDS[environ["REQUEST_METHOD"]]] += 1
        seen["bytes"] += int(environ.get("CONTENT_LENGTH") or 0)
        sent = b"".join(application(environ, start_response))
        seen["read"] += len(sent)
        return [sent]

    server = make_server("127.0.0.1", 0, counting_application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        boto3.client("s3").create_bucket(Bucket="bucket")
        fsspec.filesystem("s3").clear_instance_cache()
        yield seen
    finally:
        fsspec.filesystem("s3").clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        server.shutdown()
        thread.join()
