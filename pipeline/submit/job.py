"""Entry point on the cluster: ``python -m pipeline.submit.job <file>``, which every launcher runs.

The file is a :class:`~pipeline.submit.bundle.JobBundle`. A job that is started again, after its node was lost, resumes
the sweep where it stopped.
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
from pipeline.config.command import report_error
from pipeline.config.own_choices import RESUME_KEYS, own_choices
from pipeline.config.plugins import install
from pipeline.runtime.errors import LockLost, UserError
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.standard_streams import drop_unwritable_output
from pipeline.sweep import driver

__all__ = ["main", "run", "wait_for_nodes"]


def wait_for_nodes(address: str, nodes: int, timeout: float) -> None:
    """Wait until a number of nodes of a Ray cluster are up.

    Args:
        address: Address of the cluster, as ``ray.init`` takes it.
        nodes: Number of nodes, including the head.
        timeout: Time limit in seconds.

    Raises:
        UserError: When they are not up in time.
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
    """Run a sweep that was sent, or resume it.

    Args:
        values: Those of :meth:`pipeline.submit.bundle.JobBundle.values`.

    Returns:
        The exit status of ``pipeline.sweep``.

    Raises:
        UserError: When the config is refused, or the cluster is not up in time.
    """
    install(values.get("plugins", []))
    config, overrides = schema.from_dict(values["config"]), values["named"]
    wait_for_nodes(os.environ.get("RAY_ADDRESS", "auto"), values["nodes"], values["join_timeout"])
    if config.resume is None and _holds_sweep(str(config.output)):
        print(f"resuming the sweep in {config.output}", flush=True)
        config.resume = config.output
        # The sweep is that of this file, and so are its choices; a model to start from has brought the data's.
        mine = ("tracking.uri", "checkpoint") if config.checkpoint else RESUME_KEYS
        overrides = {key: value for key, value in own_choices(config).items() if key in mine} | overrides
    return driver.exit_status(config, overrides, command="sweep")


def _holds_sweep(output: str) -> bool:
    files, path = filesystem(output)
    return files.exists(f"{path}/summary.json")


def main() -> int:
    """Run the sweep that the file describes, and return the exit status of ``pipeline.sweep``."""
    drop_unwritable_output()
    # A shell lets its background processes ignore SIGINT, which is what the batch script stops the sweep with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(yaml.safe_load(Path(sys.argv[1]).read_text()))
    except (UserError, LockLost, KeyboardInterrupt) as error:
        return report_error(error)


if __name__ == "__main__":
    sys.exit(main())
