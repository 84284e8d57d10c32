"""Schema of the launchers, and its validation.

``launch`` is a Hydra config group of typed options: ``launch=slurm`` has the keys of :class:`Slurm` and no others, so
that ``launch.image`` is refused there by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from pipeline.config import compose, schema
from pipeline.config.arguments import text_keys
from pipeline.config.fields import Key, Pattern, bounded, documented, key, keys, matching
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import is_secret_name

__all__ = ["LAUNCHERS", "SUBMISSION", "TEXT_KEYS", "KubeRay", "RayJobs", "Slurm", "Submission", "check"]

SUBMISSION = "gebm-submission"

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_QUANTITY = Pattern(r"[0-9]+(\.[0-9]+)?([EPTGMK]i|[EPTGMk])?", "a quantity such as 32Gi")
_IMAGE = Pattern(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", "an image such as registry.example.org/gebm:1")
_KUBERNETES_NAME = Pattern(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "lower-case letters, digits and hyphens")
_VARIABLE = Pattern(r"[A-Za-z_][A-Za-z0-9_]*", "names of variables such as AWS_ACCESS_KEY_ID")
_PARTITIONS = Pattern(rf"{_WORD}(,{_WORD})*", "names such as gpu or gpu,long")
_ACCOUNT = Pattern(_WORD, "a name such as vision")
_TIME = Pattern(
    r"\d+(:[0-5]?\d){0,2}|\d+-\d+(:[0-5]?\d){0,2}",
    "minutes, hours:minutes:seconds or days-hours, such as 24:00:00",
)
_MEGABYTES = Pattern(r"\d+[KMGT]?", "a size such as 64G")
_OPTION = Pattern(r"-[^\s\"'`$\\]*", "options without spaces or quotes such as --constraint=a100")
_LINE = Pattern(r"[^\n\r]+", "a line of bash")
_ENVIRONMENT_HELP = "Environment variables of the {} (+launch.env.NAME=value); no credentials."


@dataclass
class RayJobs:
    """A running Ray cluster, by its job API. Its nodes have what ``constraints.txt`` names installed."""

    kind: str = "ray"
    address: str | None = key(
        None, "URL of the job API, such as http://127.0.0.1:8265 (default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS)."
    )
    follow: bool = key(True, "Whether to print the job's log until its end; Ctrl-C stops the printing alone.")
    shared: bool = key(False, "Whether output and data.store are paths of a file system that all nodes share.")
    nodes: int = bounded(1, "Nodes that have to be up, the head among them, before the sweep begins.", gt=0)
    join_timeout: float = bounded(600.0, "Seconds that the sweep waits for them.", ge=1)
    env: dict[str, str] = field(default_factory=dict, metadata=documented(_ENVIRONMENT_HELP.format("job")))


@dataclass
class KubeRay:
    """A Ray cluster of the sweep's own on Kubernetes, by a RayJob of the KubeRay operator (1.5.1 or later)."""

    kind: str = "kuberay"
    image: str = matching(
        MISSING, "Image that the project's Dockerfile builds, where the cluster can pull it.", pattern=_IMAGE
    )
    namespace: str | None = matching(
        None, "Kubernetes namespace (default: that of kubectl's context).", pattern=_KUBERNETES_NAME
    )
    service_account: str | None = matching(
        None, "Service account of the pods, by which a cloud gives them a role.", pattern=_KUBERNETES_NAME
    )
    nodes: int = bounded(1, "Worker pods.", gt=0)
    max_nodes: int | None = key(
        None, "With more than nodes, Ray's autoscaler adds workers while trials wait for them (default: nodes)."
    )
    gpus_per_node: int = bounded(1, "GPUs of a worker pod.", ge=0)
    cpus_per_node: int = bounded(8, "CPU cores of a worker pod.", gt=0)
    memory_per_node: str = matching("32Gi", "Memory of a worker pod.", pattern=_QUANTITY)
    head_cpus: int = bounded(2, "CPU cores of the head pod.", gt=0)
    head_memory: str = matching("8Gi", "Memory of the head pod.", pattern=_QUANTITY)
    node_selector: dict[str, str] = field(
        default_factory=dict, metadata=documented("Node selector of the worker pods.")
    )
    tolerations: list[Any] = field(
        default_factory=list, metadata=documented("Tolerations of the worker pods, as Kubernetes writes them.")
    )
    env: dict[str, str] = field(default_factory=dict, metadata=documented(_ENVIRONMENT_HELP.format("pods")))
    secret: str | None = matching(None, "Name of a Secret in the namespace.", pattern=_KUBERNETES_NAME)
    secret_env: list[str] = field(
        default_factory=list,
        metadata=documented("Keys of the Secret that become variables of the same name.", pattern=_VARIABLE),
    )
    volume_claim: str | None = matching(
        None, "A PersistentVolumeClaim that all pods may write at once.", pattern=_KUBERNETES_NAME
    )
    mount_path: str = key("/data", "Path at which the pods mount it.")
    retries: int = bounded(1, "New clusters after the first has failed; each resumes the sweep.", ge=0)
    keep_seconds: int = bounded(600, "Seconds that pods stay after the end, for their logs.", ge=0)
    join_timeout: float = bounded(1800.0, "Seconds that the sweep waits for the worker pods.", ge=1)
    folder: str | None = key(None, "Folder of the manifest (default: results/launches/<name>-<time>).")


