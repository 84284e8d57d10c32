"""What holds for every test, and what many share: a store, an extractor, commands called in this process."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import ray
from hypothesis import HealthCheck, settings

from pipeline.config import Config, from_dict
from pipeline.data import Store, open_store, sources, write_store
from pipeline.evaluation.metrics import Extractor, make_extractor

# An example may take as long as it takes: on a machine that is busy with other tests, time says nothing about the code.
# Each run tries new examples, in CI as well: the same ones for ever would find the same faults for ever. What fails is
# printed with a line that reproduces it; what has to hold for certain examples has them as @example.
settings.register_profile(
    "project",
    max_examples=40,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")

# A shell's background jobs, and all that they start, ignore SIGINT: some tests press Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the user's choices, for these tests and the processes that they start."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        # By default Ray's workers have a nice value of 15, and would wait for all tests beside them.
        patch.setenv("RAY_worker_niceness", "0")
        # MLflow's server starts processes for jobs that are not used here, and take as long to start as the server.
        patch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        yield folder


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty database of MLflow, of which new ones in this process are copies: to make one takes seconds."""
    # MLflow itself takes seconds to be imported, and few tests need it.
    from tests.helpers.mlflow_database import copied_tables

    template = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with copied_tables(template):
        yield template


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stores' root with the digits in it."""
    root = tmp_path_factory.mktemp("stores")
    write_store(sources.make("digits"), str(root / "digits-8"), resolution=8, channels=1)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory, stores, classifier):
    """A working directory, far from the checkout, in whose store is the extractor that was trained for all tests."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(stores, folder / "stores")
    return folder


@pytest.fixture(scope="session")
def digits(stores: Path) -> Store:
    return open_store(str(stores / "digits-8"))


@pytest.fixture(scope="session")
def classifier(digits: Store) -> Extractor:
    return make_extractor("classifier", store=digits)


@pytest.fixture
def small() -> Callable[..., Config]:
    """A config of small networks on the digits, with keys of the test's own."""

    def make(**groups: object) -> Config:
        values = {
            "name": "small",
            "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
        }
        for key, value in groups.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return from_dict(values)

    return make


@pytest.fixture
def call_with_ray(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Calls a verb with words of the command line: exit status, standard output, standard error."""

    def verb(name: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"pipeline.{name}", *words])
        module = import_module(f"pipeline.{name}")
        if hasattr(module, "__path__"):  # a package
            module = import_module(f"pipeline.{name}.__main__")
        status = 0
        try:
            module.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return verb


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a cluster that sweeps use one after another; others start their own."""
    # Few tests need it, and it takes a second to be imported.
    from ray.cluster_utils import Cluster

    # Any port: another test may have the usual one.
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "dashboard_port": None})
    yield started.address
    started.shutdown()


@pytest.fixture
def done(home, cluster, call_with_ray, monkeypatch) -> Callable[..., str]:
    """Calls a verb in a working directory, on the shared cluster; it has to succeed. Gives what it prints."""
    monkeypatch.setenv("GEBM_STORES", str(home / "stores"))
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.chdir(home)

    def verb(name: str, *words: str) -> str:
        status, printed, errors = call_with_ray(name, *words)
        assert status == 0, printed + errors
        assert "Traceback" not in printed + errors, printed + errors
        return printed

    return verb


@pytest.fixture
def call(call_with_ray, monkeypatch, stores, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Calls a verb that starts no Ray, with the digits' store and in a folder of the test's own."""
    monkeypatch.setenv("GEBM_STORES", str(stores))
    monkeypatch.chdir(tmp_path)

    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray has started")

    monkeypatch.setattr(ray, "init", started)  # a refusal comes before; if it does not, let the test say so
    return call_with_ray


@pytest.fixture
def refused(call) -> Callable[..., str]:
    """Calls a verb that has to refuse with one line and status 2; gives the line."""

    def verb(name: str, *words: str) -> str:
        status, _, printed = call(name, *words)
        assert status == 2, printed
        assert printed.startswith("error: ") and printed.count("\n") == 1 and "Traceback" not in printed, printed
        return printed

    return verb
