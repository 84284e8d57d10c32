"""A sweep as a batch job of Slurm, which brings up a Ray cluster of its own on the nodes it is given."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from pipeline.config.launchers import Slurm, Submission
from pipeline.runtime.errors import UserError
from pipeline.submit.bundle import JOB, JobBundle, copy_code, job_name
from pipeline.submit.reachability import shared_fs

__all__ = ["script", "send"]


def send(submission: Submission, named: dict[str, object]) -> int:
    """Write the script with all that it needs, and with ``apply`` hand it to ``sbatch``.

    Args:
        submission: with :class:`Slurm`.
        named: keys that the command line names.

    Raises:
        UserError: something the user can mend, ``sbatch``'s refusal among it.
    """
    settings, config = submission.launch, submission.config
    assert isinstance(settings, Slurm)
    config.output = config.output or str(Path("results", job_name(config.name)))
    bundle = JobBundle.build(
        config, named, nodes=settings.nodes, join_timeout=settings.join_timeout, shared=shared_fs, advice=""
    )
    folder = bundle.folder(settings.folder)
    copy_code(folder / "code")
    (folder / JOB).write_text(bundle.text())
    path = folder / "sweep.sh"
    path.write_text(script(bundle, settings, folder))
    print(f"script: {path}\nits results come to {bundle.output}")
    if not submission.apply:
        print(f"  start it: sbatch {path}")
        return 0
    number = _sbatch(path)
    print(
        f"job {number} is with Slurm\n"
        f"  follow it: tail -F {folder}/slurm-{number}.log\n"
        f"  find it:   squeue --job {number}, or afterwards sacct --jobs {number}\n"
        f"  stop it:   scancel --full {number}"
    )
    return 0


def _sbatch(path: Path) -> str:
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("apply=true needs sbatch on the PATH; without it, the script is written only") from None
    if done.returncode:
        raise UserError(f"`sbatch {path}` failed: {' '.join(done.stderr.split())[:300]}")
    return done.stdout.strip().partition(";")[0]


def script(bundle: JobBundle, settings: Slurm, folder: Path) -> str:
    """The batch script.

    Args:
        bundle: the sweep.
        settings: what to ask Slurm for.
        folder: holds the code and the config, and takes the log; on a file system that all nodes see.

    Raises:
        UserError: Slurm cannot take the folder's name.
    """
    if re.search(r"[\s%'\"\\]", str(folder)):
        raise UserError(f"launch.folder={folder}: a batch script's log cannot have blanks, quotes or % in its path")
    asked = {
        "job-name": bundle.name,
        "nodes": str(settings.nodes),
        "ntasks-per-node": "1",
        "time": settings.time_limit,
        "partition": settings.partition,
        "account": settings.account,
        "mem": settings.memory_per_node,
        "cpus-per-task": settings.cpus_per_node and str(settings.cpus_per_node),
        "gpus-per-node": str(settings.gpus_per_node) if settings.gpus_per_node else None,
        "chdir": str(Path.cwd()),
        "output": f"{folder}/slurm-%j.log",
        "open-mode": "append",
        "signal": "B:TERM@120",
    }
    options = [f"--{key}={value}" for key, value in asked.items() if value is not None]
    options += ["--requeue", *([] if settings.cpus_per_node else ["--exclusive"]), *settings.options]
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        folder=shlex.quote(str(folder)),
        python=shlex.quote(settings.python or sys.executable),
        setup="\n".join(f"  {line}" for line in ["set +u", *settings.setup, "set -u"]),
        gpus=settings.gpus_per_node,
        job=JOB,
    )


# Ports are whichever are free, since two jobs may share a node, and so may two nodes a machine. The token is made on
# the first node, and lies in a file that nobody else may read for as long as the job runs.
_SCRIPT = """#!/bin/bash
{options}
set -euo pipefail

folder={folder}
export GEBM_PYTHON={python} GEBM_GPUS={gpus} GEBM_ADDRESS="$folder/address-$SLURM_JOB_ID"
export PYTHONPATH="$folder/code" PYTHONUNBUFFERED=1
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token-$SLURM_JOB_ID"
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 RAY_DASHBOARD_STARTUP_TIMEOUT_S=300

setup() {{
{setup}
}}

# Ray on one node, until it is told to end. Workers wait for the head to say where it is.
ray_node() {{
  set -euo pipefail
  setup
  temporary="/tmp/gebm-$SLURM_JOB_ID-$SLURMD_NODENAME"
  rm -rf "$temporary" # of a job that was requeued after its node died, or of another Slurm's same number
  where=(--head --port=0 --dashboard-port=0 --disable-usage-stats)
  if [ "$1" = worker ]; then
    until [ -s "$GEBM_ADDRESS" ]; do sleep 0.5; done
    export RAY_ADDRESS="$(cat "$GEBM_ADDRESS")"
    where=(--address="$RAY_ADDRESS")
  fi
  (
    trap '' USR1 # meant for this shell, and sent to all that it has started
    exec "$GEBM_PYTHON" -m ray.scripts.scripts start --block "${{where[@]}}" --temp-dir="$temporary" \\
      --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="$GEBM_GPUS" --min-worker-port=0 --max-worker-port=0 \\
      --dashboard-agent-listen-port=0 >/dev/null
  ) &
  ray=$!
  trap 'set +e; trap "" TERM INT USR1; kill "$ray" 2>/dev/null; wait "$ray"; rm -rf "$temporary"' EXIT
  trap 'exit 143' TERM INT USR1
  if [ "$1" = head ]; then
    until [ -s "$temporary/ray_current_cluster" ]; do kill -0 "$ray"; sleep 0.5; done
    cp "$temporary/ray_current_cluster" "$GEBM_ADDRESS.part" && mv "$GEBM_ADDRESS.part" "$GEBM_ADDRESS"
  fi
  wait "$ray"
}}
export -f setup ray_node

head='' workers='' driver=''
take_down() {{
  set +e
  trap '' TERM INT
  kill $driver $head 2>/dev/null
  kill -USR1 $workers 2>/dev/null # of srun, which hands this signal on, and at others kills
  wait
  rm -f "$RAY_AUTH_TOKEN_PATH" "$GEBM_ADDRESS" "$GEBM_ADDRESS.part"
}}
trap take_down EXIT
# Slurm warns before the time is up: the sweep stops as at Ctrl-C, and can go on.
trap 'trap "" TERM INT; [ -n "$driver" ] || exit 143; kill -INT "$driver"; wait "$driver"; exit $?' TERM INT

rm -f "$RAY_AUTH_TOKEN_PATH" "$GEBM_ADDRESS"
setup
(umask 077 && "$GEBM_PYTHON" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
bash -c 'ray_node head' &
head=$!
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \\
    ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} bash -c 'ray_node worker' &
  workers=$!
fi
until [ -s "$GEBM_ADDRESS" ]; do kill -0 "$head"; sleep 0.5; done
export RAY_ADDRESS="$(cat "$GEBM_ADDRESS")"
"$GEBM_PYTHON" -m pipeline.submit.job "$folder/{job}" &
driver=$!
wait -n "$driver" "$head" # whichever ends first: without a head there is nothing to wait for
"""
