"""Environment that Ray starts in: proxies, folders of temporary files, tokens and addresses, as people have them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gebm.allocator import ENVIRONMENT as ALLOCATOR
from pipeline.runtime.errors import UserError
from pipeline.sweep import cluster, ray_environment
from pipeline.sweep.cluster import check_address, connected
from pipeline.sweep.ray_environment import bypass_proxies, private_folder, protect_token

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
PROXY = "http://127.0.0.1:9"
entries = st.lists(st.sampled_from(["example.org", ".internal", "10.0.0.0/8", "localhost", " ", "a.b:80"]), max_size=3)


@pytest.fixture
def clean(monkeypatch):
    for name in (*PROXIES, "no_proxy", "NO_PROXY", "RAY_TMPDIR", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(PROXIES), min_size=1), entries, entries)
@example({"http_proxy"}, [], [])
@example({"ALL_PROXY"}, ["example.org"], [])
def test_no_request_between_nodes_goes_through_a_proxy(clean, proxies, lower, upper):
    with clean.context() as context:
        for name in PROXIES:
            context.delenv(name, raising=False)
        for name in proxies:
            context.setenv(name, PROXY)
        context.setenv("no_proxy", ",".join(lower))
        context.setenv("NO_PROXY", ",".join(upper))
        bypass_proxies("10.1.2.3", "fd00::1")
        hosts = ("localhost", "127.0.0.1", "[::1]", "10.1.2.3", "[fd00::1]", ray.util.get_node_ip_address())
        for host in (*hosts, socket.gethostname()):
            assert requests.utils.get_environ_proxies(f"http://{host}:8265/api") == {}, host
        # What was excepted stays so, for libraries that read either name; and nothing else is.
        assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
        assert {entry for entry in (*lower, *upper) if entry.strip()} <= set(os.environ["no_proxy"].split(","))
        assert requests.utils.get_environ_proxies("http://mlflow.example.com/").keys() - {"no"}
        before = os.environ["no_proxy"]
        bypass_proxies("10.1.2.3", "fd00::1")
        assert os.environ["no_proxy"] == before


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_an_exception_for_every_host_stays_one(clean, name):
    clean.setenv("http_proxy", PROXY)
    clean.setenv(name, "*")
    bypass_proxies("10.1.2.3")
    assert requests.utils.get_environ_proxies("http://mlflow.example.com/") == {}


def test_ray_and_its_workers_start_without_a_proxy_between_nodes(clean, small, monkeypatch, tmp_path):
    """Ray itself is not started: what it would be started with is looked at."""
    seen = {}
    clean.setenv("http_proxy", PROXY)
    clean.setenv("HOME", str(tmp_path))
    node = {"Resources": {"CPU": 2.0}, "Alive": True}
    monkeypatch.setattr(ray, "init", lambda **options: seen.update(os.environ, options=options))
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "require_reachable", lambda address: None)
    longest = str(int(threading.TIMEOUT_MAX))
    cases = ((None, "127.0.0.1", 1800.0, "1860"), ("10.9.8.7:6379", "10.9.8.7", 1e300, longest))
    for address, host, timeout, waited in cases:
        for name in ("no_proxy", "NO_PROXY"):
            clean.delenv(name, raising=False)
        with connected(small(ray={"address": address}, scale={"timeout": timeout})):
            pass
        assert host in seen["no_proxy"].split(",") and "localhost" in seen["NO_PROXY"].split(",")
        environment = seen["options"]["runtime_env"]
        assert environment["worker_process_setup_hook"] == "pipeline.sweep.ray_environment.prepare_worker"
        # Of other nodes than its own each trial of a cluster hears when they are about to leave.
        watched = {} if address else {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        # The watchdog ends a process that hangs before Tune gives up the trial that is to have it next.
        waits = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": waited}
        assert environment["env_vars"] == {**ALLOCATOR, **waits, **watched}
    context = type("Context", (), {"gcs_address": "10.9.8.7:6379"})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    for name in ("no_proxy", "NO_PROXY", "RAY_ADDRESS"):
        clean.delenv(name, raising=False)
    ray_environment.prepare_worker()
    assert os.environ["RAY_ADDRESS"] == "10.9.8.7:6379"
    assert {"10.9.8.7", "127.0.0.1"} <= set(os.environ["no_proxy"].split(","))


def test_what_every_process_of_a_cluster_runs_imports_next_to_nothing():
    """Of the processes of a trial most only wait; each of them runs the hook when it starts."""
    heavy = ("torch", "gebm", "ray", "hydra", "omegaconf", "fsspec", "pyarrow", "pydantic", "numpy", "mlflow")
    code = f"import sys, {ray_environment.prepare_worker.__module__}; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# Folders of temporary files.


@pytest.mark.parametrize("length", [1, 20, 60, 90, 200])
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_rays_sockets_have_room_wherever_temporary_files_go(clean, tmp_path, variable, length):
    folder = tmp_path / f"é{'x' * length}"
    folder.mkdir()
    clean.setenv(variable, str(folder))
    with private_folder():
        chosen = Path(os.environ["RAY_TMPDIR"])
        sockets = f"{chosen}/ray/session_2026-11-29_23-06-49_095344_1234567/sockets/plasma_store_123"
        assert len(os.fsencode(sockets)) <= 107
        # Of the user alone, and of no name that somebody could have taken before.
        assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
        with private_folder():
            assert os.environ["RAY_TMPDIR"] != str(chosen)
            os.rmdir(os.environ["RAY_TMPDIR"])
        chosen.rmdir()
    assert os.environ.get("RAY_TMPDIR") == (str(folder) if variable == "RAY_TMPDIR" else None)


def test_without_a_folder_for_sockets_the_variable_is_named(clean, monkeypatch):
    clean.setenv("TMPDIR", f"/tmp/{'x' * 90}")

    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(UserError, match=r"TMPDIR=/tmp/x+: .*No space left.*RAY_TMPDIR") as refusal, private_folder():
        pass
    assert "\n" not in str(refusal.value)


# Tokens.


@pytest.mark.parametrize("mode", ["", "token"])
def test_a_token_is_readable_by_the_user_alone(clean, tmp_path, mode):
    clean.setenv("HOME", str(tmp_path))
    clean.setenv("RAY_AUTH_MODE", mode)
    protect_token()
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert os.listdir(token.parent) == ["auth_token"]
    token.write_text("an earlier one")
    token.chmod(0o644)
    protect_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text() == "an earlier one"


def test_no_token_is_made_where_none_is_used_or_one_is_given(clean, tmp_path):
    clean.setenv("HOME", str(tmp_path))
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x")):
        with clean.context() as context:
            context.setenv(name, value)
            protect_token()
    assert os.listdir(tmp_path) == []


def test_a_home_that_cannot_be_written_is_left_to_ray(clean, tmp_path):
    (tmp_path / "file").touch()
    clean.setenv("HOME", str(tmp_path / "file"))
    protect_token()


# Addresses.


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_kind_in_the_environment_is_named(clean, small, address):
    clean.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS={address}: ") as refusal:
        check_address(small())
    assert "ray.address" not in str(refusal.value) and "unset RAY_ADDRESS" in str(refusal.value)


def test_a_dead_address_is_said_to_be_the_environments(clean, small):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    clean.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"no Ray cluster at {address}, as RAY_ADDRESS says") as refusal:
        check_address(small())
    assert "unset RAY_ADDRESS" in str(refusal.value) and "ray.address" not in str(refusal.value)
    # A key of the command line wins over the environment, and is named.
    with pytest.raises(UserError, match=r"leave out ray\.address"):
        check_address(small(ray={"address": address}))
    clean.delenv("RAY_ADDRESS")
    check_address(small())
