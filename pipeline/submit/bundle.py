"""What is sent: the project as it is, and a sweep's config as it was composed and checked at home."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import gebm
import pipeline
from pipeline import config as schema
from pipeline.config.validation import validate
from pipeline.runtime.redaction import refuse_secrets
from pipeline.submit.reachability import resolve_paths
from pipeline.sweep import space

__all__ = ["JOB", "JobBundle", "copy_code", "job_name"]

JOB = "job.yaml"


@dataclass(frozen=True)
class JobBundle:
    """A sweep that is ready to be sent: its config is whole, and the cluster can reach what it names.

    Args:
        name: of the job.
        config: the experiment.
        named: keys that the command line names, which hold above those of a checkpoint or of a sweep that is resumed.
        nodes: Ray nodes that the sweep waits for before it begins, the head among them.
        join_timeout: seconds that it waits for them.
    """

    name: str
    config: schema.Config
    named: dict[str, Any]
    nodes: int
    join_timeout: float

    @classmethod
    def build(
        cls,
        config: schema.Config,
        named: dict[str, Any],
        *,
        nodes: int,
        join_timeout: float,
        shared: Callable[[str], bool],
        advice: str,
    ) -> JobBundle:
        """Check a sweep as it would be at the other end, and make it ready.

        Args:
            config: the experiment.
            named: keys that the command line names.
            nodes: Ray nodes to wait for.
            join_timeout: seconds.
            shared: of an absolute path, whether all nodes of the cluster see it.
            advice: what to write instead of a path that they do not see.

        Raises:
            UserError: one line that names the key and what it may be.
        """
        validate(config)
        space.parse_space(config)
        named = {key: value for key, value in named.items() if key != "apply" and not key.startswith("launch.")}
        resolve_paths(config, named, shared, advice)
        bundle = cls(job_name(config.name), config, named, nodes, join_timeout)
        refuse_secrets(bundle.values())
        return bundle

    @property
    def output(self) -> str:
        """Where the results will be."""
        return str(self.config.resume or self.config.output)

    def values(self) -> dict[str, Any]:
        """What :mod:`pipeline.submit.job` reads."""
        return {
            "nodes": self.nodes,
            "join_timeout": self.join_timeout,
            "named": self.named,
            "config": schema.to_dict(self.config),
        }

    def text(self) -> str:
        """The same as YAML."""
        return yaml.safe_dump(self.values(), sort_keys=False)

    def folder(self, chosen: str | None) -> Path:
        """A new folder for what is written here.

        Args:
            chosen: by the user; by default ``results/launches/<name>``.
        """
        folder = Path(chosen).expanduser() if chosen else Path("results") / "launches" / self.name
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def job_name(name: str) -> str:
    """A name for a job: the experiment's and the time, in as few letters as every scheduler takes.

    Args:
        name: of the experiment.

    Example:
        >>> job_name("My_experiment")[:14]
        'my-experiment-'
    """
    letters = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower())
    return f"{letters[:30].strip('-') or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"


def copy_code(folder: Path) -> None:
    """Copy the project's packages, experiments and searches: no results, no environment, no history.

    Args:
        folder: where to; made to be an entry of ``PYTHONPATH``.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    packages = [Path(str(package.__file__)).parent for package in (gebm, pipeline)]
    root = schema.config_root()
    groups = (
        [] if root.parent in packages else [root / "conf", root / "sweeps"]
    )  # in an installed wheel they are inside
    for source in (*packages, *groups):
        shutil.copytree(source, folder / source.name, ignore=ignore, dirs_exist_ok=True)
