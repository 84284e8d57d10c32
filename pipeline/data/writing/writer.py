"""Makes a store of a source, in parallel, and so that an interrupted run can be taken up again.

Every shard is written beside its name and then moved there, and a small file beside it says what it holds and with
which settings it was made. The manifest comes last: until then there is no store. A run that finds shards made with the
same settings keeps them. The bytes depend on the source and the settings only, not on processes or interruptions.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass

import fsspec
import numpy as np
import webdataset

from pipeline.data.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, Shard
from pipeline.data.manifest import Source as SourceEntry
from pipeline.data.sources.base import Source, Table
from pipeline.data.store import is_process_local, resolve_url
from pipeline.data.writing.packing import ShardEncoder, choose_encoder
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem
from pipeline.runtime.processes import exit_with_parent
from pipeline.runtime.redaction import without_query
from pipeline.runtime.terminal import Progress

__all__ = ["SAMPLES_PER_SHARD", "Report", "write_store"]

SAMPLES_PER_SHARD = 4096

_OURS = re.compile(r"shard-\d{6}\.tar(\.json)?(\.part)?")


@dataclass(frozen=True)
class Report:
    """What making a store came to.

    Args:
        manifest: The store's manifest.
        num_images: Number of images or rows in the store.
        broken: Names of the images of the source that could not be read, and are left out.
        seconds: Wall time of this run.
    """

    manifest: Manifest
    num_images: int
    broken: tuple[str, ...]
    seconds: float


def write_store(
    source: Source | Table,
    url: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    encoding: str | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    num_processes: int | None = None,
    progress: bool = False,
) -> Report:
    """Writes the images of a source, or the rows of a table, as a store.

    Each image's central square is resized to the resolution (`pipeline.data.image_codec.resize_center_crop`) and
    brought to the number of channels. Published files are often sorted by class, so the images are dealt to the shards
    by a fixed permutation of the source, and each shard is a mixture of all classes. A broken image is left out and
    named in the report.

    The rows of a table are written as they are, in the order of their publisher.

    Writing twice gives the same bytes. A run that was killed leaves no store, and running it again with the same
    settings finishes it. Every process holds one shard in memory.

    Args:
        source: Where the images or rows come from, see `pipeline.data.sources.make`. It is closed in the end.
        url: The store's name, path or URL, see `pipeline.data.resolve_url`.
        resolution: Height and width of the images, in pixels. None for rows.
        channels: 1 (grey) or 3 (RGB). For rows, their number of columns, or None for as many as there are.
        encoding: "images" (a PNG file a sample) or "blocks" (arrays of many images, quicker to read), or "rows". None
            for blocks of images and for rows of a table.
        samples_per_shard: Number of images or rows in a shard.
        num_processes: Number of processes, or None for one per core. Tables, stores of one shard, and those that only
            this process can see (memory://), are written in this process.
        progress: True to show samples done, samples per second and time left on standard error.

    Returns:
        The manifest, the number of images or rows, the broken images and the time it took.

    Raises:
        UserError: If there is a store already, a setting is invalid or does not fit the source, no image can be read,
            or the place cannot be written to.

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
    try:
        if samples_per_shard < 1 or num_processes < 1:
            raise UserError("a shard has at least one sample and a job at least one process: give larger numbers")
        encoding = encoding or ("rows" if isinstance(source, Table) else "blocks")
        packing = choose_encoder(source, resolution, channels, encoding)
        fs, path = filesystem(url)
        with as_user_error(url):
            fs.invalidate_cache(path)
            if fs.exists(f"{path}/{MANIFEST_NAME}"):
                raise UserError(f"there is a finished store at {url}: delete it, or choose another name")
            fs.makedirs(path, exist_ok=True)
            earlier = {entry.rpartition("/")[2] for entry in fs.find(path, maxdepth=1)}
        job = _Job(fs, path, url, packing, samples_per_shard)
        finished = _run(job, earlier, num_processes, progress)
    finally:
        source.close()
    kept = tuple(entry.shard for entry in finished if entry.shard.num_samples)
    broken = tuple(name for entry in finished for name in entry.broken)
    if not kept:
        raise UserError(
            f"none of the {len(broken)} images of the source could be read: check the source's url and kind"
        )
    num_images = sum(shard.num_samples for shard in kept)
    manifest = Manifest(
        packing.resolution, packing.channels, packing.encoding, packing.labels, job.entry, num_images, kept
    )
    with as_user_error(url):
        _put(fs, f"{path}/{MANIFEST_NAME}", manifest.to_json().encode())
        _remove_leftovers(fs, path, {shard.name for shard in kept})
    return Report(manifest, num_images, broken, time.monotonic() - start)


@dataclass(frozen=True)
class _Job:
    """All that a process needs to write any of the shards."""

    fs: fsspec.AbstractFileSystem
    path: str
    url: str
    packing: ShardEncoder
    samples_per_shard: int

    @property
    def entry(self) -> SourceEntry:
        """What the manifest says of the source."""
        source = self.packing.source
        return SourceEntry(source.kind, without_query(source.url), source.split)

    def settings(self) -> dict[str, object]:
        """All that decides the bytes of a shard."""
        return {
            "format_version": FORMAT_VERSION,
            "source": asdict(self.entry),
            "source_samples": len(self.packing.source),
            "labels": None if self.packing.labels is None else list(self.packing.labels),
            "resolution": self.packing.resolution,
            "channels": self.packing.channels,
            "encoding": self.packing.encoding,
            "samples_per_shard": self.samples_per_shard,
        }


@dataclass(frozen=True)
class _Task:
    """One shard: its number and the samples of the source that belong to it, in order."""

    number: int
    indices: np.ndarray

    @property
    def name(self) -> str:
        return f"shard-{self.number:06d}.tar"


@dataclass(frozen=True)
class _Finished:
    """One written shard. It has no file if each of its images was broken."""

    number: int
    shard: Shard
    broken: tuple[str, ...]


class _Stopped(Exception):
    """The run is over, and this shard is not wanted any more."""


def _run(job: _Job, earlier: set[str], num_processes: int, show: bool) -> list[_Finished]:
    """Writes all shards that an earlier run has not, and returns all of them in order."""
    order = job.packing.order()
    starts = range(0, len(order), job.samples_per_shard)
    tasks = [_Task(number, order[start : start + job.samples_per_shard]) for number, start in enumerate(starts)]
    with as_user_error(job.url):
        finished = [entry for task in tasks if (entry := _finished_before(job, task, earlier)) is not None]
    done = {entry.number for entry in finished}
    left = [task for task in tasks if task.number not in done]
    num_processes = min(num_processes, len(left))
    alone = num_processes <= 1 or not job.packing.worth_processes or is_process_local(job.fs)
    before = sum(len(task.indices) for task in tasks) - sum(len(task.indices) for task in left)
    with Progress(len(order), before, show, job.packing.unit) as bar:
        if alone:
            finished += [_write_shard(job, task, bar.advance) for task in left]
        else:
            finished += _in_processes(job, left, num_processes, bar.advance)
    return sorted(finished, key=lambda entry: entry.number)


def _write_shard(job: _Job, task: _Task, advance: Callable[[int], None]) -> _Finished:
    packed = job.packing.pack(task.indices, task.number * job.samples_per_shard, advance)
    data = _tar(packed.members)
    shard = Shard(task.name, packed.num_samples, len(data), hashlib.sha256(data).hexdigest())
    finished = _Finished(task.number, shard, packed.broken)
    with as_user_error(job.url):
        if packed.num_samples:
            _put(job.fs, f"{job.path}/{task.name}", data)
        _put(job.fs, f"{job.path}/{task.name}.json", _sidecar(job, finished))
    return finished


def _tar(samples: Iterable[dict[str, str | bytes]]) -> bytes:
    buffer = io.BytesIO()
    # A fixed time, owner and mode: the same images give the same SHA-256.
    with webdataset.TarWriter(buffer, encoder=False, mtime=0, user="gebm", group="gebm", mode=0o644) as tar:
        for sample in samples:
            tar.write(sample)
    return buffer.getvalue()


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Writes a whole file or none of it."""
    fs.pipe_file(f"{path}.part", data)
    fs.mv(f"{path}.part", path)


def _sidecar(job: _Job, finished: _Finished) -> bytes:
    entry = {"settings": job.settings(), "shard": asdict(finished.shard), "broken": list(finished.broken)}
    return json.dumps(entry, indent=1).encode()


def _finished_before(job: _Job, task: _Task, earlier: set[str]) -> _Finished | None:
    """The shard of an interrupted run, if it is what this run would write."""
    if f"{task.name}.json" not in earlier:
        return None
    path = f"{job.path}/{task.name}"
    try:
        entry = json.loads(job.fs.cat_file(f"{path}.json"))
        finished = _Finished(task.number, Shard(**entry["shard"]), tuple(entry["broken"]))
        if entry["settings"] != job.settings():
            return None
    except (ValueError, KeyError, TypeError):
        return None
    if finished.shard.num_samples and (task.name not in earlier or job.fs.size(path) != finished.shard.bytes):
        return None
    return finished


def _remove_leftovers(fs: fsspec.AbstractFileSystem, path: str, shards: set[str]) -> None:
    """Removes what interrupted runs left beside the store, and nothing that this module would not have written."""
    fs.invalidate_cache(path)
    for entry in fs.find(path, maxdepth=1):
        name = entry.rpartition("/")[2]
        if name not in shards and (_OURS.fullmatch(name) or name == f"{MANIFEST_NAME}.part"):
            fs.rm_file(entry)


def _in_processes(job: _Job, tasks: list[_Task], num_processes: int, advance: Callable[[int], None]) -> list[_Finished]:
    # Not fork: this process may hold threads (object stores run one), and a lock held by one would stay locked.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    finished, seen = [], 0
    with ProcessPoolExecutor(num_processes, context, _begin, (job, counter, stop)) as pool:
        try:
            waiting = {pool.submit(_write_shard_here, task) for task in tasks}
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                now = counter.value
                advance(now - seen)
                seen = now
                finished += [future.result() for future in done]
        except BrokenProcessPool:
            raise UserError(
                f"a process that wrote {job.url} was killed, most likely for want of memory: run it again with fewer "
                "processes; the finished shards are kept"
            ) from None
        finally:
            # After an error or an interruption they stop at the next image. To wait here and not on leaving the block,
            # which would find nothing to wait for: a pool that is still ending as Python ends writes a traceback.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return finished


_here: tuple[_Job, Callable[[int], None]] | None = None


def _begin(job: _Job, counter: multiprocessing.sharedctypes.Synchronized, stop: threading.Event) -> None:
    """Prepares a new process, which writes shards of one job only."""
    global _here
    # An interruption from the keyboard reaches every process; the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()

    def advance(samples: int) -> None:
        if stop.is_set():
            raise _Stopped
        with counter.get_lock():
            counter.value += samples

    _here = job, advance


def _write_shard_here(task: _Task) -> _Finished:
    job, advance = _here
    return _write_shard(job, task, advance)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
