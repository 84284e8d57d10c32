"""KubeRay launcher: a sweep as a RayJob, whose cluster is deleted when the sweep has ended."""

from __future__ import annotations

import subprocess
from typing import Any

import ray
import yaml

from pipeline.config.launcher_schema import KubeRay, Submission
from pipeline.config.printed_commands import quote_words
from pipeline.runtime.errors import UserError
from pipeline.submit.bundle import JOB, JobBundle
from pipeline.submit.reachability import no_shared_fs, under_mount

__all__ = ["manifest", "send"]

# Mount path of the config in the cluster's pods.
_CONFIG_MOUNT = "/etc/gebm"
# Group of the files on a shared volume, so that the image's user can write there.
_GROUP = 10001


def send(submission: Submission, overrides: dict[str, Any]) -> int:
    """Write the manifest, and with ``apply`` hand it to ``kubectl``.

    Args:
        submission: With :class:`KubeRay`.
        overrides: Keys that the command line names.

    Returns:
        The exit status, 0.

    Raises:
        UserError: When the pods cannot reach what the config names, or ``kubectl`` refuses the manifest.
    """
    settings = submission.launch
    assert isinstance(settings, KubeRay)
    mounted = settings.volume_claim is not None
    bundle = JobBundle.build(
        submission.config,
        overrides,
        nodes=settings.nodes + 1,
        join_timeout=settings.join_timeout,
        shared=under_mount(settings.mount_path) if mounted else no_shared_fs,
        advice="give {key}=s3://bucket/... or the like, or a path below launch.mount_path on a launch.volume_claim",
    )
    path = bundle.folder(settings.folder) / "rayjob.yaml"
    path.write_text(yaml.safe_dump_all(manifest(bundle, settings), sort_keys=False))
    print(f"manifest: {path}\nits results come to {bundle.output}")
    if not bundle.config.tracking.uri and not mounted:
        print("note: without tracking.uri=... MLflow's runs are gone with the pods; summary.json has it all")
    kubectl = ["kubectl", *(["--namespace", settings.namespace] if settings.namespace else [])]
    apply = [*kubectl, "apply", "-f", str(path)]
    if submission.apply:
        _run(apply)
    prefix = quote_words(*kubectl)
    print(
        f"  {'start it: ' if not submission.apply else 'started by:'} {quote_words(*apply)}\n"
        f"  follow it:  {prefix} logs --follow job/{bundle.name}\n"
        f"  find it:    {prefix} get rayjob {bundle.name}\n"
        f"  stop it:    {prefix} delete -f {quote_words(str(path))}"
    )
    return 0


def _run(command: list[str]) -> None:
    """Run a command of ``kubectl``, and print its output."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("apply=true needs kubectl on the PATH; without it, the manifest is written only") from None
    if process.returncode:
        reason = " ".join(process.stderr.split())[:300]
        raise UserError(f"`{quote_words(*command)}` failed: {reason}")
    print(process.stdout.strip())


def manifest(bundle: JobBundle, settings: KubeRay) -> list[dict[str, Any]]:
    """Return the documents to apply: the sweep's config, and the RayJob that runs it.

    Args:
        bundle: The sweep.
        settings: Settings of the cluster.

    Returns:
        A ConfigMap and a RayJob. Neither contains a credential: pods have them from the named Secret, or by the role
        of their service account.
    """
    job = {
        "entrypoint": f"python -m pipeline.submit.job {_CONFIG_MOUNT}/{JOB}",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.keep_seconds,
        "backoffLimit": settings.retries,
        "rayClusterSpec": _cluster(bundle, settings),
    }
    metadata = {
        "name": bundle.name,
        **({"namespace": settings.namespace} if settings.namespace else {}),
        "labels": {"app.kubernetes.io/name": "gebm", "app.kubernetes.io/instance": bundle.name},
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {JOB: bundle.text()}},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job},
    ]


def _cluster(bundle: JobBundle, settings: KubeRay) -> dict[str, Any]:
    """Return the RayCluster's spec: a head without GPUs, and one group of workers."""
    gpu = {"nvidia.com/gpu": settings.gpus_per_node} if settings.gpus_per_node else {}
    worker = {"cpu": settings.cpus_per_node, "memory": settings.memory_per_node, **gpu}
    head = {"cpu": settings.head_cpus, "memory": settings.head_memory}
    max_nodes = settings.max_nodes or settings.nodes
    placement = {"nodeSelector": settings.node_selector, "tolerations": settings.tolerations}
    return {
        "rayVersion": ray.__version__,
        # The operator creates the token, and a Secret for it.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": max_nodes > settings.nodes,
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0"},
            "template": {"spec": _pod("ray-head", head, bundle, settings)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": settings.nodes,
                "minReplicas": settings.nodes,
                "maxReplicas": max_nodes,
                "rayStartParams": {},
                "template": {
                    "spec": {
                        **_pod("ray-worker", worker, bundle, settings),
                        **{key: value for key, value in placement.items() if value},
                    }
                },
            }
        ],
    }


def _pod(name: str, resources: dict[str, Any], bundle: JobBundle, settings: KubeRay) -> dict[str, Any]:
    """Return a pod's spec: one container, with the config mounted and the variables and volumes of the settings."""
    plain = [{"name": key, "value": value} for key, value in {"PYTHONUNBUFFERED": "1", **settings.env}.items()]
    secret = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": settings.secret, "key": key}}}
        for key in settings.secret_env
    ]
    volumes: list[dict[str, Any]] = [{"name": "sweep", "configMap": {"name": bundle.name}}]
    mounts: list[dict[str, Any]] = [{"name": "sweep", "mountPath": _CONFIG_MOUNT, "readOnly": True}]
    if settings.volume_claim:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": settings.volume_claim}})
        mounts.append({"name": "shared", "mountPath": settings.mount_path})
    container = {
        "name": name,
        "image": settings.image,
        "env": plain + secret,
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
    }
    return {
        **({"serviceAccountName": settings.service_account} if settings.service_account else {}),
        **({"securityContext": {"fsGroup": _GROUP}} if settings.volume_claim else {}),
        "containers": [container],
        "volumes": volumes,
    }
