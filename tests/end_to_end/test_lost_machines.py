"""Machines that are lost, with notice and without: a trial continues on the others."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.sweep.own_process import is_preempted
from pipeline.training.checkpoints import Checkpoints
from tests.helpers.chaos import Moment, train
from tests.helpers.cli import (
    PATIENCE,
    SMALL,
    evaluated,
    family,
    kill,
    same_weights,
    start,
    summary,
    wait_for,
    weights,
    workers,
)  # fmt: skip


def own_address(number: int) -> list[str]:
    """What gives a machine an address of its own: the kernel has all of 127.0.0.0/8 here, if it is Linux."""
    address = f"127.0.0.{number + 2}"
    try:
        with socket.socket() as listener:
            listener.bind((address, 0))
    except OSError as error:
        print(f"the machines have one address, for there is no {address} ({error})")
        return []
    return [f"--node-ip-address={address}"]


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """A cluster's address, and three machines of one CPU and a head: processes that end as machines do."""
    # For so long a trial waits for workers on a machine that Ray has not yet missed, and then counts again.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    # Any port: where another test has the usual one, the cluster would have no dashboard, and nothing that cleans up.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
    words = ["start", "--block", f"--address={cluster.address}", "--num-cpus=1", "--num-gpus=0"]
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    started = []
    for number in range(3):  # one after the other: two that start at once on one machine take the same port
        log = (tmp_path / f"machine-{number}").open("w")
        line = [sys.executable, "-m", "ray.scripts.scripts", *words, *ports, *own_address(number)]
        started.append(subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True))
        end = time.monotonic() + 60
        while sum(node["Alive"] for node in cluster.global_state.node_table()) < 2 + number:
            assert time.monotonic() < end, Path(log.name).read_text()
            time.sleep(0.2)
    yield cluster.address, started
    for process in started:
        kill(family(process.pid))
    cluster.shutdown()


def one_that_works(machines: list[subprocess.Popen]) -> subprocess.Popen:
    """A machine on which there is a training worker, once there is one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for machine in machines:
            if workers(machine.pid):
                return machine
        time.sleep(0.1)
    raise AssertionError("no worker has started within a minute")


@contextlib.contextmanager
def probes(address: str) -> Iterator[list[ray.actor.ActorHandle]]:
    """A process on each machine, with the preemption check of a trial of one worker."""
    ray.init(address=address, log_to_driver=False)
    try:
        asking = ray.remote(num_cpus=0)(Probe)
        nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
        yield [asking.options(scheduling_strategy=node).remote() for node in nodes]
    finally:
        ray.shutdown()


class Probe:
    def is_preempted(self) -> bool:
        return is_preempted()


LONG = [*SMALL, "train.base_steps=75", "evaluation.every=15", "scale.num_workers=2", "scale.min_workers=1"]


@pytest.mark.timeout(1200)
def test_a_trial_survives_its_machines(home, machines):
    """One is taken away with notice, and another without, which leaves room for one worker only.

    Each goes at a moment of chance.
    """
    address, nodes = machines
    chance = random.Random(0)
    output = home / "machines"
    # Two workers up to the third evaluation, and one from there.
    alone = (2, Moment(operation=0, about="interim-00000060")), (1, None)
    expected = {one["base_step"]: one for one in train(home, LONG, home / "long", *alone) if "fid_gebm" in one}
    process = start(home, "train", *LONG, f"output={output}", RAY_ADDRESS=address)
    wait_for(output, evaluated(1), process)
    time.sleep(chance.uniform(0, 2))
    taken = one_that_works(nodes)
    with probes(address) as processes:
        assert ray.get([probe.is_preempted.remote() for probe in processes]) == [False] * 4
        kill([taken.pid], signal.SIGTERM)  # Ray gives the workers half a minute
        end = time.monotonic() + 20
        while sum(ray.get([probe.is_preempted.remote() for probe in processes])) != 1:
            assert time.monotonic() < end
    nodes.remove(taken)
    while not str(Checkpoints(f"{output}/trials/000").last).endswith("step-00000045"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    kill(family(one_that_works(nodes).pid))
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    assert "a machine is about to be taken away" in printed and printed.count("restarts from its last") >= 2, printed
    [trial] = summary(output)["trials"]
    assert {one["base_step"]: one["fid_gebm"] for one in trial["evaluations"]} == {
        base_step: one["fid_gebm"] for base_step, one in expected.items()
    }
    assert same_weights(weights(output, 75), weights(home / "long", 75))
