"""Ray cluster of a sweep, and the number of trials that fit there side by side."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
import ray
from ray.exceptions import RayError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from pipeline.config import Config
from pipeline.config.sampler_search import is_sampler_search
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import is_local
from pipeline.sweep.gpu_share import gpus_per_worker
from pipeline.sweep.ray_environment import bypass_proxies, prepare_worker, private_folder, protect_token

__all__ = [
    "RAY_STORAGE",
    "TRIAL_RESOURCES",
    "Capacity",
    "check_address",
    "cluster_address",
    "configure_tune",
    "connected",
    "demand",
    "ray_storage",
    "storage_folder",
    "require_reachable",
    "trials_that_fit",
]

# What Tune reserves for the own process of a trial of several workers, which only waits for them. It cannot be nothing,
# and is a MiB and no part of a CPU: Ray scales an elastic trial by the CPUs that nodes have, not by those that are free
# of them, and would wait for ever for a worker that a hundredth leaves no room for.
TRIAL_RESOURCES: dict[str, float] = {"memory": 2**20}

# Seconds that a process waits for a trial that was pruned before it takes the next one. Where that is too short, Tune
# loses the next one, and its slot with it. So it is longer than the time after which a watchdog ends a process that
# hangs: the pruned trial is given up at its next batch.
_WAITS_FOR_STOP = "TUNE_FUNCTION_THREAD_TIMEOUT_S"
_LONGER_THAN_WATCHDOG = 60.0

# Whether each trial has an actor that polls for nodes that are about to be removed.
_WATCHES_NODES = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"

RAY_STORAGE = ".ray"
"""Name of Ray's storage where it has to be in a sweep's folder."""


@dataclass(frozen=True)
class Capacity:
    """Resources of a cluster and of a trial.

    Attributes:
        nodes: Resources of each node.
        worker: Resources of one worker of a trial.
        num_workers: Workers of a trial.
        min_workers: Workers with which an elastic trial starts; None for a trial that is not elastic.
        ours: Whether the cluster was started for this sweep, so that nothing else runs on it.
    """

    nodes: list[dict[str, float]]
    worker: dict[str, float]
    num_workers: int
    min_workers: int | None = None
    ours: bool = False

    @property
    def preparation(self) -> dict[str, float]:
        """Resources for the work that all trials wait for: a worker's share, or a whole node of a cluster of ours."""
        cpus = max(float(int(node.get("CPU", 0.0))) for node in self.nodes)
        return {**self.worker, "CPU": max(cpus, self.worker["CPU"])} if self.ours else self.worker

    @property
    def is_alone(self) -> bool:
        """Whether a trial has one worker, which is its own process then, and stays warm for the next trial."""
        return self.num_workers == 1

    @property
    def concurrent_trials(self) -> int:
        """Trials that fit at the same time; where none does, one that is elastic may still run alone."""
        whole = trials_that_fit(self.nodes, self.worker, self.num_workers)
        if whole > 0:
            return whole
        if not self.min_workers:
            return 0
        return min(trials_that_fit(self.nodes, self.worker, self.min_workers), 1)


def trials_that_fit(nodes: list[dict[str, float]], worker: dict[str, float], num_workers: int) -> int:
    """Return the number of trials that fit, each of ``num_workers`` workers on any nodes.

    Args:
        nodes: Resources of each node.
        worker: Resources of one worker.
        num_workers: Workers of one trial.

    Example:
        >>> trials_that_fit([{"CPU": 4}], {"CPU": 1}, 2)
        2
        >>> trials_that_fit([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 1)
        2
        >>> trials_that_fit([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 1}, 4)
        1
        >>> trials_that_fit([{"CPU": 99, "GPU": 2}], {"CPU": 1, "GPU": 0.1}, 1)
        20
        >>> trials_that_fit([{"CPU": 99, "GPU": 2}], {"CPU": 1, "GPU": 0.6}, 1)
        2
    """
    return sum(_workers_that_fit(node, worker) for node in nodes) // num_workers


def _workers_that_fit(node: dict[str, float], worker: dict[str, float]) -> int:
    """Return the number of workers that fit a node; none stretches over two, and no share over two GPUs."""
    return min(_amounts_that_fit(name, node.get(name, 0.0), amount) for name, amount in worker.items())


