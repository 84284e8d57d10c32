"""The Ray cluster a sweep runs on, and how many of its trials fit there side by side."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
import ray

from pipeline.config import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import is_local

__all__ = [
    "TRIAL_RESOURCES",
    "Capacity",
    "configure_tune",
    "connected",
    "demand",
    "pin_ray_address",
    "ray_storage",
    "remove_ray_storage",
    "require_reachable",
    "trials_that_fit",
]

# What Tune reserves for a trial's own process, which only waits for its workers. It has to be something, and is a MiB
# and no part of a CPU: Ray scales an elastic trial by the CPUs that nodes have, not by those that are free of them, and
# would wait for ever for a worker that a hundredth leaves no room for.
TRIAL_RESOURCES = {"memory": 2**20}

_BOOKS = ".ray"


@dataclass(frozen=True)
class Capacity:
    """What a cluster has and what a trial asks of it."""

    nodes: list[dict[str, float]]
    worker: dict[str, float]
    num_workers: int
    min_workers: int | None = None  # that a trial makes do with
    ours: bool = False  # started for this sweep, so nobody else is on it

    @property
    def preparation(self) -> dict[str, float]:
        """What to take for the work that all trials wait for: a worker's share, or all that a cluster of ours has."""
        cpus = max(float(int(node.get("CPU", 0.0))) for node in self.nodes)
        return {**self.worker, "CPU": max(cpus, self.worker["CPU"])} if self.ours else self.worker

    @property
    def concurrent_trials(self) -> int:
        """Trials that fit at the same time; one that is elastic has all the room where there is none for more."""
        alone = self.min_workers and trials_that_fit(self.nodes, self.worker, self.min_workers)
        return trials_that_fit(self.nodes, self.worker, self.num_workers) or min(alone or 0, 1)


def trials_that_fit(nodes: list[dict[str, float]], worker: dict[str, float], num_workers: int) -> int:
    """How many trials fit, each ``num_workers`` workers on any nodes.

    Args:
        nodes: resources of each node.
        worker: resources of one worker.
        num_workers: workers of one trial.

    Example:
        >>> trials_that_fit([{"CPU": 4}], {"CPU": 1}, 2)
        2
        >>> trials_that_fit([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 1)
        2
        >>> trials_that_fit([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 1}, 4)
        1
    """
    return sum(_workers_that_fit(node, worker) for node in nodes) // num_workers


def _workers_that_fit(node: dict[str, float], worker: dict[str, float]) -> int:
    """How many workers fit a node; none stretches over two."""
    return int(min(node.get(name, 0.0) // amount for name, amount in worker.items()))


def demand(config: Config) -> dict[str, float]:
    """Resources of one worker of a trial, on the cluster that is connected."""
    use_gpu = config.scale.use_gpu
    if use_gpu is None:
        use_gpu = any(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    worker = {"CPU": float(config.scale.cpus_per_worker)}
    return {**worker, "GPU": 1.0} if use_gpu else worker


def require_reachable(address: str) -> None:
    """Find out in seconds whether anybody is there; Ray asks for minutes, and prints a warning each time.

    Args:
        address: ``host:port``; anything else is left to Ray.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Capacity]:
    """Connect to the cluster, or start one on this machine, and leave it as it was found.

    Args:
        config: ``ray.address`` and what ``scale`` asks for.

    Yields:
        What the cluster has.

    Raises:
        UserError: the cluster cannot be reached, or a trial can never fit it.
    """
    configure_tune()
    # We print our own progress; Ray keeps what its processes print in its log files.
    settings = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.ray.address or os.environ.get("RAY_ADDRESS")  # which Ray sets for the jobs it starts
    try:
        if address:
            require_reachable(address)
            ray.init(address=address, **settings)
        else:
            # The dashboard's API is what the clean-up of a dead trial's resources asks.
            hook = {"worker_process_setup_hook": f"{__name__}.{pin_ray_address.__name__}"}
            ray.init(
                address="local", num_cpus=os.cpu_count() or 1, include_dashboard=True, runtime_env=hook, **settings
            )
    except (OSError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no Ray cluster at {where} ({reason}): start one with `ray start --head`, or leave out ray.address"
        ) from None
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        capacity = Capacity(nodes, demand(config), config.scale.num_workers, config.scale.min_workers, ours=not address)
        if capacity.concurrent_trials == 0:
            has = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
            asks = ", ".join(f"{amount:g} {name}" for name, amount in capacity.worker.items())
            least = capacity.min_workers
            scale = f"scale.min_workers={least}" if least else f"scale.num_workers={capacity.num_workers}"
            raise UserError(
                f"a trial never fits: {scale} workers of {asks} each, and the cluster "
                f"has {int(has['CPU'])} CPU and {int(has['GPU'])} GPU on {len(nodes)} node(s); lower "
                f"scale.num_workers or scale.cpus_per_worker, or add nodes"
            )
        yield capacity
    finally:
        ray.shutdown()


def configure_tune() -> None:
    """Set what Tune takes from the environment, before it runs."""
    # It asks for the metric in every report; ours come between evaluations too, without one.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output ignores verbose=0
    # Tables, JSON lines and TensorBoard files of each trial: nobody reads them here, and they cost most of the driver's
    # time. Whoever wants them sets this to 0.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


def pin_ray_address() -> None:
    """Tell a worker's process which cluster it is of, when it starts.

    Where two sweeps run on one machine there are two clusters. What cleans up after a trial that was stopped looks for
    *the* cluster, and would find two and free nothing: its CPUs would be taken for ever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def ray_storage(output: str, name: str = "sweep") -> dict[str, Any]:
    """Where Ray keeps its own books: a folder among the results, through fsspec like all else.

    Args:
        output: the results' folder, behind any fsspec URL.
        name: of the run in Ray.

    Returns:
        The arguments that Tune's ``run`` and Train's ``RunConfig`` have for it.
    """
    files, path = fsspec.url_to_fs(f"{output}/{_BOOKS}")
    if is_local(files):
        return {"storage_path": path, "name": name}
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files))
    return {"storage_path": path, "storage_filesystem": filesystem, "name": name}


def remove_ray_storage(output: str) -> None:
    """Remove Ray's books. They are pickles, and nothing here reads them: a sweep goes on from ``summary.json``."""
    files, path = fsspec.url_to_fs(f"{output}/{_BOOKS}")
    with contextlib.suppress(FileNotFoundError):
        files.rm(path, recursive=True)
