"""Whole commands, as a user types them, and the processes that they are made of."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = [
    "PATIENCE", "REPOSITORY", "SMALL", "command", "evaluated", "family", "kill", "load", "run", "run_unread",
    "same_weights", "start", "summary", "trial_processes", "wait_for", "weights", "workers",
]  # fmt: skip

REPOSITORY = Path(__file__).resolve().parents[2]

# A trial of seconds: the same code as a trial of days.
SMALL = [
    "train.base_steps=24",
    "train.warmup_energy_steps=4",
    "train.report_every=6",
    "train.batch_size=64",
    "train.final_energy_steps=6",
    "train.final_phase.check_every=3",
    "evaluation.every=8",
    "evaluation.num_samples=200",
    "evaluation.final_samples=200",
    "evaluation.batch_size=100",
    "evaluation.chain_points=2",
    "evaluation.grid=16",
    "sampler.num_steps=6",
]

# Seconds that a command may take before its test fails: many times what it takes on a machine that has nothing to do.
PATIENCE = 900


def load(path: str) -> ModuleType:
    """A file of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "GEBM_STORES": str(home / "stores"), "PYTHONPATH": str(REPOSITORY)}


def start(home: Path, verb: str, *words: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{verb}", *words],
        cwd=home,
        env={**environment(home), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(home: Path, verb: str, *words: str, status: int = 0, **variables: str) -> str:
    process = start(home, verb, *words, **variables)
    try:
        printed, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        # What is still running would slow down all the tests after this one.
        end(process)
        raise AssertionError(f"not done within {PATIENCE} s:\n{process.communicate()[0]}") from None
    assert process.returncode == status, printed
    assert "Traceback" not in printed, printed
    return printed


def run_unread(home: Path, verb: str, *words: str) -> None:
    """Run a command whose output nobody reads, as when it is piped to what has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", f"pipeline.{verb}", *words],
        cwd=home,
        env=environment(home),
        stdout=writing,
        stderr=writing,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writing)
    assert process.returncode == 0


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def wait_for(folder: Path, reached, process: subprocess.Popen) -> None:
    """Wait until the summary is as wanted; the process must not end before."""
    due = time.monotonic() + PATIENCE
    while time.monotonic() < due:
        assert process.poll() is None, process.communicate()[0]
        if (folder / "summary.json").exists() and reached(summary(folder)):
            return
        time.sleep(0.1)
    end(process)
    raise AssertionError(f"not reached within {PATIENCE} s:\n{process.communicate()[0]}")


def end(process: subprocess.Popen) -> None:
    """End a process and all that it has started, as when a machine goes down."""
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """A process and all that it has started, it and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def command(pid: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


def weights(folder: Path, base_step: int = 24) -> dict[str, Tensor]:
    """The model and the optimizers that a run has ended with."""
    checkpoint = folder / f"trials/000/checkpoints/step-{base_step:08d}"
    return {
        f"{name}/{key}": tensor
        for name in ("model", "training")
        for key, tensor in load_file(checkpoint / f"{name}.safetensors").items()
    }


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two runs have ended with the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def evaluated(times: int):
    """Whether the first trial was evaluated so often."""
    return lambda document: bool(document["trials"]) and len(document["trials"][0]["evaluations"]) >= times


def workers(pid: int) -> list[int]:
    """The workers of trials of several workers, among all that a process has started."""
    return [member for member in family(pid) if "RayTrainWorker" in command(member)]


def trial_processes(pid: int) -> list[int]:
    """The trials' own processes, in which those of one worker train, among all that a process has started."""
    return [member for member in family(pid) if "ImplicitFunc" in command(member)]
