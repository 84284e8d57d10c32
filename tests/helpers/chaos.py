"""A trial's workers in processes that can be killed at any moment, without a cluster.

Ray Train's local mode runs what a worker runs in the process that asks for it, so a worker is a fork of a process that
has imported everything, and starts within milliseconds. Only what an agent of Ray's does is done here: the workers meet
at a store, as under torchrun, and the notice that a machine is about to be taken away is a SIGTERM.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ray.train.torch import TorchTrainer
from torch.distributed import TCPStore

from pipeline import config as schema
from pipeline import tasks
from pipeline.data import BatchSpec, Reader, open_store
from pipeline.runtime.errors import Preempted, UserError
from pipeline.sweep.train_run import run_worker
from pipeline.tasks.open_store import ensure_store
from pipeline.training.checkpoints import Checkpoints

__all__ = ["Moment", "computed", "forks", "live", "read_ahead", "save", "train"]

# Operations that Python's audit hooks report beforehand; a file is written under another name, then renamed.
_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True)
class Moment:
    """When a life ends, and how.

    Attributes:
        signal: SIGKILL, or SIGTERM for a notice.
        operation: before which operation on the trial's files, counted from 0, of the first worker; or
        seconds: after so much computing, which is the same moment on a machine that is busy.
        rank: of the worker that dies.
        about: words of the operations that count, such as ``index.json``.
    """

    signal: signal.Signals = signal.SIGKILL
    operation: int | None = None
    seconds: float = 0.0
    rank: int = 0
    about: str = ""


def forks() -> multiprocessing.context.ForkServerContext:
    """Where processes are forked from: a process with one thread, which has imported what a worker needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.sweep.driver", "ray.train.torch", "psutil", "pytest"])
    return context


def live(settings: dict[str, Any], journal: Path, world_size: int, end: Moment | None) -> str:
    """Let a trial's workers live to a moment, or to their own end.

    Args:
        settings: what a trial gives its workers.
        journal: a file that gets what the first worker reports, a line each.
        world_size: workers.
        end: the moment, or None.

    Returns:
        ``finished``, ``killed``, or ``preempted`` or ``refused`` and what was said then.
    """
    settings = {"plugins": [], **settings}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [
        forks().Process(target=worker, args=(settings, journal, rank, world_size, store.port, end))
        for rank in range(world_size)
    ]
    for process in workers:
        process.start()
    due = end is not None and end.operation is None
    try:
        while all(process.exitcode is None for process in workers):
            if due and computed(workers[end.rank].pid) >= end.seconds:
                # A notice goes to all of them.
                for process in workers if end.signal == signal.SIGTERM else [workers[end.rank]]:
                    os.kill(process.pid, end.signal)
                due = False
            workers[0].join(0.003)
        if not _exits(workers) & set(_KILLED):  # the others will end as well, or one of them was killed
            for process in workers:
                process.join(30)
        exits = _exits(workers)
    finally:
        for process in workers:  # those who have lost a peer, whom Ray would end
            process.kill()
            process.join()
    if exits == {0}:
        return json.loads(journal.read_text().splitlines()[-1])["end"]
    assert exits & set(_KILLED), f"a worker has failed by itself: {exits}"
    return "killed"


def _exits(workers: list[multiprocessing.process.BaseProcess]) -> set[int | None]:
    return {process.exitcode for process in workers}


def train(home: Path, words: list[str], output: Path, *lives: tuple[int, Moment | None]) -> list[dict[str, Any]]:
    """Train as ``python -m pipeline.train`` does, by the same loop, without a cluster.

    Args:
        home: the working directory, with the stores in it.
        words: of the command line.
        output: the results' folder.
        lives: of its workers, how many they are and when they end, one after the other.

    Returns:
        What was reported.
    """
    with initialize_config_dir(str(schema.config_root()), version_base="1.3"):
        composed = OmegaConf.to_container(compose(schema.CONFIG_NAME, overrides=words), resolve=True)
    config = schema.from_dict({key: value for key, value in composed.items() if key not in schema.HYDRA_KEYS})
    config.data.store, config.output = str(home / "stores" / config.data.store), str(output)
    tasks.make(config).prepare(ensure_store(config), torch.device("cpu"))
    output.mkdir(exist_ok=True)
    settings = {"config": schema.to_dict(config), "url": f"{output}/trials/000", "lr_scale": 1.0}
    (output / "journal").touch()
    for num_workers, end in lives:
        how = live(settings, output / "journal", num_workers, end)
    assert how == "finished" or how.startswith("refused")
    return [json.loads(line) for line in (output / "journal").read_text().splitlines()]


def computed(pid: int) -> float:
    """Seconds that a process has computed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system
    return 0.0


def worker(settings: dict[str, Any], journal: Path, rank: int, world_size: int, port: int, end: Moment | None) -> None:
    """One worker; the arguments are those of :func:`live`."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bits are the same on the CPU
    noticed, heeded = [], []
    signal.signal(signal.SIGTERM, lambda *_: noticed.append(True))
    if world_size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        os.environ.update({name: str(value) for name, value in (ranks | store).items()})

    def write_report(report: dict[str, Any]) -> None:
        if rank == 0:
            with journal.open("a") as file:
                file.write(f"{json.dumps(report)}\n")

    def notice() -> bool | None:
        """The first worker's, for all of them, as Ray's is."""
        flag = torch.tensor(float(bool(noticed)))
        if world_size > 1:
            torch.distributed.broadcast(flag, src=0)
        assert not heeded, "it continues although it has to stop"
        heeded.extend([True] * bool(flag))
        return bool(flag) or None

    ray.train.report, ray.train.get_preemption_info = write_report, notice  # no driver is there
    if end is not None and end.operation is not None and rank == 0:
        kill_before(end.operation, settings["url"], end.about)
    try:
        TorchTrainer(
            run_worker, train_loop_config=settings, scaling_config=ray.train.ScalingConfig(num_workers=0)
        ).fit()
        write_report({"end": "finished"})
    except Preempted as error:
        write_report({"end": f"preempted: {error}"})
    except UserError as error:
        write_report({"end": f"refused: {error}"})


def kill_before(operation: int, folder: str, about: str = "") -> None:
    """Kill this process, as by ``kill -9``, when it is about to do its so many-th operation on files of a folder.

    Args:
        operation: counted from 0.
        folder: its path.
        about: words of the operations that count.
    """
    left = itertools.count(operation, -1)

    def about_to(event: str, args: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS:
            return
        inside = str(args[0]).startswith(folder) or (event == "os.remove" and args[1] != -1)  # -1: by its whole path
        if inside and about in f"{event} {args[0]}" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(about_to)


def save(folder: str, base_step: int, score: float | None, operation: int | None = None) -> None:
    """Save a checkpoint.

    Args:
        folder: the trial's.
        base_step: what it is full of, too.
        score: its score.
        operation: before which of its operations on files the process is killed.
    """
    if operation is not None:
        kill_before(operation, folder)
    filled = torch.full((3,), float(base_step))
    Checkpoints(folder).save(base_step, model={"w": filled}, training={"t": filled}, state={}, score=score)


def read_ahead(store: str) -> None:
    """Read a store's first batch through a loader worker.

    Args:
        store: its URL.
    """
    next(iter(Reader(open_store(store), BatchSpec(batch_size=50), num_workers=1)))
