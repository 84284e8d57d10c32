"""Writer of stores, in parallel processes and resumable after an interruption.

Every shard is written under a temporary name and then renamed, and a small file next to it (its sidecar) has its
contents, and the settings and the fingerprint of the source's files that it was made with. The manifest comes last:
until then there is no store. A run keeps the shards that were made of the same files with the same settings. The bytes
depend on the source and the settings only, not on processes or interruptions.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import fsspec
import numpy as np
from pydantic import Field, NonNegativeInt
from webdataset.writer import TarWriter

from pipeline.data.image_codec import DEFAULT_FILTER
from pipeline.data.ledger import Ledger, group
from pipeline.data.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, Shard, ShardEntry, StrictModel, Text
from pipeline.data.manifest import Source as SourceEntry
from pipeline.data.sources.base import FileSource, Source, Table
from pipeline.data.store import is_process_local, resolve_url
from pipeline.data.writing.processes import map_in_processes
from pipeline.data.writing.shard_encoders import ShardEncoder, choose_encoder
from pipeline.runtime import lock
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem, is_local
from pipeline.runtime.redaction import without_query
from pipeline.runtime.terminal import Progress

__all__ = ["SAMPLES_PER_SHARD", "Report", "write_store"]

SAMPLES_PER_SHARD = 8192
"""Samples in a shard by default, where they are small."""
# Pixels in a shard by default, where they are not: each process that writes or reads holds a few shards in memory.
_SHARD_BYTES = 256 * 2**20

_OWN_FILE = re.compile(r"shard-\d{6}\.tar(\.json)?(\.part)?")


@dataclass(frozen=True)
class Report:
    """Result of writing a store.

    Args:
        manifest: The store's manifest.
        num_images: Number of images or rows in the store.
        broken: Names of the images of the source that could not be read and are left out.
        notes: Lines about the source, such as where its labels are from.
        seconds: Wall time of this run.
    """

    manifest: Manifest
    num_images: int
    broken: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


def write_store(
    source: Source | Table | Callable[[], Source | Table],
    url: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    encoding: str | None = None,
    resize_filter: str = DEFAULT_FILTER,
    samples_per_shard: int | None = None,
    num_processes: int | None = None,
    progress: bool = False,
    max_broken: float | None = 1.0,
) -> Report:
    """Write the images of a source, or the rows of a table, as a store.

    Each image's central square is resized to the resolution (``pipeline.data.image_codec.resize_center_crop``) and
    converted to the number of channels. Published files are often sorted by class, so the images are distributed over
    the shards by a fixed permutation, and each shard is a mixture of all classes. A broken image is left out and named
    in the report.

    The rows of a table are written as they are, in the order of their publisher.

    Writing twice gives the same bytes. A run that was killed leaves no store, and running it again with the same
    settings finishes it; shards that were made of files that have changed since are made again. Every process holds one
    shard in memory.

    Args:
        source: Source of the images or rows, see ``pipeline.data.sources.make``, which is closed in the end; or a
            function that opens it, called once it is clear that this process may write the store.
        url: The store's name, path or URL, see ``pipeline.data.resolve_url``.
        resolution: Height and width of the images, in pixels. None for rows.
        channels: 1 (gray) or 3 (RGB). For rows, their number of columns, or None for the table's.
        encoding: "images" (a PNG file a sample) or "blocks" (arrays of many images, quicker to read), or "rows".
            ``None`` (default) for blocks of images and for rows of a table.
        resize_filter: Filter that images are resized with, a name of ``pipeline.data.image_codec.FILTERS``.
        samples_per_shard: Number of images or rows in a shard. ``None`` (default) for 8,192, or as many images as have
            256 MiB of pixels.
        num_processes: Number of processes. ``None`` (default) for one per core. Tables, stores of one shard, and those
            that only this process can see (memory://), are written in this process.
        progress: True to show samples done, samples per second and time left on standard error.
        max_broken: Share of the images that may be broken; see ``pipeline.data.ledger.Ledger.check``.

    Returns:
        The manifest, the number of images or rows, the broken images and the time it took.

    Raises:
        UserError: If there is a store already or another process writes it, a setting is invalid or does not fit the
            source, no image or too few can be read, the source's files change meanwhile, or the URL cannot be written
            to.

    Example:
        >>> from pipeline.data import sources
        >>> report = write_store(sources.make("digits"), "memory://docs/write", resolution=8, channels=1)
        >>> report.num_images, report.broken
        (1797, ())
        >>> write_store(sources.make("toy"), "memory://docs/write-rows").manifest.sample_shape
        (3,)
    """
    start = time.monotonic()
    url = resolve_url(url)
    num_processes = _available_cores() if num_processes is None else num_processes
    with contextlib.ExitStack() as stack:
        if not callable(source):
            stack.callback(source.close)
        _check_settings(samples_per_shard, num_processes)
        claim = stack.enter_context(_claim(url))
        if callable(source):
            source = source()
            stack.callback(source.close)
        encoding = encoding or ("rows" if isinstance(source, Table) else "blocks")
        encoder = choose_encoder(source, resolution, channels, encoding, resize_filter)
        samples_per_shard = samples_per_shard or _default_samples(encoder)
        job = _Job(*filesystem(url), url, encoder, samples_per_shard, source.fingerprint)
        finished = _write_shards(job, _list_folder(job), num_processes, progress)
        _check_source(job)
        claim.verify()
        manifest = _publish_manifest(job, finished, max_broken)
    broken = tuple(name for entry in finished for name, _ in entry.broken)
    notes = source.notes if isinstance(source, FileSource) else ()
    return Report(manifest, manifest.num_samples, broken, notes, time.monotonic() - start)


def _check_source(job: _Job) -> None:
    """Refuse to publish what was made of files that have changed in the meantime: some shards are of either version."""
    if job.encoder.source.fingerprint != job.fingerprint:
        raise UserError(
            f"{job.source.url} changed while the store {job.url} was made of it: run the same command again"
        )


def _check_settings(samples_per_shard: int | None, num_processes: int) -> None:
    if (samples_per_shard is not None and samples_per_shard < 1) or num_processes < 1:
        raise UserError("a shard has at least one sample and a job at least one process: give larger numbers")


def _default_samples(encoder: ShardEncoder) -> int:
    """Return the number of samples in a shard."""
    image_bytes = (encoder.resolution or 1) ** 2 * encoder.channels
    return max(1, min(SAMPLES_PER_SHARD, _SHARD_BYTES // image_bytes))


@dataclass(frozen=True)
class _Job:
    """Arguments of each process, enough to write any of the shards."""

    fs: fsspec.AbstractFileSystem
    path: str
    url: str
    encoder: ShardEncoder
    samples_per_shard: int
    fingerprint: str | None

    @property
    def source(self) -> SourceEntry:
        """The manifest's entry of the source."""
        source = self.encoder.source
        return SourceEntry(source.kind, without_query(source.url), source.split, self.fingerprint)

    def settings(self) -> dict[str, Any]:
        """Return all settings that the bytes of a shard depend on."""
        return {
            "format_version": FORMAT_VERSION,
            "source": asdict(self.source),
            "source_samples": len(self.encoder.source),
            "labels": None if self.encoder.labels is None else list(self.encoder.labels),
            "resolution": self.encoder.resolution,
            "channels": self.encoder.channels,
            "encoding": self.encoder.encoding,
            "resize_filter": self.encoder.resize_filter,
            "samples_per_shard": self.samples_per_shard,
        }


@dataclass(frozen=True)
class _Task:
    """Shard to write: its number and its samples, as indices in the source, in order."""

    number: int
    indices: np.ndarray

    @property
    def name(self) -> str:
        return f"shard-{self.number:06d}.tar"


@dataclass(frozen=True)
class _Finished:
    """Written shard. It has no file if each of its images was broken."""

    number: int
    shard: Shard
    broken: tuple[tuple[str, str], ...]


class _SidecarShard(ShardEntry):
    num_samples: NonNegativeInt


class _Sidecar(StrictModel):
    """File next to a shard, which a later run trusts only if it is of this form."""

    settings: dict[str, Any]
    shard: _SidecarShard
    broken: list[Annotated[list[Text], Field(min_length=2, max_length=2)]]


@contextlib.contextmanager
def _claim(url: str) -> Iterator[lock.Lock]:
    """Make the folder of a store that is not finished, and keep other writers out of it."""
    fs, path = filesystem(url)
    _refuse_finished(fs, path, url)
    with as_user_error(url):
        is_new = not fs.exists(path)
        fs.makedirs(path, exist_ok=True)
    try:
        with lock.acquire(url, writer="process") as claim:
            # Another may have finished it meanwhile.
            _refuse_finished(fs, path, url)
            yield claim
    finally:
        # A folder that nothing came into, as from a source that is not there; others cannot be removed this way.
        if is_new and is_local(fs):
            with contextlib.suppress(OSError):
                fs.rmdir(path)


def _refuse_finished(fs: fsspec.AbstractFileSystem, path: str, url: str) -> None:
    with as_user_error(url):
        fs.invalidate_cache(path)
        finished = fs.exists(f"{path}/{MANIFEST_NAME}")
    if finished:
        raise UserError(f"there is a finished store at {url}: delete it, or choose another name")


def _list_folder(job: _Job) -> set[str]:
    """Return the names of the files of an interrupted run."""
    with as_user_error(job.url):
        job.fs.invalidate_cache(job.path)
        return {path.rpartition("/")[2] for path in job.fs.find(job.path, maxdepth=1)}


def _write_shards(job: _Job, earlier: set[str], num_processes: int, show: bool) -> list[_Finished]:
    """Write all shards that an earlier run has not, and return all of them in order."""
    order = job.encoder.order()
    starts = range(0, len(order), job.samples_per_shard)
    tasks = [_Task(number, order[start : start + job.samples_per_shard]) for number, start in enumerate(starts)]
    with as_user_error(job.url):
        finished = [entry for task in tasks if (entry := _read_sidecar(job, task, earlier)) is not None]
    done = {entry.number for entry in finished}
    remaining = [task for task in tasks if task.number not in done]
    num_processes = min(num_processes, len(remaining))
    # What is in the memory of a process, other processes do not see.
    is_local_to_process = is_process_local(job.fs) or "memory://" in (job.encoder.source.url or "")
    in_this_process = num_processes <= 1 or not job.encoder.worth_processes or is_local_to_process
    num_done = sum(len(task.indices) for task in tasks) - sum(len(task.indices) for task in remaining)
    with Progress(len(order), num_done, show, job.encoder.unit) as bar:
        if in_this_process:
            finished += [_write_shard(job, bar.advance, task) for task in remaining]
        else:
            finished += _write_in_processes(job, remaining, num_processes, bar.advance)
    return sorted(finished, key=lambda entry: entry.number)


def _write_in_processes(
    job: _Job, tasks: list[_Task], num_processes: int, advance: Callable[[int], None]
) -> list[_Finished]:
    try:
        return map_in_processes(functools.partial(_write_shard, job), tasks, num_processes, advance)
    except BrokenProcessPool:
        raise UserError(
            f"a process that wrote {job.url} was killed, most likely out of memory: run it again with fewer "
            "processes; the finished shards are kept"
        ) from None


def _publish_manifest(job: _Job, finished: list[_Finished], max_broken: float | None) -> Manifest:
    """Write the manifest, which makes the shards a store, and remove the files of interrupted runs."""
    shards = tuple(entry.shard for entry in finished if entry.shard.num_samples)
    ledger = _ledger(job, finished)
    if ledger is not None:
        if not shards:
            raise UserError(
                f"none of the {ledger.num_broken} images of the source could be read "
                f"({ledger.broken[0].line()}): check the source's url and kind"
            )
        ledger.check(max_broken)
    manifest = Manifest(
        resolution=job.encoder.resolution,
        channels=job.encoder.channels,
        encoding=job.encoder.encoding,
        labels=job.encoder.labels,
        resize_filter=job.encoder.resize_filter,
        source=job.source,
        num_samples=sum(shard.num_samples for shard in shards),
        shards=shards,
        ledger=ledger,
    )
    with as_user_error(job.url):
        _put(job.fs, f"{job.path}/{MANIFEST_NAME}", manifest.to_json().encode())
        _remove_leftovers(job, {shard.name for shard in shards})
    return manifest


def _ledger(job: _Job, finished: list[_Finished]) -> Ledger | None:
    """Return the account of all images and other files of the source, or None for a table."""
    source = job.encoder.source
    if isinstance(source, Table):
        return None
    return Ledger(
        taken=sum(entry.shard.num_samples for entry in finished),
        broken=group(pair for entry in finished for pair in entry.broken),
        passed_over=source.passed_over if isinstance(source, FileSource) else (),
    )


def _write_shard(job: _Job, advance: Callable[[int], None], task: _Task) -> _Finished:
    encoded = job.encoder.encode(task.indices, task.number * job.samples_per_shard, advance)
    data = _tar(encoded.members)
    shard = Shard(task.name, encoded.num_samples, len(data), hashlib.sha256(data).hexdigest())
    finished = _Finished(task.number, shard, encoded.broken)
    with as_user_error(job.url):
        if encoded.num_samples:
            _put(job.fs, f"{job.path}/{task.name}", data)
        _put(job.fs, f"{job.path}/{task.name}.json", _sidecar(job, finished))
    return finished


def _tar(samples: Iterable[dict[str, str | bytes]]) -> bytes:
    buffer = io.BytesIO()
    # A fixed time, owner and mode: the same images give the same SHA-256.
    with TarWriter(buffer, encoder=False, mtime=0, user="gebm", group="gebm", mode=0o644) as tar:
        for sample in samples:
            tar.write(sample)
    return buffer.getvalue()


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a whole file or none of it."""
    fs.pipe_file(f"{path}.part", data)
    fs.mv(f"{path}.part", path)


def _sidecar(job: _Job, finished: _Finished) -> bytes:
    entry = {"settings": job.settings(), "shard": asdict(finished.shard), "broken": finished.broken}
    return json.dumps(entry, indent=1).encode()


def _read_sidecar(job: _Job, task: _Task, earlier: set[str]) -> _Finished | None:
    """Return the shard of an interrupted run, if it is what this run would write."""
    if f"{task.name}.json" not in earlier:
        return None
    path = f"{job.path}/{task.name}"
    try:
        sidecar = _Sidecar.model_validate(json.loads(job.fs.cat_file(f"{path}.json")))
    except (ValueError, RecursionError):
        return None
    shard = Shard(**sidecar.shard.model_dump())
    if sidecar.settings != job.settings() or shard.name != task.name:
        return None
    if shard.num_samples and (task.name not in earlier or job.fs.size(path) != shard.bytes):
        return None
    return _Finished(task.number, shard, tuple((name, reason) for name, reason in sidecar.broken))


def _remove_leftovers(job: _Job, shards: set[str]) -> None:
    """Remove what interrupted runs left next to the shards, and no file that this module would not have written."""
    job.fs.invalidate_cache(job.path)
    for path in job.fs.find(job.path, maxdepth=1):
        name = path.rpartition("/")[2]
        if name not in shards and (_OWN_FILE.fullmatch(name) or name == f"{MANIFEST_NAME}.part"):
            job.fs.rm_file(path)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