@dataclass
class Slurm:
    """A Ray cluster of the sweep's own on nodes that Slurm allocates. Its folders are on a shared file system."""

    kind: str = "slurm"
    nodes: int = bounded(1, "Nodes to allocate.", gt=0)
    gpus_per_node: int = bounded(1, "GPUs of a node.", ge=0)
    cpus_per_node: int | None = bounded(None, "CPU cores of a node (default: whole nodes).", gt=0)
    memory_per_node: str | None = matching(None, "Memory of a node as --mem takes it, such as 64G.", pattern=_MEGABYTES)
    partition: str | None = matching(None, "Partition.", pattern=_PARTITIONS)
    account: str | None = matching(None, "Account.", pattern=_ACCOUNT)
    time_limit: str = matching("24:00:00", "Time limit as --time takes it.", pattern=_TIME)
    options: list[str] = field(
        default_factory=list,
        metadata=documented("Further options of sbatch, such as --constraint=a100.", pattern=_OPTION),
    )
    setup: list[str] = field(
        default_factory=list,
        metadata=documented("Lines of bash that each node begins with, such as module load cuda.", pattern=_LINE),
    )
    python: str | None = key(
        None, "Interpreter, at a path that all nodes share (default: the one that runs this command)."
    )
    join_timeout: float = bounded(600.0, "Seconds that the sweep waits until Ray is up on all nodes.", ge=1)
    folder: str | None = key(None, "Folder of script, code and log (default: results/launches/<name>-<time>).")


Settings = RayJobs | KubeRay | Slurm
LAUNCHERS: dict[str, type[Settings]] = {"ray": RayJobs, "kuberay": KubeRay, "slurm": Slurm}
TEXT_KEYS = frozenset[str]().union(*(text_keys(launcher, "launch.") for launcher in LAUNCHERS.values()))


@dataclass
class _Primary(schema.Primary):
    """A sweep's config, its launcher, and whether the written files are submitted as well."""

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
for _name, _node in LAUNCHERS.items():
    ConfigStore.instance().store(group="launch", name=_name, node=_node)


@dataclass
class Submission:
    """A sweep's config, its launcher, and whether the written files are submitted as well."""

    config: schema.Config
    launch: Settings
    apply: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Submission:
        """Make a submission from what Hydra composed.

        Args:
            values: An experiment's keys, with ``launch`` and ``apply``.

        Raises:
            UserError: A key is missing or has an impossible value.

        Example:
            >>> experiment = {"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
            ...     "model": {"networks": "dcgan"}}
            >>> Submission.from_dict({**experiment, "launch": {"kind": "slurm", "nodes": 0}})
            Traceback (most recent call last):
            ...
            pipeline.runtime.errors.UserError: launch.nodes=0: it has to be positive and finite
        """
        experiment = {key: value for key, value in values.items() if key not in ("launch", "apply")}
        launch = values["launch"]
        typed = OmegaConf.merge(OmegaConf.structured(LAUNCHERS[launch["kind"]]), launch)
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise UserError(f"launch={launch['kind']} needs launch.{missing[0]}=...; see docs/clusters.md")
        settings = OmegaConf.to_object(typed)
        assert isinstance(settings, RayJobs | KubeRay | Slurm)
        check(settings)
        return cls(compose.from_dict(experiment), settings, bool(values["apply"]) if "apply" in values else False)


def check(settings: Settings) -> None:
    """Refuse settings that a scheduler would refuse later, or read as something else.

    Args:
        settings: Settings of a launcher.

    Raises:
        UserError: A value is impossible; the message is one line that names the key.

    Example:
        >>> check(KubeRay(image="registry/gebm:1", env={"AWS_SECRET_ACCESS_KEY": "x"}))
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: launch.env names AWS_SECRET_ACCESS_KEY, and others can read what is written \
there: \
put it into a Secret and name it by launch.secret and launch.secret_env
    """
    for entry in keys(type(settings)):
        _check_field(entry, getattr(settings, entry.name), settings.kind)
    for name, value in getattr(settings, "env", {}).items():
        if not re.fullmatch(_VARIABLE.regex, name) or value is None:
            raise UserError(f"launch.env: {name!r} cannot be a variable; write +launch.env.NAME=value")
        if is_secret_name(name):
            raise UserError(
                f"launch.env names {name}, and others can read what is written there: {_ADVICE[settings.kind]}"
            )
    if isinstance(settings, KubeRay):
        _check_kuberay(settings)
    if isinstance(settings, RayJobs) and settings.address and "://" not in settings.address:
        raise UserError(f"launch.address={settings.address}: write the job API's URL, such as http://127.0.0.1:8265")


def _check_field(entry: Key, value: Any, kind: str) -> None:
    pattern = entry.rule.pattern
    for part in value if isinstance(value, list) else [value]:
        requirement = entry.rule.refusal(part)
        if requirement and pattern is not None:
            raise UserError(f"launch.{entry.name}={part!r}: {kind} takes no such value, but {pattern.like}")
        if requirement:
            raise UserError(f"launch.{entry.name}={part}: it {requirement}")


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


_ADVICE = {
    "ray": "give it to the cluster's nodes themselves, as a role or when Ray is started there",
    "kuberay": "put it into a Secret and name it by launch.secret and launch.secret_env",
}
