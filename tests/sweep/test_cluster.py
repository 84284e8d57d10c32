"""What fits a cluster, by the law and on a real one."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.state import list_actors

from pipeline.config import apply
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep.cluster import connected, demand, trials_that_fit
from pipeline.sweep.gpu_share import suggest_share
from pipeline.training.worker import Worker

NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 16).map(float), "GPU": st.integers(0, 4).map(float)}), max_size=5
)
WORKERS = st.sampled_from([{"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}])


def slots(node: dict[str, float], worker: dict[str, float]) -> int:
    """Workers that fit a node, one after the other."""
    free, count = dict(node), 0
    while all(free[name] >= amount for name, amount in worker.items()):
        free = {name: amount - worker.get(name, 0.0) for name, amount in free.items()}
        count += 1
    return count


@given(NODES, WORKERS, st.integers(1, 6))
@settings(deadline=None, max_examples=300)
def test_as_many_trials_fit_as_there_are_places_for_their_workers(nodes, worker, num_workers):
    places = sum(slots(node, worker) for node in nodes)
    assert trials_that_fit(nodes, worker, num_workers) == places // num_workers


@given(NODES, NODES, WORKERS, st.integers(1, 6))
@settings(deadline=None, max_examples=300)
def test_more_nodes_never_hold_fewer_trials(nodes, more, worker, num_workers):
    assert trials_that_fit(nodes + more, worker, num_workers) >= trials_that_fit(nodes, worker, num_workers)


@pytest.mark.parametrize(
    ("nodes", "worker", "num_workers", "trials"),
    [
        ([{"CPU": 4}], {"CPU": 1}, 2, 2),
        ([{"CPU": 4.5}], {"CPU": 1.5}, 1, 3),
        ([{"CPU": 8, "GPU": 2}] * 2, {"CPU": 1, "GPU": 1}, 4, 1),
        ([{"CPU": 8, "GPU": 2}] * 2, {"CPU": 1, "GPU": 1}, 5, 0),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 2, 1),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 4}, 1, 0),  # a worker does not stretch over two nodes
        ([{"CPU": 99, "GPU": 2}], {"CPU": 1, "GPU": 0.25}, 1, 8),
        ([{"CPU": 99, "GPU": 2}], {"CPU": 1, "GPU": 0.1}, 1, 20),  # as floats, 1 // 0.1 is 9
        ([{"CPU": 99, "GPU": 2}], {"CPU": 1, "GPU": 0.6}, 1, 2),  # a share does not stretch over two GPUs
        ([{"CPU": 5, "GPU": 2}], {"CPU": 1, "GPU": 0.25}, 1, 5),
        ([{"CPU": 5}], {"CPU": 1, "GPU": 0.25}, 1, 0),
        ([{"memory": 1.0}], {"CPU": 1}, 1, 0),
        ([], {"CPU": 1}, 1, 0),
    ],
)
def test_what_fits(nodes, worker, num_workers, trials):
    assert trials_that_fit(nodes, worker, num_workers) == trials


def test_nobody_at_the_address_is_one_line_within_seconds(small):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address, begun = f"127.0.0.1:{port}", time.monotonic()
    with pytest.raises(UserError) as refusal, connected(small(ray={"address": address})):
        pass
    line = str(refusal.value)
    assert f"no Ray cluster at {address}" in line and "ray start --head" in line and "\n" not in line
    assert time.monotonic() - begun < 60  # Ray's own patience is minutes
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of three nodes on this machine."""
    # Any port: another test may have the usual one.
    head = {"num_cpus": 3, "num_gpus": 2, "dashboard_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def test_a_cluster_of_three_nodes_is_counted_and_left_running(small, address, monkeypatch):
    # How many trials fit is the law's to say; what is counted here are the cluster's own nodes.
    with connected(small(ray={"address": address}, scale={"num_workers": 3, "use_gpu": False})) as capacity:
        assert sorted(node["CPU"] for node in capacity.nodes) == [2.0, 2.0, 3.0]
        assert capacity.worker == {"CPU": 1.0}
        assert capacity.concurrent_trials == trials_that_fit(capacity.nodes, {"CPU": 1.0}, 3) == 2
    assert not ray.is_initialized()
    with monkeypatch.context() as job:  # as in a job that the cluster itself has started
        job.setenv("RAY_ADDRESS", address)
        with connected(small(scale={"num_workers": 1, "use_gpu": False})) as capacity:
            assert len(capacity.nodes) == 3 and capacity.preparation == {"CPU": 1.0}


def test_a_placement_group_that_a_trial_has_left_is_given_back(small, address):
    """A trial that Ctrl-C stops as it starts leaves one that outlives its driver."""
    config = small(ray={"address": address}, scale={"num_workers": 1, "use_gpu": False})
    for _ in range(2):
        with connected(config):
            # All CPUs of a node: a second one waits for ever where the first is kept.
            group = placement_group([{"CPU": 3.0}], lifetime="detached")
            assert group.wait(60)


def test_a_trial_that_never_fits_is_refused_with_the_numbers(small, address):
    config = small(ray={"address": address}, scale={"num_workers": 64, "use_gpu": False})
    with pytest.raises(UserError) as refusal, connected(config):
        raise AssertionError("a trial of 64 workers started")
    line = str(refusal.value)
    assert "scale.num_workers=64" in line and "1 CPU each" in line and "has 7 CPU and 2 GPU on 3 node" in line
    assert "\n" not in line
    assert not ray.is_initialized()


def test_of_two_clusters_on_one_machine_each_cleans_up_in_its_own(small, address):
    """What frees the CPUs of a stopped trial asks for actors, from a worker, without saying of which cluster."""

    @ray.remote
    def seen() -> int:
        return len(list_actors())

    with connected(small(scale={"num_workers": 1, "use_gpu": False})) as capacity:
        assert [node["CPU"] for node in capacity.nodes] == [os.cpu_count()], "not those of the other cluster"
        assert ray.get(seen.remote(), timeout=120) == 0


@given(st.integers(1, 100), st.integers(0, 8))
@settings(max_examples=100)
def test_as_many_trials_share_a_gpu_as_the_fraction_says(trials, gpus):
    share = math.floor(100 / trials) / 100
    nodes = [{"CPU": 1000.0, "GPU": float(gpus)}]
    assert trials_that_fit(nodes, {"CPU": 1, "GPU": 1 / trials}, 1) == gpus * trials
    assert trials_that_fit(nodes, {"CPU": 1, "GPU": share}, 1) >= gpus * trials


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ({"gpus_per_worker": 0.25, "num_workers": 2}, "NCCL"),
        ({"gpus_per_worker": 0.5, "num_workers": 4, "min_workers": 1}, "NCCL"),
        ({"gpus_per_worker": 0.0}, "it has to be a fraction"),
        ({"gpus_per_worker": -1}, "it has to be a fraction"),
        ({"gpus_per_worker": 0.001}, "it has to be a fraction"),
        ({"gpus_per_worker": 1.5}, "it has to be a fraction"),
        ({"gpus_per_worker": math.nan}, "it has to be a fraction"),
        ({"gpus_per_worker": math.inf}, "it has to be a fraction"),
        ({"gpus_per_worker": "half"}, "it has to be a fraction"),
        ({"gpus_per_worker": 0.5, "use_gpu": False}, "scale.use_gpu=false"),
    ],
)
def test_a_share_of_a_gpu_that_cannot_be_is_one_line(small, scale, expected):
    config = small(scale=scale)
    config.train.batch_size = 48
    with pytest.raises(UserError, match=r"^scale\.gpus_per_worker=") as refusal:
        validate(config)
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("share", "gpus"), [(None, 1.0), ("auto", 1.0), (1, 1.0), (0.25, 0.25), (2, 2.0)])
def test_a_worker_asks_for_its_share(small, share, gpus):
    config = small(scale={"gpus_per_worker": share, "use_gpu": True})
    validate(config)
    assert demand(config) == {"CPU": 1.0, "GPU": gpus}


