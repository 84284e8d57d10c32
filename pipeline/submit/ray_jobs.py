"""A sweep as a job of a Ray cluster that is up already."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.config.launchers import RayJobs, Submission
from pipeline.runtime.errors import UserError, one_line
from pipeline.submit.bundle import JOB, JobBundle, copy_code
from pipeline.submit.reachability import no_shared_fs, shared_fs
from pipeline.sweep.cluster import require_reachable

__all__ = ["follow", "send"]

_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in the order that Ray has
_FAILURES = (OSError, RuntimeError, ValueError, requests.RequestException)


def send(submission: Submission, named: dict[str, object]) -> int:
    """Send a sweep to the cluster, and print its log.

    Args:
        submission: with :class:`RayJobs`.
        named: keys that the command line names.

    Returns:
        0; the job's own exit status where it failed; 130 after Ctrl-C, which leaves the job alone.

    Raises:
        UserError: the cluster cannot be reached, or cannot reach what the config names.
    """
    settings = submission.launch
    assert isinstance(settings, RayJobs)
    bundle = JobBundle.build(
        submission.config,
        named,
        nodes=settings.nodes,
        join_timeout=settings.join_timeout,
        shared=shared_fs if settings.shared else no_shared_fs,
        advice="give {key}=s3://bucket/... or the like, or say launch.shared=true if all its nodes see that path",
    )
    address = settings.address or next(filter(None, map(os.environ.get, _ADDRESSES)), None)
    if address is None:
        raise UserError(
            "which cluster? Give launch.address=http://<head>:8265, or set RAY_API_SERVER_ADDRESS; "
            "`ray dashboard cluster.yaml` or `kubectl port-forward` brings a far one to http://127.0.0.1:8265"
        )
    client = _client(address)
    with tempfile.TemporaryDirectory() as folder:
        copy_code(Path(folder))
        Path(folder, JOB).write_text(bundle.text())
        try:
            client.submit_job(
                entrypoint=f"python -m pipeline.submit.job {JOB}",
                submission_id=bundle.name,
                runtime_env={"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1", **settings.env}},
                metadata={"output": bundle.output},
            )
        except _FAILURES as error:
            raise UserError(f"{address} does not take the job ({_reason(error)})") from None
    print(f"job {bundle.name} is with {address}; its results come to {bundle.output}", flush=True)
    if not bundle.config.tracking.uri:
        print("note: without tracking.uri=... MLflow's runs stay on the cluster's head, in the job's own folder")
    if not settings.follow:
        print(_ways(address, bundle.name))
        return 0
    return follow(client, address, bundle.name)


def follow(client: JobSubmissionClient, address: str, name: str) -> int:
    """Print a job's log until the job ends or the user has seen enough.

    Args:
        client: of the cluster.
        address: of its job API, for the commands that are printed.
        name: of the job.

    Returns:
        0; the job's own exit status where it failed; 130 after Ctrl-C.
    """
    try:
        asyncio.run(_print_log(client, name))
        while not (job := client.get_job_info(name)).status.is_terminal():
            time.sleep(0.5)
    except KeyboardInterrupt:
        print(f"\nthe job goes on\n{_ways(address, name)}")
        return 130
    except (*_FAILURES, aiohttp.ClientError) as error:
        print(f"the log of {name} is lost ({_reason(error)}), which does not stop the job\n{_ways(address, name)}")
        return 1
    if job.status == JobStatus.SUCCEEDED:
        print(f"job {name} succeeded")
        return 0
    print(f"job {name} {job.status.lower()}: {' '.join(str(job.message or '').split())[:300]}")
    return job.driver_exit_code or 1


async def _print_log(client: JobSubmissionClient, name: str) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)


def _client(address: str) -> JobSubmissionClient:
    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of each upload
    try:
        _knock(address)
        with _alone(address):
            return JobSubmissionClient(address)
    except _FAILURES as error:
        raise UserError(
            f"no job API of Ray at {address} ({_reason(error)}): start the head with a dashboard, and where it asks "
            f"for a token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None


def _knock(address: str) -> None:
    if "://" not in address:
        require_reachable(address)  # Ray asks there where the job API is
    elif not requests.utils.get_environ_proxies(address):
        url = urlsplit(address)
        require_reachable(f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}")


@contextlib.contextmanager
def _alone(address: str) -> Iterator[None]:
    """Ray lets its environment variables win over an address that is given to it; here the key wins."""
    kept = {name: os.environ.pop(name, None) for name in _ADDRESSES}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in kept.items() if value is not None})


def _reason(error: BaseException) -> str:
    return one_line(error, limit=200)


def _ways(address: str, name: str) -> str:
    return "\n".join(
        [
            f"  follow it: ray job logs --follow --address {address} {name}",
            f"  stop it:   ray job stop --address {address} {name}",
            f"  find it:   ray job list --address {address}, or {address.rstrip('/')}/#/jobs/{name}",
        ]
    )
