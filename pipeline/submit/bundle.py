"""Bundle that a launcher sends to a cluster: the code, and the sweep's config, composed and validated."""

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
from pipeline.config.own_choices import DATA_KEYS, RESUME_KEYS, keep_choices, kept_choices
from pipeline.config.plugins import sources
from pipeline.config.sampler_search import check_sampler_search, is_sampler_search
from pipeline.config.validation import validate
from pipeline.runtime.filesystem import require_writable
from pipeline.runtime.redaction import refuse_secrets
from pipeline.submit.reachability import resolve_paths
from pipeline.sweep.points import check_count
from pipeline.sweep.search_space import parse_space

__all__ = ["JOB", "JobBundle", "copy_code", "job_name"]

JOB = "job.yaml"


@dataclass(frozen=True)
class JobBundle:
    """A sweep that is ready to be sent: its config is complete, and the cluster can reach what it names.

    Args:
        name: Name of the job.
        config: The experiment.
        overrides: Keys that the command line names; they override those of a checkpoint or of a resumed sweep.
        nodes: Number of Ray nodes that the sweep waits for, including the head.
        join_timeout: Time to wait for them, in seconds.
    """

    name: str
    config: schema.Config
    overrides: dict[str, Any]
    nodes: int
    join_timeout: float

    @classmethod
    def build(
        cls,
        config: schema.Config,
        overrides: dict[str, Any],
        *,
        nodes: int,
        join_timeout: float,
        shared: Callable[[str], bool],
        advice: str,
    ) -> JobBundle:
        """Validate a sweep as the cluster will, and build its bundle.

        Args:
            config: The experiment; its paths and URLs become absolute.
            overrides: Keys that the command line names.
            nodes: Number of Ray nodes to wait for.
            join_timeout: Time to wait for them, in seconds.
            shared: Predicate of an absolute path: whether all nodes of the cluster see it.
            advice: What to write instead of a path that they do not see.

        Raises:
            UserError: When a key is refused, by a one-line message that names it and its valid values.
        """
        validate(config)
        check_count(config, parse_space(config))
        # A sweep that is resumed was checked when it began, and its folder says what it samples.
        if is_sampler_search(config) and not config.resume:
            check_sampler_search(config)
        overrides = {key: value for key, value in overrides.items() if key != "apply" and not key.startswith("launch.")}
        name = job_name(config.name)
        if not (config.resume or config.output):
            # A folder for each sweep: a job that finds a sweep in its folder resumes that one.
            config.output = str(Path("results", name))
        resolve_paths(config, overrides, shared, advice)
        # What the user has chosen on this machine for a sweep or a model is not known on the cluster.
        kept = kept_choices(config.resume or config.checkpoint or "")
        kept = {key: value for key, value in kept.items() if key in (RESUME_KEYS if config.resume else DATA_KEYS)}
        overrides = {**kept, **overrides} | ({"ray.address": None} if config.resume else {})
        bundle = cls(name, config, overrides, nodes, join_timeout)
        refuse_secrets({**bundle.values(), "plugins": []})
        if config.output and not config.resume and not config.checkpoint:
            keep_choices(config.output, config)
        return bundle

    @property
    def output(self) -> str:
        """Folder of the results, behind any fsspec URL."""
        return str(self.config.resume or self.config.output)

    def values(self) -> dict[str, Any]:
        """Return the bundle as :func:`pipeline.submit.job.run` reads it."""
        return {
            "nodes": self.nodes,
            "join_timeout": self.join_timeout,
            "named": self.overrides,
            "config": schema.to_dict(self.config),
            "plugins": sources(),
        }

    def text(self) -> str:
        """Return :meth:`values` as YAML."""
        return yaml.safe_dump(self.values(), sort_keys=False)

    def folder(self, chosen: str | None) -> Path:
        """Create the folder that a launcher writes to on this machine.

        Args:
            chosen: Folder of the user's choice (default: ``results/launches/<name>``).

        Returns:
            Its absolute path.

        Raises:
            UserError: It cannot be written to.
        """
        folder = Path(chosen).expanduser() if chosen else Path("results") / "launches" / self.name
        folder = folder.absolute()
        require_writable(str(folder), "launch.folder")
        return folder


def job_name(name: str) -> str:
    """Return a name for a job, of the experiment's name and the time, which every scheduler takes.

    Args:
        name: Name of the experiment.

    Example:
        >>> job_name("My_experiment")[:14]
        'my-experiment-'
    """
    letters = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower())
    return f"{letters[:30].strip('-') or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"


def copy_code(folder: Path) -> None:
    """Copy the project's packages, experiments and searches: no results, no environment, no history.

    Args:
        folder: Target, to be an entry of ``PYTHONPATH`` on the cluster.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    packages = [Path(str(package.__file__)).parent for package in (gebm, pipeline)]
    root = schema.config_root()
    # An installed wheel has them inside the package.
    groups = [] if root.parent in packages else [root / "conf", root / "sweeps"]
    for source in (*packages, *groups):
        shutil.copytree(source, folder / source.name, ignore=ignore, dirs_exist_ok=True)