SAMPLER = {"sampler.step_size": {"log_uniform": [1e-3, 1e-1]}}


@pytest.mark.parametrize(("workers", "space"), [(1, {}), (4, {}), (1, SAMPLER), (4, SAMPLER)])
def test_the_share_that_would_fit_holds_the_peak_and_is_accepted(workers, space, small):
    config = small(scale={"num_workers": workers, "gpus_per_worker": "auto"}, sweep={"space": space})
    config.train.batch_size = 48

    @settings(max_examples=30)
    @given(st.floats(0.0, 100.0))
    def law(peak):
        line = suggest_share(config, {"gpu_0_peak_memory_percentage": peak})
        assert "\n" not in line
        keys = dict(word.split("=") for word in line.split(" ") if word.startswith("scale."))
        share = float(keys["scale.gpus_per_worker"])
        assert 0.01 <= share <= 1 and (share == 1 or 100 * share >= peak)
        assert trials_that_fit([{"GPU": 1.0}], {"GPU": share}, 1) >= 1
        # Workers of one trial cannot share a GPU; a trial that only samples has one worker.
        assert share == 1 or workers == 1 or space
        validate(
            apply(config, {key: int(keys[key]) for key in keys if "num" in key} | {"scale.gpus_per_worker": share})
        )

    law()


@pytest.mark.parametrize("space", [{}, SAMPLER])
def test_without_a_gpu_the_line_on_shares_says_why_it_has_no_advice(space, small):
    config = small(scale={"gpus_per_worker": "auto"}, sweep={"space": space})
    for system in ({"cpu_utilization_percentage": 3.0}, {"gpu_0_peak_memory_percentage": math.nan}):
        assert "has no advice: the trial had no GPU" in suggest_share(config, system)


def test_a_worker_bounds_its_memory_by_its_share(monkeypatch):
    bounds = []
    # Torch's own code up to the driver, which is not there.
    monkeypatch.setattr("torch.cuda.memory._lazy_init", lambda: None)
    monkeypatch.setattr("torch._C._cuda_setMemoryFraction", lambda *share: bounds.append(share), raising=False)
    assert [str(Worker.alone(gpus).device) for gpus in (0, 1.0, 0.25, 2.0)] == ["cpu", "cuda:0", "cuda:0", "cuda:0"]
    assert bounds == [(0.25, 0)]


def test_ray_runs_as_many_shares_as_were_counted(address):
    ray.init(address=address, log_to_driver=False)
    try:
        nodes = [node["Resources"] for node in ray.nodes()]
        for share in (0.25, 0.6):
            worker = {"CPU": 0.25, "GPU": share}
            fitting = trials_that_fit(nodes, worker, 1)
            groups = [placement_group([worker]) for _ in range(fitting + 1)]
            ready, waiting = ray.wait([group.ready() for group in groups], num_returns=fitting, timeout=60)
            assert len(ready) == fitting and ray.wait(waiting, timeout=0.5)[0] == []
            for group in groups:
                remove_placement_group(group)
    finally:
        ray.shutdown()
