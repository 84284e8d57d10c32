"""The keys of each launcher, and what has to hold of them.

``launch`` is a Hydra config group of typed options: ``launch=slurm`` brings the keys of :class:`Slurm` and no others,
so that ``launch.image`` is refused there by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from pipeline.config import compose, schema
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import is_secret_name

__all__ = ["SUBMISSION", "KubeRay", "RayJobs", "Slurm", "Submission", "check"]

SUBMISSION = "gebm-submission"

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_KUBERNETES_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_QUANTITY = r"[0-9]+(\.[0-9]+)?([EPTGMK]i|[EPTGMk])?"


@dataclass
class RayJobs:
    """A Ray cluster that is up already, by its job API. Its nodes have what ``constraints.txt`` names installed."""

    kind: str = "ray"
    # Of the job API, such as http://127.0.0.1:8265; by default what RAY_API_SERVER_ADDRESS or RAY_ADDRESS says.
    address: str | None = None
    follow: bool = True  # print the job's log until its end; Ctrl-C stops the printing and nothing else
    shared: bool = False  # output and data.store are paths of a file system that all nodes of the cluster see
    nodes: int = 1  # the sweep begins once so many nodes are up, the head among them
    join_timeout: float = 600.0  # seconds that it waits for them
    env: dict[str, str] = field(default_factory=dict)  # variables of the job (+launch.env.NAME=value); no credentials


@dataclass
class KubeRay:
    """A Ray cluster of the sweep's own on Kubernetes, by a RayJob of the KubeRay operator (1.5.1 or later)."""

    kind: str = "kuberay"
    image: str = MISSING  # what the project's Dockerfile builds, where the cluster can pull it
    namespace: str | None = None  # by default that of kubectl's context
    service_account: str | None = None  # of the pods: how a cloud gives them a role
    nodes: int = 1  # worker pods
    max_nodes: int | None = None  # with more than `nodes`, Ray's autoscaler adds workers where trials wait for them
    gpus_per_node: int = 1
    cpus_per_node: int = 8
    memory_per_node: str = "32Gi"
    head_cpus: int = 2
    head_memory: str = "8Gi"
    node_selector: dict[str, str] = field(default_factory=dict)  # of the worker pods
    tolerations: list[Any] = field(default_factory=list)  # of the worker pods, as Kubernetes writes them
    env: dict[str, str] = field(default_factory=dict)  # variables of the pods (+launch.env.NAME=value); no credentials
    secret: str | None = None  # a Secret of the namespace ...
    secret_env: list[str] = field(default_factory=list)  # ... and which of its keys become variables of that name
    volume_claim: str | None = None  # a PersistentVolumeClaim that all pods may write at once ...
    mount_path: str = "/data"  # ... and where they see it
    retries: int = 1  # new clusters after the first has failed; each goes on where the last one stopped
    keep_seconds: int = 600  # that pods stay after the end, for their logs
    join_timeout: float = 1800.0  # seconds that the sweep waits for the worker pods
    folder: str | None = None  # where the manifest is written; by default results/launches/<name>-<time>


@dataclass
class Slurm:
    """A Ray cluster of the sweep's own on nodes that Slurm allocates. Its folders lie on a shared file system."""

    kind: str = "slurm"
    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_node: int | None = None  # by default whole nodes, with all that they have
    memory_per_node: str | None = None  # as --mem takes it, such as 64G
    partition: str | None = None
    account: str | None = None
    time_limit: str = "24:00:00"  # as --time takes it
    options: list[str] = field(default_factory=list)  # more options of sbatch, such as --constraint=a100
    setup: list[str] = field(default_factory=list)  # lines of bash that each node begins with: module load cuda
    python: str | None = None  # the interpreter, at a path that all nodes see; by default the one that submits
    join_timeout: float = 600.0  # seconds that the sweep waits until Ray is up on all nodes
    folder: str | None = None  # of script, code and log; by default results/launches/<name>-<time>


Settings = RayJobs | KubeRay | Slurm
_LAUNCHERS: dict[str, type[Settings]] = {"ray": RayJobs, "kuberay": KubeRay, "slurm": Slurm}


@dataclass
class _Primary(schema.Primary):
    """A sweep's config, where it runs, and whether what has been written is handed over as well."""

    launch: Any = MISSING
    apply: bool = False
    defaults: list[Any] = field(
        default_factory=lambda: [
            "_self_",
            {"conf": "digits"},
            {"sweeps": "asha"},
            {"launch": MISSING},
            {"override hydra/job_logging": "none"},
            {"override hydra/hydra_logging": "none"},
        ]
    )


ConfigStore.instance().store(name=SUBMISSION, node=_Primary)
for _name, _node in _LAUNCHERS.items():
    ConfigStore.instance().store(group="launch", name=_name, node=_node)


