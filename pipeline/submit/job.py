"""``python -m pipeline.submit.job <file>``: what a launcher runs on the cluster.

The file is a :class:`~pipeline.submit.bundle.JobBundle`. Started once more, after its machine was taken away, the job
goes on where it stopped.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray
import yaml

from pipeline import config as schema
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.redaction import redact
from pipeline.sweep import driver

__all__ = ["main", "run", "wait_for_nodes"]


def wait_for_nodes(address: str, nodes: int, timeout: float) -> None:
    """Wait until so many nodes of a Ray cluster are up.

    Args:
        address: of the cluster, as ``ray.init`` takes it.
        nodes: how many, the head among them.
        timeout: seconds.

    Raises:
        UserError: they were not up in time.
    """
    end = time.monotonic() + timeout
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        while (up := sum(node["Alive"] for node in ray.nodes())) < nodes:
            if time.monotonic() > end:
                raise UserError(
                    f"{up} of {nodes} nodes are up after {timeout:.0f} s: see the log of those that are missing, or "
                    f"give them longer with launch.join_timeout"
                )
            time.sleep(1.0)
    finally:
        ray.shutdown()
    print(f"{up} node(s) of Ray are up", flush=True)


def run(values: dict[str, Any]) -> int:
    """Run a sweep that was sent, or go on with it.

    Args:
        values: of :meth:`pipeline.submit.bundle.JobBundle.values`.

    Returns:
        The exit status, as of ``pipeline.sweep``.

    Raises:
        UserError: something the user can mend.
    """
    config, named = schema.from_dict(values["config"]), values["named"]
    wait_for_nodes(os.environ.get("RAY_ADDRESS", "auto"), values["nodes"], values["join_timeout"])
    if config.resume is None and _begun(str(config.output)):
        print(f"going on with what {config.output} holds", flush=True)
        config.resume = config.output
    return driver.exit_status(config, named, command="sweep")


def _begun(output: str) -> bool:
    files, path = filesystem(output)
    return files.exists(f"{path}/summary.json")


def main() -> int:
    """Run what the file says; its exit status is that of ``pipeline.sweep``."""
    # A shell takes Ctrl-C away from what it runs in the background, and it is what a batch script asks to stop with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(yaml.safe_load(Path(sys.argv[1]).read_text()))
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
