"""Ray launcher: a sweep as a job of a running Ray cluster, through its job API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.config.launcher_schema import RayJobs, Submission
from pipeline.runtime.errors import UserError, one_line
from pipeline.submit.bundle import JOB, JobBundle, copy_code
from pipeline.submit.reachability import no_shared_fs, shared_fs
from pipeline.sweep.cluster import require_reachable

__all__ = ["follow", "send"]

# In the order in which Ray reads them.
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_FAILURES = (OSError, RuntimeError, ValueError, requests.RequestException)


def send(submission: Submission, overrides: dict[str, Any]) -> int:
    """Send a sweep to the cluster, and print its log.

    Args:
        submission: With :class:`RayJobs`.
        overrides: Keys that the command line names.

    Returns:
        0; the job's own exit status where it failed; 130 after Ctrl-C, which does not stop the job.

    Raises:
        UserError: When the cluster cannot be reached, or cannot reach what the config names.
    """
    settings = submission.launch
    assert isinstance(settings, RayJobs)
    bundle = JobBundle.build(
        submission.config,
        overrides,
        nodes=settings.nodes,
        join_timeout=settings.join_timeout,
        shared=shared_fs if settings.shared else no_shared_fs,
        advice="give {key}=s3://bucket/... or the like, or set launch.shared=true if all its nodes see that path",
    )
    address = settings.address or next(filter(None, map(os.environ.get, _ADDRESS_VARIABLES)), None)
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
        print(_commands(address, bundle.name))
        return 0
    return follow(client, address, bundle.name)


def follow(client: JobSubmissionClient, address: str, name: str) -> int:
    """Print a job's log until the job ends or the user presses Ctrl-C.

    Args:
        client: Client of the cluster's job API.
        address: Address of the job API, for the commands that are printed.
        name: Name of the job.

    Returns:
        0; the job's own exit status where it failed; 130 after Ctrl-C.
    """
    try:
        asyncio.run(_print_log(client, name))
        while not (job := client.get_job_info(name)).status.is_terminal():
            time.sleep(0.5)
    except KeyboardInterrupt:
        print(f"\nthe job keeps running\n{_commands(address, name)}")
        return 130
    except (*_FAILURES, aiohttp.ClientError) as error:
        print(f"the log of {name} is lost ({_reason(error)}), which does not stop the job\n{_commands(address, name)}")
        return 1
    if job.status == JobStatus.SUCCEEDED:
        print(f"job {name} succeeded")
        return 0
    print(f"job {name} {job.status.lower()}: {' '.join(str(job.message or '').split())[:300]}")
    return job.driver_exit_code or 1


async def _print_log(client: JobSubmissionClient, name: str) -> None:
    """Print the lines of a job's log as they arrive."""
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)


def _client(address: str) -> JobSubmissionClient:
    """Connect to a job API; raise ``UserError`` where none answers."""
    # Ray logs every upload.
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        _require_job_api(address)
        with _without_address_variables():
            return JobSubmissionClient(address)
    except _FAILURES as error:
        raise UserError(
            f"no job API of Ray at {address} ({_reason(error)}): start the head with a dashboard, and where it asks "
            f"for a token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None


def _require_job_api(address: str) -> None:
    """Raise where no process listens at an address, which Ray itself would only find after minutes."""
    if "://" not in address:
        # Ray asks the head for the address of the job API.
        require_reachable(address)
    elif not requests.utils.get_environ_proxies(address):
        url = urlsplit(address)
        require_reachable(f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}")


@contextlib.contextmanager
def _without_address_variables() -> Iterator[None]:
    """Unset Ray's address variables, which it prefers to the address that it is given."""
    saved = {name: os.environ.pop(name, None) for name in _ADDRESS_VARIABLES}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in saved.items() if value is not None})


def _reason(error: BaseException) -> str:
    return one_line(error, limit=200)


def _commands(address: str, name: str) -> str:
    """Return the commands that follow, stop and find a job."""
    return "\n".join(
        [
            f"  follow it: ray job logs --follow --address {address} {name}",
            f"  stop it:   ray job stop --address {address} {name}",
            f"  find it:   ray job list --address {address}, or {address.rstrip('/')}/#/jobs/{name}",
        ]
    )