def _amounts_that_fit(name: str, total: float, amount: float) -> int:
    """Return how often an amount of a resource fits what a node has of it."""
    if name == "GPU" and amount < 1:
        # As a float, 1 // 0.1 is 9.
        return int(total) * int(1 / amount + 1e-9)
    return int(total // amount)


def demand(config: Config) -> dict[str, float]:
    """Return the resources of one worker of a trial, on the cluster that is connected."""
    use_gpu = config.scale.use_gpu
    if use_gpu is None:
        use_gpu = any(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    worker = {"CPU": float(config.scale.cpus_per_worker)}
    return {**worker, "GPU": gpus_per_worker(config)} if use_gpu else worker


def require_reachable(address: str) -> None:
    """Check within seconds that an address answers; Ray tries for minutes, and prints a warning each time.

    Args:
        address: ``host:port``; anything else is left to Ray.

    Raises:
        OSError: If nothing answers.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Capacity]:
    """Connect to the cluster, or start one on this machine, and leave it as it was found.

    Args:
        config: The experiment, with ``ray.address`` and ``scale``.

    Yields:
        Resources of the cluster and of a worker.

    Raises:
        UserError: If the cluster cannot be reached, or a trial can never fit it.
    """
    configure_tune()
    address = cluster_address(config)
    with contextlib.nullcontext() if address else private_folder():
        _connect(address, config)
        yield from _capacity(config, ours=not address)


def _capacity(config: Config, *, ours: bool) -> Iterator[Capacity]:
    """Yield the resources of the cluster that is connected, and leave it at the end."""
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_workers, min_workers = config.scale.num_workers, config.scale.min_workers
        if is_sampler_search(config):
            # More settings side by side, and not more workers a setting: those would wait for one another.
            num_workers, min_workers = 1, None
        capacity = Capacity(nodes, demand(config), num_workers, min_workers, ours=ours)
        if capacity.concurrent_trials == 0:
            raise UserError(_never_fits(capacity))
        yield capacity
    finally:
        _release_resources()
        ray.shutdown()


def _release_resources() -> None:
    """Remove the placement groups that trials have left: one that is stopped as it starts does not remove its own.

    They outlive the driver, and on a cluster that continues to run they would keep their CPUs and GPUs.
    """
    # Ray would start a cluster of its own to answer.
    if not ray.is_initialized():
        return
    # A cluster that no longer answers has nothing to give back.
    with contextlib.suppress(RayError, RuntimeError):
        job = ray.get_runtime_context().get_job_id()
        for name, group in placement_group_table().items():
            # The job that made it is the end of its name.
            if name.endswith(job) and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def cluster_address(config: Config) -> str | None:
    """Return the address of the cluster to connect to, or ``None`` where one is started on this machine.

    Args:
        config: The experiment, with ``ray.address``.

    Raises:
        UserError: ``RAY_ADDRESS`` names a cluster in a way that a sweep cannot use.
    """
    # Ray sets the variable for the jobs that it starts.
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        named = "ray.address" if config.ray.address else "RAY_ADDRESS"
        raise UserError(
            f"{named}={address}: a sweep is driven from within the cluster, by an address such as 127.0.0.1:6379; "
            f"start it there, for example with `python -m pipeline.submit`, or unset RAY_ADDRESS"
        )
    return address


def check_address(config: Config) -> None:
    """Refuse within seconds an address at which no cluster answers, before anything starts.

    Args:
        config: The experiment, with ``ray.address``.

    Raises:
        UserError: Nothing answers, or ``RAY_ADDRESS`` names a cluster in a way that a sweep cannot use.
    """
    address = cluster_address(config)
    try:
        require_reachable(address or "")
    except OSError as error:
        raise UserError(_unreachable(config, address, error)) from None


def _unreachable(config: Config, address: str | None, error: Exception) -> str:
    reason = one_line(error, limit=200)
    if address is None:
        return f"Ray does not start on this machine ({reason}): try again when less else runs, or give ray.address"
    named, leave = (
        ("", "leave out ray.address") if config.ray.address else (", as RAY_ADDRESS says", "unset RAY_ADDRESS")
    )
    return f"no Ray cluster at {address}{named} ({reason}): start one with `ray start --head`, or {leave}"


def _connect(address: str | None, config: Config) -> None:
    """Connect to a cluster, or start one where there is no address."""
    # Not imported above, since it imports torch: the process of a trial that has several workers does without.
    from gebm.allocator import ENVIRONMENT

    bypass_proxies(*([address.rpartition(":")[0].strip("[]")] if address else []))
    # We print our own progress; Ray keeps what its processes print in its log files.
    # Tune reads a whole number, and Python waits no longer than its maximum.
    waits = int(min(config.scale.timeout + _LONGER_THAN_WATCHDOG, threading.TIMEOUT_MAX))
    environment: dict[str, Any] = {
        "worker_process_setup_hook": f"{prepare_worker.__module__}.{prepare_worker.__name__}",
        "env_vars": {**ENVIRONMENT, _WAITS_FOR_STOP: str(waits)},
    }
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "runtime_env": environment}
    try:
        if address:
            require_reachable(address)
            ray.init(address=address, **options)
        else:
            protect_token()
            # The only node takes the driver along. The user can set this to 1.
            environment["env_vars"][_WATCHES_NODES] = os.environ.get(_WATCHES_NODES, "0")
            # The clean-up of a dead trial's resources needs the dashboard's API.
            ray.init(address="local", num_cpus=os.cpu_count() or 1, include_dashboard=True, **options)
    # Ray raises a bare Exception where a process of its own does not start in time, as on an overloaded machine.
    except Exception as error:
        raise UserError(_unreachable(config, address, error)) from None


def _never_fits(capacity: Capacity) -> str:
    nodes, least = capacity.nodes, capacity.min_workers
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    worker = ", ".join(f"{amount:g} {name}" for name, amount in capacity.worker.items())
    scale = f"scale.min_workers={least}" if least else f"scale.num_workers={capacity.num_workers}"
    return (
        f"a trial never fits: {scale} workers of {worker} each, and the cluster "
        f"has {int(total['CPU'])} CPU and {int(total['GPU'])} GPU on {len(nodes)} node(s); lower "
        f"scale.num_workers or scale.cpus_per_worker, or add nodes"
    )


def configure_tune() -> None:
    """Set Tune's environment variables, before it runs."""
    # Tune expects the metric in every report; ours come between evaluations too, without one.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # The new output ignores verbose=0.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tables, JSON lines and TensorBoard files of each trial are not read here, and cost most of the driver's time. The
    # user can set this to 0 to have them.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


@contextlib.contextmanager
def storage_folder(output: str, *, shared: bool, num_nodes: int) -> Iterator[str]:
    """Give Ray a folder for its own state while a sweep runs.

    It is on a disk of each machine's own, so that a disk that is full of results does not lose what Ray passes on.
    It holds pickles that nothing here reads: a sweep resumes from ``summary.json``.

    Args:
        output: The results' folder, behind any fsspec URL.
        shared: Whether all nodes have to see the same folder, which is then among the results.
        num_nodes: Number of the cluster's nodes. Ray makes a folder of the same path on each, and those of the other
            nodes stay there.

    Yields:
        The folder, behind any fsspec URL.
    """
    _remove_ray_storage(output)
    if shared:
        yield f"{output}/{RAY_STORAGE}"
        # Not after an error: a driver that has lost its lock removes nothing of the folder.
        _remove_ray_storage(output)
        return
    # The path has to be possible on other nodes, which need not have this machine's TMPDIR.
    place = "/tmp" if num_nodes > 1 else None
    with tempfile.TemporaryDirectory(prefix="gebm-ray-", dir=place, ignore_cleanup_errors=True) as folder:
        yield folder


def ray_storage(folder: str, name: str = "sweep") -> dict[str, Any]:
    """Return Ray's storage, through fsspec like everything else.

    Args:
        folder: From :func:`storage_folder`.
        name: Name of the run in Ray.

    Returns:
        Its arguments of Tune's ``run`` and Train's ``RunConfig``.
    """
    files, path = fsspec.url_to_fs(folder)
    if is_local(files):
        return {"storage_path": path, "name": name}
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files))
    return {"storage_path": path, "storage_filesystem": filesystem, "name": name}


def _remove_ray_storage(output: str) -> None:
    """Remove Ray's storage from a sweep's folder, where this sweep has it or an earlier one left it."""
    files, path = fsspec.url_to_fs(f"{output}/{RAY_STORAGE}")
    with contextlib.suppress(FileNotFoundError):
        files.rm(path, recursive=True)
