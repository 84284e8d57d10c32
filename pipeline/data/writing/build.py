"""Store built from published data as a config says, with a report of what was written."""

from __future__ import annotations

import functools
import os
from typing import Protocol

from pipeline.data import sources
from pipeline.data.store import resolve_url
from pipeline.data.writing.writer import Report, write_store
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import redact

__all__ = ["SourceSettings", "StoreSettings", "build_store"]


class SourceSettings(Protocol):
    """Keys ``data.source`` of a config."""

    kind: str
    url: str | None
    split: str | None
    label_field: str | None
    published_counts: bool


class StoreSettings(Protocol):
    """Keys ``data`` of a config, as far as a store is made by them."""

    store: str
    resolution: int | None
    channels: int
    encoding: str
    resize_filter: str
    samples_per_shard: int | None
    num_writers: int | None
    max_broken: float | None

    @property
    def source(self) -> SourceSettings:
        """Where the data come from."""
        ...


def build_store(settings: StoreSettings) -> list[str]:
    """Write a store, or finish one whose writing was interrupted.

    Args:
        settings: Source, encoding and place of the store.

    Returns:
        Lines for the user: size and speed, the account of the source's files, its labels, and the store's URL.

    Raises:
        UserError: The source needs a URL, is damaged, of another format or smaller than it was published; or the store
            cannot be written.
    """
    report = write_store(
        functools.partial(_open_source, settings.source),
        settings.store,
        resolution=settings.resolution,
        # A table has all of its columns.
        channels=None if settings.encoding == "rows" else settings.channels,
        encoding=settings.encoding,
        resize_filter=settings.resize_filter,
        samples_per_shard=settings.samples_per_shard,
        num_processes=settings.num_writers or os.cpu_count(),
        progress=True,
        max_broken=settings.max_broken,
    )
    return [*_summary_lines(report), f"store: {resolve_url(settings.store)}"]


def _open_source(settings: SourceSettings) -> sources.Source | sources.Table:
    source = sources.make(settings.kind, settings.url, settings.split, settings.label_field)
    try:
        if settings.published_counts:
            sources.check_counts(source)
    except UserError:
        source.close()
        raise
    return source


def _summary_lines(report: Report) -> list[str]:
    manifest = report.manifest
    mebibytes = sum(shard.bytes for shard in manifest.shards) / 2**20
    size = f"{manifest.resolution} pixels" if manifest.resolution else f"{manifest.channels} columns"
    rate = report.num_images / max(report.seconds, 1e-9)
    lines = [
        f"{report.num_images:,} {manifest.unit} of {size} in {len(manifest.shards)} shards, "
        f"{mebibytes:,.1f} MiB, {report.seconds:.1f} s, {rate:,.0f} {manifest.unit}/s"
    ]
    ledger = manifest.ledger.lines() if manifest.ledger is not None else []
    return [redact(line) for line in (*lines, *ledger, *report.notes)]
