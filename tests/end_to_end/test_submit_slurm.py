"""A sweep through a real Slurm: two nodes, both of them this machine, with daemons and a configuration of their own."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.sweep import TINY

REPOSITORY = Path(__file__).resolve().parents[2]

DAEMONS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
PROGRAMS = {name: shutil.which(name, path=DAEMONS) for name in ("munged", "slurmctld", "slurmd", "sbatch", "scancel")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install slurmctld slurmd slurm-client munge"
)

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=30
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=tests Nodes=ALL Default=YES State=UP MaxTime=60
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which `sbatch` finds a cluster of two nodes."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "state").mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            ports=free_ports(3),
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
        )
    )
    environment = {**os.environ, "PATH": DAEMONS, "SLURM_CONF": str(configuration)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    munge = [
        *["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"],
        *[f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"],
    ]
    commands = [
        [PROGRAMS["munged"], *munge],
        [PROGRAMS["slurmctld"], "-D", "-f", str(configuration)],
        *([PROGRAMS["slurmd"], "-D", "-N", node, "-f", str(configuration)] for node in ("node1", "node2")),
    ]
    daemons = []
    with open(folder / "daemons.log", "w") as log:
        try:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                if command[0] == PROGRAMS["munged"]:
                    wait(lambda: (folder / "munge.socket").exists(), 30, lambda: (folder / "daemons.log").read_text())
            ready = ["sinfo", "--noheader", "--Node", "--format=%T"]
            wait(
                lambda: (
                    subprocess.run(ready, env=environment, capture_output=True, text=True).stdout.split()
                    == ["idle"] * 2
                ),
                60,
                lambda: (folder / "daemons.log").read_text(),
            )
            yield environment
        finally:
            # A daemon that ends leaves its jobs running.
            subprocess.run([PROGRAMS["scancel"], "--full", "--partition=tests"], env=environment, check=False)
            jobs = ["squeue", "--noheader"]
            with contextlib.suppress(AssertionError):
                wait(lambda: not subprocess.run(jobs, env=environment, capture_output=True).stdout, 90, str)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(timeout=60)


def wait(reached, seconds: float, describe) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, describe()
        time.sleep(0.2)


def submitted(slurm: dict[str, str], home: Path, *words: str) -> tuple[str, Path, str]:
    """The job's number, its log, and what the command printed."""
    settings = ["launch.nodes=2", "launch.gpus_per_node=0", "launch.cpus_per_node=2", "launch.time_limit=15"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.submit", "launch=slurm", *settings, "apply=true", *TINY, *words],
        cwd=home,
        env={**slurm, "PYTHONPATH": str(REPOSITORY), "GEBM_STORES": str(home / "stores")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [number] = re.findall(r"job (\d+) is with Slurm", done.stdout)
    [log] = re.findall(r"tail -F (\S+)", done.stdout)
    return number, Path(log), done.stdout


def state(slurm: dict[str, str], number: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", number], env=slurm, capture_output=True, text=True, check=True)
    return re.search(r"JobState=(\w+)", shown.stdout)[1]


def text(log: Path) -> str:
    return log.read_text() if log.exists() else "no log"


def traces(number: str) -> list[str]:
    """Processes and folders of a job."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    mine = f"/tmp/gebm-{number}-node"
    processes = [line.decode() for line in lines if mine.encode() in line]
    return processes + [str(path) for path in Path("/tmp").glob(f"gebm-{number}-node*")]


@pytest.mark.timeout(500)
def test_a_sweep_on_two_nodes_runs_to_its_end_and_leaves_nothing_running(slurm, tmp_path):
    # Neither of the nodes' two CPUs has room for three workers: they have to find each other.
    words = ["scale.num_workers=3", "train.batch_size=48", f"output={tmp_path / 'swept'}", "launch.folder=launch"]
    # A node that died leaves where its Ray was, and a job that is requeued has the same number.
    stale = Path("/tmp/gebm-1-node1")
    stale.mkdir(exist_ok=True)
    (stale / "ray_current_cluster").write_text("127.0.0.1:1")
    number, log, printed = submitted(slurm, tmp_path, *words)
    assert stale.name == f"gebm-{number}-node1"
    assert f"scancel --full {number}" in printed and f"squeue --job {number}" in printed
    token = tmp_path / "launch" / f"token-{number}"
    wait(lambda: token.exists() and token.stat().st_size > 0, 120, lambda: text(log))
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    hidden = token.read_text()
    wait(lambda: state(slurm, number) not in ("PENDING", "RUNNING", "COMPLETING"), 400, lambda: text(log))
    assert state(slurm, number) == "COMPLETED", text(log)
    assert "2 node(s) of Ray are up" in text(log) and "Trials, best first" in text(log)
    summary = json.loads((tmp_path / "swept" / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["finished"]
    assert traces(number) == [] and not token.exists()
    assert len(hidden) == 64
    for path in (tmp_path / "launch").rglob("*"):
        assert not path.is_file() or hidden.encode() not in path.read_bytes(), path


@pytest.mark.timeout(300)
def test_a_job_that_is_cancelled_takes_everything_down(slurm, tmp_path):
    number, log, _ = submitted(slurm, tmp_path, "launch.folder=launch")
    wait(lambda: (tmp_path / "launch" / f"address-{number}").exists(), 120, lambda: text(log))
    assert traces(number)
    subprocess.run(["scancel", "--full", number], env=slurm, check=True)
    wait(lambda: state(slurm, number) == "CANCELLED", 60, lambda: text(log))
    wait(lambda: traces(number) == [], 120, lambda: f"{traces(number)} {text(log)}")
    kept = {"code", "job.yaml", "sweep.sh", log.name}
    # The script removes its own files after its processes have ended.
    wait(lambda: {path.name for path in (tmp_path / "launch").iterdir()} == kept, 30, lambda: text(log))
