"""A sweep as a RayJob of the KubeRay operator: a cluster of its own that goes when the sweep has ended."""

from __future__ import annotations

import subprocess
from typing import Any

import ray
import yaml

from pipeline.config.launchers import KubeRay, Submission
from pipeline.runtime.errors import UserError
from pipeline.submit.bundle import JOB, JobBundle
from pipeline.submit.reachability import no_shared_fs, under_mount

__all__ = ["manifest", "send"]

_FILES = "/etc/gebm"  # where the pods of the cluster see the config
_GROUP = 10001  # of files on a shared volume, so that the image's user can write there


def send(submission: Submission, named: dict[str, object]) -> int:
    """Write the manifest, and with ``apply`` hand it to ``kubectl``.

    Args:
        submission: with :class:`KubeRay`.
        named: keys that the command line names.

    Raises:
        UserError: the pods cannot reach what the config names, or ``kubectl`` refuses the manifest.
    """
    settings = submission.launch
    assert isinstance(settings, KubeRay)
    mounted = settings.volume_claim is not None
    bundle = JobBundle.build(
        submission.config,
        named,
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
        _call(apply)
    called = " ".join(kubectl)
    print(
        f"  {'start it: ' if not submission.apply else 'started by:'} {' '.join(apply)}\n"
        f"  follow it:  {called} logs --follow job/{bundle.name}\n"
        f"  find it:    {called} get rayjob {bundle.name}\n"
        f"  stop it:    {called} delete -f {path}"
    )
    return 0


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("apply=true needs kubectl on the PATH; without it, the manifest is written only") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[:300]
        raise UserError(f"`{' '.join(command)}` failed: {reason}")
    print(done.stdout.strip())


def manifest(bundle: JobBundle, settings: KubeRay) -> list[dict[str, Any]]:
    """The documents to apply: the sweep's config, and the RayJob that runs it.

    Args:
        bundle: the sweep.
        settings: of the cluster.

    Returns:
        A ConfigMap and a RayJob. There is no credential in either: pods have them from a Secret that is named, or by
        the role of their service account.
    """
    gpu = {"nvidia.com/gpu": settings.gpus_per_node} if settings.gpus_per_node else {}
    worker = {"cpu": settings.cpus_per_node, "memory": settings.memory_per_node, **gpu}
    head = {"cpu": settings.head_cpus, "memory": settings.head_memory}
    most = settings.max_nodes or settings.nodes
    where = {"nodeSelector": settings.node_selector, "tolerations": settings.tolerations}
    cluster = {
        "rayVersion": ray.__version__,
        "authOptions": {"mode": "token"},  # the operator makes the token, and a Secret to keep it in
        "enableInTreeAutoscaling": most > settings.nodes,
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0"},
            "template": {"spec": _pod("ray-head", head, bundle, settings)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": settings.nodes,
                "minReplicas": settings.nodes,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": {
                    "spec": {
                        **_pod("ray-worker", worker, bundle, settings),
                        **{key: value for key, value in where.items() if value},
                    }
                },
            }
        ],
    }
    job = {
        "entrypoint": f"python -m pipeline.submit.job {_FILES}/{JOB}",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.keep_seconds,
        "backoffLimit": settings.retries,
        "rayClusterSpec": cluster,
    }
    meta = {
        "name": bundle.name,
        **({"namespace": settings.namespace} if settings.namespace else {}),
        "labels": {"app.kubernetes.io/name": "gebm", "app.kubernetes.io/instance": bundle.name},
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {JOB: bundle.text()}},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": job},
    ]


def _pod(name: str, resources: dict[str, Any], bundle: JobBundle, settings: KubeRay) -> dict[str, Any]:
    plain = [{"name": key, "value": value} for key, value in {"PYTHONUNBUFFERED": "1", **settings.env}.items()]
    secret = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": settings.secret, "key": key}}}
        for key in settings.secret_env
    ]
    volumes = [{"name": "sweep", "configMap": {"name": bundle.name}}]
    mounts = [{"name": "sweep", "mountPath": _FILES, "readOnly": True}]
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
