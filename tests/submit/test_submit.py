"""What is sent to a cluster, and what is refused at home; and a sweep as a job of a real Ray cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ray.autoscaler._private.util import prepare_config, validate_config

import pipeline.submit
from pipeline import config as schema
from pipeline.config.launcher_schema import KubeRay, Slurm, check
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import refuse_secrets
from pipeline.submit.bundle import JobBundle, copy_code
from pipeline.submit.kuberay import manifest
from pipeline.submit.reachability import no_shared_fs
from pipeline.submit.slurm import render_script
from tests.helpers.sweep import TINY

REPOSITORY = Path(__file__).resolve().parents[2]
RAYJOB = Draft202012Validator(yaml.safe_load(Path(__file__).with_name("rayjob.yaml").read_text()))
KUBERAY = ("launch=kuberay", "launch.image=registry.example.org/gebm:1")
AWAY = ("output=s3://bucket/sweep", "data.store=s3://bucket/store")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["launch", "kuberay, ray, slurm"]),
        (["launch=slrum"], ["launch/slrum", "kuberay, ray, slurm"]),
        (["launch=slurm", "launch.image=x"], ["launch.image", "Slurm"]),
        (["launch=slurm", "launch.nodes=two"], ["launch.nodes", "two"]),
        (["launch=slurm", "launch.nodes=0"], ["launch.nodes=0"]),
        (["launch=slurm", "launch.gpus_per_node=-1"], ["launch.gpus_per_node=-1"]),
        (["launch=slurm", "launch.time_limit=soon"], ["launch.time_limit='soon'", "24:00:00"]),
        (["launch=slurm", "'launch.partition=\"gpu; rm\"'"], ["launch.partition"]),
        (["launch=slurm", "train.base_lrr=1"], ["base_lrr"]),
        (["launch=slurm", "sampler.name=nuts"], ["sampler.name=nuts", "ula"]),
        (["launch=slurm", "ray.address=auto"], ["ray.address=auto", "leave it out"]),
        (["launch=slurm", "++sweep.space={train.base_lrr:{choice:[1,2]}}"], ["train.base_lrr"]),
        (["launch=slurm", "tracking.uri=https://me:hush@mlflow.example.org"], ["tracking.uri", "password"]),
        (["launch=kuberay"], ["launch.image"]),
        ([*KUBERAY], ["output=results", "s3://bucket", "launch.volume_claim"]),
        ([*KUBERAY, "output=s3://bucket/sweep"], ["data.store=", "s3://bucket", "launch.volume_claim"]),
        ([*KUBERAY, *AWAY, "launch.namespace=Not_A_Name"], ["launch.namespace"]),
        ([*KUBERAY, *AWAY, "launch.secret=s3"], ["launch.secret_env"]),
        ([*KUBERAY, *AWAY, "+launch.env.AWS_SECRET_ACCESS_KEY=x"], ["AWS_SECRET_ACCESS_KEY", "launch.secret_env"]),
        ([*KUBERAY, *AWAY, "launch.max_nodes=0"], ["launch.max_nodes=0", "launch.nodes=1"]),
        (["launch=ray"], ["output=results", "s3://bucket", "launch.shared=true"]),
        (["launch=ray", "output=memory://x", "launch.shared=true"], ["output=memory://x"]),
        (["launch=ray", "resume=results/old"], ["resume=results/old", "launch.shared=true"]),
        (["launch=ray", *AWAY, "checkpoint=results/old"], ["checkpoint=results/old"]),
        (["launch=ray", *AWAY], ["launch.address", "RAY_API_SERVER_ADDRESS"]),
        (["launch=ray", *AWAY, "launch.address=head:6379"], ["launch.address=head:6379", "http://"]),
        (["launch=ray", *AWAY, "launch.address=http://127.0.0.1:1"], ["no job API", "http://127.0.0.1:1"]),
    ],
)
def test_what_is_refused_before_anything_is_sent(refused, monkeypatch, tmp_path, args, expected):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    line = refused("submit", *(arg.strip("'") for arg in args))
    assert all(part in line for part in expected), line
    assert "hush" not in line
    assert list(tmp_path.iterdir()) == []


def test_without_the_schedulers_command_nothing_but_files_is_made(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "kubectl" in refused("submit", *KUBERAY, *AWAY, "apply=true", "launch.folder=kube")
    assert "sbatch" in refused("submit", "launch=slurm", "apply=true", "launch.folder=slurm")
    assert (tmp_path / "kube" / "rayjob.yaml").exists() and (tmp_path / "slurm" / "sweep.sh").exists()


def bundle(small, **places: str) -> JobBundle:
    config = small(**{"output": "s3://bucket/sweep", "data": {"store": "s3://bucket/store"}, **places})
    return JobBundle.build(config, {}, nodes=2, join_timeout=60.0, shared=no_shared_fs, advice="")


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
VARIABLES = st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True)
SETTINGS = st.builds(
    KubeRay,
    image=st.just("registry.example.org/gebm:1"),
    namespace=st.none() | NAMES,
    service_account=st.none() | NAMES,
    nodes=st.integers(1, 64),
    max_nodes=st.none() | st.integers(64, 128),
    gpus_per_node=st.integers(0, 8),
    cpus_per_node=st.integers(1, 128),
    memory_per_node=st.sampled_from(["1Gi", "500M", "1.5Ti"]),
    node_selector=st.dictionaries(NAMES, NAMES, max_size=2),
    tolerations=st.sampled_from([[], [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]]),
    secret=st.just("credentials"),
    secret_env=st.lists(VARIABLES, min_size=1, max_size=3, unique=True),
    volume_claim=st.none() | NAMES,
    retries=st.integers(0, 5),
)


@given(settings_=SETTINGS)
@settings(deadline=None, max_examples=25)
def test_a_rayjob_is_what_the_published_schema_says(settings_):
    check(settings_)
    config = schema.from_dict(
        {
            "name": "My experiment, of a long name, " * 4,
            "data": {"store": "s3://b/s", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
            "model": {"networks": "dcgan"},
            "output": "s3://b/o",
        }
    )
    packed = JobBundle.build(config, {"seed": 3}, nodes=2, join_timeout=60.0, shared=no_shared_fs, advice="")
    # As kubectl reads them: what does not survive YAML is not in the manifest.
    held, job = yaml.safe_load_all(yaml.safe_dump_all(manifest(packed, settings_)))
    RAYJOB.validate(job)
    assert schema.from_dict(yaml.safe_load(held["data"]["job.yaml"])["config"]) == config
    cluster = job["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster["enableInTreeAutoscaling"] == (group["maxReplicas"] > group["minReplicas"])
    assert cluster["authOptions"] == {"mode": "token"}
    for pod in (cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        [container] = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"configMap": {"name": held["metadata"]["name"]}, "name": "sweep"} in pod["volumes"]
        secret = {entry["name"]: entry["valueFrom"] for entry in container["env"] if "valueFrom" in entry}
        assert set(secret) == set(settings_.secret_env)
        assert all(source["secretKeyRef"]["key"] == name for name, source in secret.items())


def test_the_schema_refuses_what_kubectl_would(small):
    _, job = manifest(bundle(small), KubeRay(image="x"))
    for broken in (
        {**job, "kind": "RayCluster"},
        {**job, "spec": {**job["spec"], "backOffLimit": 1}},
        {**job, "spec": {**job["spec"], "ttlSecondsAfterFinished": "600"}},
    ):
        assert not RAYJOB.is_valid(broken)


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
def test_no_credential_of_the_environment_is_written_anywhere(call, monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, "not-for-everybody")
    for args in ([*KUBERAY, *AWAY], ["launch=slurm"]):
        status, printed, errors = call("submit", *args)
        assert status == 0 and "not-for-everybody" not in printed + errors
        interpolated = f"tracking.experiment=${{oc.env:{variable}}}"
        status, printed, errors = call("submit", *args, interpolated)
        assert status == 2 and "tracking.experiment" in errors and variable in errors
        assert "not-for-everybody" not in printed + errors
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 50  # a copy of the code among them
    assert not [path for path in written if b"not-for-everybody" in path.read_bytes()]


@given(password=st.from_regex(r"[A-Za-z0-9]{1,20}", fullmatch=True), key=st.sampled_from(["output", "tracking"]))
def test_a_url_with_a_password_is_refused_and_not_repeated(password, key):
    with pytest.raises(UserError) as refusal:
        refuse_secrets({"a": {key: [f"s3://me:{password}@bucket/x"]}})
    assert f"a.{key} has " in str(refusal.value) and f":{password}@" not in str(refusal.value)


def test_a_volume_that_all_pods_mount_counts_as_reachable(call, tmp_path):
    args = [*KUBERAY, "launch.volume_claim=shared", "output=/data/sweep", "data.store=/data/stores/digits"]
    status, _, errors = call("submit", *args, "launch.folder=here")
    assert status == 0, errors
    held, job = yaml.safe_load_all((tmp_path / "here" / "rayjob.yaml").read_text())
    assert yaml.safe_load(held["data"]["job.yaml"])["config"]["output"] == "/data/sweep"
    RAYJOB.validate(job)
    status, _, errors = call("submit", *args, "output=/scratch/sweep")
    assert status == 2 and "output=/scratch/sweep" in errors


def test_what_is_sent_is_the_project_without_results_or_history(tmp_path):
    copy_code(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"gebm", "pipeline", "conf", "sweeps"}
    assert not list(tmp_path.rglob("__pycache__"))
    where = [sys.executable, "-c", "import pipeline.config as c; print(*c.experiments(), c.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    printed = subprocess.run(where, cwd="/", env=environment, capture_output=True, text=True, check=True).stdout
    assert "lsun" in printed.split() and str(tmp_path) in printed


@given(
    nodes=st.integers(1, 99),
    gpus=st.integers(0, 8),
    cpus=st.none() | st.integers(1, 64),
    partition=st.none() | NAMES,
    setup=st.lists(st.sampled_from(["module load cuda/13", "source ~/venv/bin/activate", "echo 'it is'"]), max_size=3),
    python=st.sampled_from(["/opt/py thon/bin/python", "/usr/bin/python3", "/a'b/python"]),
)
@settings(deadline=None, max_examples=20)
def test_a_batch_script_is_bash_and_asks_for_what_was_said(nodes, gpus, cpus, partition, setup, python):
    asked = Slurm(nodes=nodes, gpus_per_node=gpus, cpus_per_node=cpus, partition=partition, setup=setup, python=python)
    check(asked)
    config = schema.from_dict(
        {"name": "x", "data": {"store": "s", "source": {"kind": "x"}}, "model": {"networks": "x"}}
    )
    text = render_script(JobBundle("x-1", config, {}, nodes, 60.0), asked, Path("/shared/launch"))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "@" not in text.replace("@]", "").replace("B:TERM@120", "")
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert f"--nodes={nodes}" in lines
    assert (f"--gpus-per-node={gpus}" in lines) == (gpus > 0)
    assert ("--exclusive" in lines) == (cpus is None)
    assert [line for line in lines if "partition" in line] == ([f"--partition={partition}"] if partition else [])
    assert all(f"\n  {line}\n" in text for line in setup)


def test_shellcheck_has_nothing_to_say_of_the_batch_script(small):
    settings_ = Slurm(nodes=2, gpus_per_node=1, setup=["export GREETING='it is'"], python="/opt/py thon/bin/python")
    rendered = render_script(bundle(small), settings_, Path("/shared/launch"))
    template = Path(pipeline.submit.__file__).with_name("slurm_job.sh.in").read_text()
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for text in (template, rendered):
        checked = subprocess.run([shellcheck, "--shell=bash", "-"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_placeholder_in_a_value_stays_text(small):
    text = render_script(bundle(small), Slurm(setup=["echo @FOLDER@"]), Path("/shared/@JOB@"))
    assert "\n  echo @FOLDER@\n" in text and "folder=/shared/@JOB@\n" in text


def test_each_sweep_that_names_no_output_has_a_folder_of_its_own(small):
    """A job resumes the sweep that its folder holds, so that of another would never run."""
    outputs = set()
    for name in ("first", "second"):
        config = small(**{"name": name, "data": {"store": "/shared/store"}})
        config.output = None
        sent = JobBundle.build(config, {}, nodes=1, join_timeout=60.0, shared=lambda path: True, advice="")
        assert Path(sent.output) == Path("results", sent.name).absolute()
        outputs.add(sent.output)
    assert len(outputs) == 2


def test_the_commands_that_are_printed_run_in_a_folder_of_any_name(call, monkeypatch, tmp_path):
    folder = tmp_path / "it's (my) work; really"
    folder.mkdir()
    monkeypatch.chdir(folder)
    status, out, errors = call("submit", *KUBERAY, *AWAY)
    assert status == 0, errors
    written = str(next(folder.glob("results/launches/*/rayjob.yaml")))
    commands = [shlex.split(line.partition(":")[2]) for line in out.splitlines() if " -f " in line]
    assert commands == [["kubectl", verb, "-f", written] for verb in ("apply", "delete")]
    # A script's options are split at blanks, and end at a #.
    monkeypatch.chdir(tmp_path)
    slurm = ("launch=slurm", *AWAY)
    status, out, errors = call("submit", *slurm, "launch.folder=a(1);b")
    [start] = [shlex.split(line.partition(":")[2]) for line in out.splitlines() if "start it" in line]
    assert (status, start) == (0, ["sbatch", str(tmp_path / "a(1);b" / "sweep.sh")]), errors
    status, _, errors = call("submit", *slurm, "launch.folder=a#b")
    assert status == 2 and "launch.folder=" in errors and "#" in errors
    monkeypatch.chdir(folder)
    status, _, errors = call("submit", *slurm, f"launch.folder={tmp_path / 'plain'}")
    assert status == 2 and "working directory" in errors and errors.count("\n") == 1


def test_the_autoscalers_file_is_what_ray_takes():
    file = Path(pipeline.submit.__file__).with_name("ray_cluster_aws.yaml")
    config = yaml.safe_load(file.read_text())
    validate_config(prepare_config(config))
    spot = config["available_node_types"]["spot"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and spot["max_workers"] > 1
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token" in line for line in config[commands])


@pytest.fixture
def head(tmp_path, monkeypatch):
    """The address of the job API of a Ray cluster of this machine, which asks for a token."""
    token = tmp_path / "token"
    token.write_text("a-token-of-the-tests-own")
    token.chmod(0o600)
    folder = Path("/tmp") / f"gebm-test-{os.getpid()}"  # a socket's path has 107 characters at most
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    start = [
        *[sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", "--num-cpus=3"],
        *["--dashboard-port=0", "--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"],
        *[f"--temp-dir={folder}", "--disable-usage-stats"],
    ]
    environment = {**os.environ, "GEBM_STORES": str(tmp_path / "stores"), "PATH": _path()}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # no client is connected here
    with subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ray:
        try:
            found = None
            while found is None:
                line = ray.stdout.readline()
                assert line, "Ray did not start"
                found = re.search(r"http://127\.0\.0\.1:\d+|(?<=view the dashboard at )[\d.]+:\d+", line)
            yield found[0] if "://" in found[0] else f"http://{found[0]}"
        finally:
            ray.terminate()
            ray.communicate(timeout=60)
            subprocess.run(["rm", "-rf", str(folder)], check=True)


def _path() -> str:
    """The job asks for `python`, which is that of the environment the tests run in."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def submitted(home: Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.submit", "launch=ray", "launch.shared=true", *args],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GEBM_STORES": str(home / "stores")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(400)
def test_a_job_of_a_ray_cluster_outlives_whoever_follows_it(head, tmp_path):
    """Followed for a while, left alone by Ctrl-C, found again by what was printed, and done in the end."""
    args = [*TINY, f"output={tmp_path / 'swept'}", f"launch.address={head}"]
    first = submitted(tmp_path, *args)
    for line in first.stdout:
        if "of Ray are up" in line:  # of the job's log
            break
    first.send_signal(signal.SIGINT)
    printed, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "the job keeps running" in printed, printed
    [follow] = re.findall(r"ray job logs --follow (.*)", printed)
    assert "ray job stop" in printed and "ray job list" in printed
    followed = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "logs", "--follow", *follow.split()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    log = followed.stdout + followed.stderr
    assert "Trials, best first" in log and "a-token-of-the-tests-own" not in log, log
    summary = json.loads((tmp_path / "swept" / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["finished"]
    # The same output once more: the job finds nothing left to do, and its end is this command's end.
    again = submitted(tmp_path, *args)
    printed, _ = again.communicate(timeout=200)
    assert again.returncode == 0, printed
    assert "resuming the sweep in" in printed and "succeeded" in printed
