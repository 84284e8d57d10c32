"""``python -m pipeline.shards``: make a store from a data set as its publishers distribute it."""

from __future__ import annotations

import os
from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP
from pipeline.config.validation import validate
from pipeline.data import resolve_url, sources, write_store
from pipeline.runtime.redaction import redact

__all__ = ["main"]


@command(
    "Make an experiment's store, of images resized and centre-cropped or of a table's rows, with checksums.",
    [
        "python -m pipeline.shards conf=lsun data.source.url=bedroom_train_lmdb.zip",
        "python -m pipeline.shards conf=cifar10 data.source.url=cifar-10-binary.tar.gz",
        "python -m pipeline.shards conf=celeba data.source.url=img_align_celeba.zip data.store=s3://bucket/celeba",
        "python -m pipeline.shards conf=imagenet32 data.source.url=Imagenet32_train_npz.zip",
        "python -m pipeline.shards conf=cifar10 data.source.kind=images data.source.split=null \\\n"
        "      data.source.url=photographs.zip data.store=photographs-32",
        "python -m pipeline.shards conf=redwine data.source.url=winequality-red.csv",
    ],
    groups=("conf",),
    sections={
        "Going on": "The same command finishes what was interrupted, to the same bytes; until then there is no store.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
    presigned_keys=("data.source.url",),
)
def main(config: Config, named: dict[str, Any]) -> int:
    """Write the store; starting again after an interruption finishes it."""
    validate(config)
    data = config.data
    source = sources.make(data.source.kind, data.source.url, data.source.split)
    report = write_store(
        source,
        data.store,
        resolution=data.resolution,
        channels=None if data.encoding == "rows" else data.channels,  # a table has all of its columns
        encoding=data.encoding,
        samples_per_shard=data.samples_per_shard,
        num_processes=data.num_writers or os.cpu_count(),
        progress=True,
    )
    manifest = report.manifest
    mebibytes = sum(shard.bytes for shard in manifest.shards) / 2**20
    size = f"{manifest.resolution} pixels" if manifest.resolution else f"{manifest.channels} columns"
    rate = report.num_images / max(report.seconds, 1e-9)
    print(
        f"{report.num_images:,} {manifest.unit} of {size} in {len(manifest.shards)} shards, "
        f"{mebibytes:,.1f} MiB, {report.seconds:.1f} s, {rate:,.0f} {manifest.unit}/s"
    )
    if report.broken:
        print(f"{len(report.broken)} broken images were skipped:")
        for name in report.broken:
            print(f"  {redact(name)}")
    print(f"store: {resolve_url(data.store)}")
    print(f"train on it: python -m pipeline.sweep conf={config.name} data.store={data.store}")
    return 0


if __name__ == "__main__":
    main()
