"""``python -m pipeline.submit``: run a sweep on a cluster."""

from __future__ import annotations

from typing import Any

from pipeline.config.command import command
from pipeline.config.help import ENVIRONMENT_HELP, SWEEP_EXIT_STATUS_HELP
from pipeline.config.launcher_schema import SUBMISSION, TEXT_KEYS, Submission

__all__ = ["main"]

_CLUSTER_ENVIRONMENT_HELP = """\
RAY_API_SERVER_ADDRESS,     the cluster of launch=ray, where launch.address names none
  RAY_ADDRESS
RAY_AUTH_MODE=token,        for a cluster that asks for a token, and the file with it
  RAY_AUTH_TOKEN_PATH"""


@command(
    "Run a sweep on a cluster: as a job of one that is up (launch=ray), or on one of its own that KubeRay or Slurm\n"
    "brings up. The keys are those of pipeline.sweep, checked before anything is sent; see docs/clusters.md.",
    [
        "python -m pipeline.submit conf=lsun launch=ray launch.address=http://127.0.0.1:8265 \\\n"
        "      output=s3://bucket/sweeps/lsun data.store=s3://bucket/stores/lsun-32",
        "python -m pipeline.submit conf=lsun launch=kuberay launch.image=registry.example.org/gebm launch.nodes=4 \\\n"
        "      output=s3://bucket/sweeps/lsun data.store=s3://bucket/stores/lsun-32    # apply=true for kubectl apply",
        "python -m pipeline.submit conf=lsun launch=slurm launch.nodes=2 launch.partition=gpu  # apply=true for sbatch",
        "python -m pipeline.submit launch=slurm --cfg job --package launch    # every key of a launcher",
    ],
    sections={
        "Environment": f"{ENVIRONMENT_HELP}\n{_CLUSTER_ENVIRONMENT_HELP}",
        "Exit status": f"{SWEEP_EXIT_STATUS_HELP}\n"
        "Under launch=ray it is the job's own, or 1 where its log is lost; launch.follow=false does not wait for it.",
    },
    config_name=SUBMISSION,
    parse=Submission.from_dict,
    more_text_keys=TEXT_KEYS,
)
def main(submission: Submission, overrides: dict[str, Any]) -> int:
    """Send the sweep; what is wrong with it is reported here, and nothing is sent."""
    from pipeline.submit import kuberay, ray_jobs, slurm

    send = {"ray": ray_jobs.send, "kuberay": kuberay.send, "slurm": slurm.send}
    return send[submission.launch.kind](submission, overrides)


if __name__ == "__main__":
    main()
