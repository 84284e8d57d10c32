"""Preparation of a sweep: the work that all trials share, done once on the cluster, and its progress."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from pipeline import config as schema
from pipeline import tasks
from pipeline.config.plugins import install, sources
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, write_file
from pipeline.runtime.terminal import Progress
from pipeline.runtime.untrusted import CONFIG, parse_json, read_bytes
from pipeline.sweep.cluster import Capacity

__all__ = ["ProgressFile", "StageBars", "prepare_shared", "read_progress"]

log = logging.getLogger(__name__)

_PROGRESS = ".preparation.json"
_SECONDS_BETWEEN_WRITES = 1.0


def prepare_shared(config: schema.Config, capacity: Capacity) -> str | None:
    """Make what all trials need, once, on the cluster: the feature extractor and the data's statistics.

    Where a sweep before has made it, it is read here, and no process is started for it.

    Args:
        config: The experiment, with its output folder.
        capacity: Resources of the cluster.

    Returns:
        The label of the scores, such as the feature extractor's name; None where they have none.

    Raises:
        UserError: The data or the extractor cannot be used.
    """
    task, store = tasks.make(config), tasks.open_data(config.data)
    if task.is_prepared(store):
        return task.prepare(store, torch.device("cpu"))
    log.info("preparing what %s is measured with, from %s ...", config.name, config.data.store)
    gpus = capacity.preparation.get("GPU", 0)
    remote = ray.remote(num_cpus=capacity.preparation["CPU"], num_gpus=gpus)(_prepare_task)
    # Left by a driver that was killed, or by whoever the folder is from.
    ProgressFile(f"{config.output}/{_PROGRESS}").close()
    result = remote.remote(schema.to_dict(config), "cuda" if gpus else "cpu", sources())
    try:
        with contextlib.closing(StageBars(f"{config.output}/{_PROGRESS}")) as bars:
            while not ray.wait([result], timeout=_SECONDS_BETWEEN_WRITES)[0]:
                bars.update()
        return ray.get(result)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _prepare_task(values: dict[str, Any], device: str, plugins: list[dict[str, Any]]) -> str | None:
    install(plugins)
    config = schema.from_dict(values)
    with contextlib.closing(ProgressFile(f"{config.output}/{_PROGRESS}")) as report:
        return tasks.make(config).prepare(tasks.open_data(config.data), torch.device(device), report)


class ProgressFile:
    """Progress that a worker reports through a file of the sweep's folder, which every node of the cluster sees.

    Args:
        url: The file; it is written once a second at most, and removed by :meth:`close`.
    """

    def __init__(self, url: str) -> None:
        self._url, self._due = url, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report a stage, its samples that are done, and all there are."""
        if time.monotonic() < self._due:
            return
        # The work does not depend on it, and each file system has exceptions of its own.
        with contextlib.suppress(Exception):
            write_file(self._url, json.dumps({"stage": stage, "done": done, "total": total}).encode())
        self._due = time.monotonic() + _SECONDS_BETWEEN_WRITES

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(Exception):
            files, path = filesystem(self._url)
            files.rm_file(path)


def read_progress(url: str) -> tuple[str, int, int] | None:
    """Return the stage, the samples that are done and all there are; ``None`` where no report can be read.

    Args:
        url: File that :class:`ProgressFile` writes.
    """
    try:
        files, path = filesystem(url)
        report = parse_json(read_bytes(files, path, CONFIG), CONFIG)
        return str(report["stage"]), int(report["done"]), int(report["total"])
    # Each file system has exceptions of its own.
    except Exception:
        return None


class StageBars:
    """Progress of each stage: a bar on a terminal, and lines of the log elsewhere.

    Args:
        url: File that :class:`ProgressFile` writes.
    """

    def __init__(self, url: str) -> None:
        self._url, self._stage, self._done = url, "", 0
        self._bar = contextlib.ExitStack()
        self._progress: Progress | None = None

    def update(self) -> None:
        """Show what was reported last; without a report, or with one that cannot be read, nothing changes."""
        report = read_progress(self._url)
        if report is None:
            return
        stage, done, total = report
        if stage != self._stage or self._progress is None:
            self._bar.close()
            log.info("%s ...", stage)
            self._stage, self._done = stage, 0
            self._progress = self._bar.enter_context(Progress(total, unit="samples", write=log.info))
        self._progress.advance(done - self._done)
        self._done = done

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
