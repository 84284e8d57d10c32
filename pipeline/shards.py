"""``python -m pipeline.shards``: make a store from a data set as its publishers distribute it."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, EXIT_STATUS_HELP

__all__ = ["main"]


@command(
    "Make an experiment's store, of images resized and center-cropped or of a table's rows, with checksums.",
    [
        "python -m pipeline.shards conf=lsun data.source.url=bedroom_train_lmdb.zip",
        "python -m pipeline.shards conf=cifar10 data.source.url=cifar-10-binary.tar.gz",
        "python -m pipeline.shards conf=celeba data.source.url=img_align_celeba.zip data.store=s3://bucket/celeba",
        "python -m pipeline.shards conf=imagenet32 data.source.url=Imagenet32_train_npz.zip",
        "python -m pipeline.shards conf=cifar10 data.source.kind=images data.source.split=null \\\n"
        "      data.source.url=photographs.zip data.store=photographs-32",
        "python -m pipeline.shards conf=cifar10 data.source.kind=webdataset data.source.split=null \\\n"
        "      data.source.url='s3://bucket/shard-{000..123}.tar' data.store=shards-32",
        "python -m pipeline.shards conf=cifar10 data.source.kind=parquet data.source.split=train \\\n"
        "      data.source.url=cifar10/plain_text data.store=cifar10-parquet-32",
        "python -m pipeline.shards conf=redwine data.source.url=winequality-red.csv",
    ],
    groups=("conf",),
    sections={
        "Resuming": "The same command finishes an interrupted store, to the same bytes; until then there is none.",
        "Environment": ENVIRONMENT_HELP,
        "Exit status": EXIT_STATUS_HELP,
    },
    presigned_keys=("data.source.url",),
)
def main(config: Config, overrides: dict[str, Any]) -> int:
    """Write the store, or finish one whose writing was interrupted."""
    from pipeline.config import invocation
    from pipeline.config.printed_commands import format_command
    from pipeline.config.validation import validate_store
    from pipeline.data.writing.build import build_store
    from pipeline.runtime.printable import printable

    validate_store(config)
    # Names of images and columns are those of a file that anybody may have written.
    print(*map(printable, build_store(config.data)), sep="\n")
    keys = invocation.current().experiment_keys(config.name) | {"data.store": config.data.store}
    print(f"train on it: {format_command('sweep', keys)}")
    return 0


if __name__ == "__main__":
    main()