@dataclass
class Submission:
    """A sweep's config, where it runs, and whether what has been written is handed over as well."""

    config: schema.Config
    launch: Settings
    apply: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Submission:
        """A submission from what Hydra composed.

        Args:
            values: an experiment's keys, with ``launch`` and ``apply``.

        Raises:
            UserError: a key is missing, or what it says cannot be.

        Example:
            >>> experiment = {"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
            ...     "model": {"networks": "dcgan"}}
            >>> Submission.from_dict({**experiment, "launch": {"kind": "slurm", "nodes": 0}})
            Traceback (most recent call last):
            ...
            pipeline.runtime.errors.UserError: launch.nodes=0: it has to be positive
        """
        experiment = {key: value for key, value in values.items() if key not in ("launch", "apply")}
        launch = values["launch"]
        typed = OmegaConf.merge(OmegaConf.structured(_LAUNCHERS[launch["kind"]]), launch)
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise UserError(f"launch={launch['kind']} needs launch.{missing[0]}=...; see docs/clusters.md")
        settings = OmegaConf.to_object(typed)
        check(settings)
        return cls(compose.from_dict(experiment), settings, bool(values["apply"]) if "apply" in values else False)


def check(settings: Settings) -> None:
    """Refuse settings that a scheduler would refuse later, or read as something else.

    Args:
        settings: of a launcher.

    Raises:
        UserError: one line that names the key.

    Example:
        >>> check(KubeRay(image="registry/gebm:1", env={"AWS_SECRET_ACCESS_KEY": "x"}))
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: launch.env names AWS_SECRET_ACCESS_KEY, and others can read what is written \
there: \
put it into a Secret and name it by launch.secret and launch.secret_env
    """
    for key, least in _LEAST.items():
        value = getattr(settings, key, None)
        if value is not None and not value >= least:
            raise UserError(f"launch.{key}={value}: it {'has to be positive' if least else 'cannot be negative'}")
    for key, pattern in _PATTERNS[settings.kind].items():
        value = getattr(settings, key)
        for word in value if isinstance(value, list) else [value]:
            if word is not None and not re.fullmatch(pattern, word):
                raise UserError(f"launch.{key}={word!r}: {settings.kind} takes no such value, but {_LIKE[pattern]}")
    for name, value in getattr(settings, "env", {}).items():
        if not re.fullmatch(_VARIABLE, name) or value is None:
            raise UserError(f"launch.env: {name!r} cannot be a variable; write +launch.env.NAME=value")
        if is_secret_name(name):
            raise UserError(
                f"launch.env names {name}, and others can read what is written there: {_ADVICE[settings.kind]}"
            )
    if isinstance(settings, KubeRay):
        _check_kuberay(settings)
    if isinstance(settings, RayJobs) and settings.address and "://" not in settings.address:
        raise UserError(f"launch.address={settings.address}: write the job API's URL, such as http://127.0.0.1:8265")


def _check_kuberay(settings: KubeRay) -> None:
    if bool(settings.secret) != bool(settings.secret_env):
        raise UserError(
            "launch.secret names a Secret and launch.secret_env which of its keys become variables: give both or none"
        )
    if settings.max_nodes is not None and settings.max_nodes < settings.nodes:
        raise UserError(f"launch.max_nodes={settings.max_nodes}: it cannot be less than launch.nodes={settings.nodes}")
    if not settings.mount_path.startswith("/"):
        raise UserError(f"launch.mount_path={settings.mount_path}: it has to be an absolute path")
    for toleration in settings.tolerations:
        if not isinstance(toleration, dict):
            raise UserError("launch.tolerations: write them as Kubernetes does, [{key:nvidia.com/gpu,operator:Exists}]")


_LEAST = {
    "nodes": 1,
    "cpus_per_node": 1,
    "head_cpus": 1,
    "gpus_per_node": 0,
    "retries": 0,
    "keep_seconds": 0,
    "join_timeout": 1,
}
_TIME = r"\d+(:[0-5]?\d){0,2}|\d+-\d+(:[0-5]?\d){0,2}"
_MEGABYTES = r"\d+[KMGT]?"
_OPTION = r"-[^\s\"'`$\\]*"
_LINE = r"[^\n\r]+"
_IMAGE = r"[A-Za-z0-9][A-Za-z0-9._/:@-]*"
_PATTERNS: dict[str, dict[str, str]] = {
    "ray": {},
    "kuberay": {
        "image": _IMAGE,
        "namespace": _KUBERNETES_NAME,
        "service_account": _KUBERNETES_NAME,
        "secret": _KUBERNETES_NAME,
        "volume_claim": _KUBERNETES_NAME,
        "secret_env": _VARIABLE,
        "memory_per_node": _QUANTITY,
        "head_memory": _QUANTITY,
    },
    "slurm": {
        "partition": rf"{_WORD}(,{_WORD})*",
        "account": _WORD,
        "time_limit": _TIME,
        "memory_per_node": _MEGABYTES,
        "options": _OPTION,
        "setup": _LINE,
    },
}
_LIKE = {
    _IMAGE: "an image such as registry.example.org/gebm:1",
    _KUBERNETES_NAME: "lower-case letters, digits and hyphens",
    _VARIABLE: "names of variables such as AWS_ACCESS_KEY_ID",
    _QUANTITY: "a quantity such as 32Gi",
    rf"{_WORD}(,{_WORD})*": "names such as gpu or gpu,long",
    _WORD: "a name such as vision",
    _TIME: "minutes, hours:minutes:seconds or days-hours, such as 24:00:00",
    _MEGABYTES: "a size such as 64G",
    _OPTION: "options without spaces or quotes such as --constraint=a100",
    _LINE: "a line of bash",
}
_ADVICE = {
    "ray": "give it to the cluster's nodes themselves, as a role or when Ray is started there",
    "kuberay": "put it into a Secret and name it by launch.secret and launch.secret_env",
}
