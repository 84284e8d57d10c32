"""Upload of artifacts to the place that a tracker names, which a server cannot have be a folder of this machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

from pipeline.runtime.errors import UserError

__all__ = ["require_remote", "upload_file", "upload_folder"]

# Trackers that are asked over a network; the others are databases or folders that this process opens itself.
_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
# MLflow's schemes that no path of this machine has. With `runs` and `models` a server would name another location.
_REMOTE = (
    "mlflow-artifacts", "http", "https", "s3", "r2", "b2", "gs", "wasbs", "abfss", "dbfs", "hdfs", "viewfs", "ftp",
    "sftp",
)  # fmt: skip


def require_remote(tracker: str, artifacts: str | None) -> None:
    """Refuse a server whose artifacts would be written to this machine: it could have any file written.

    Args:
        tracker: URI of the tracker.
        artifacts: Location of the artifacts of an experiment, a run or a model, as the tracker names it.

    Raises:
        UserError: The tracker is a server, and the location is a local one.

    Example:
        >>> require_remote("sqlite:///mlflow.db", "file:///results/artifacts")
        >>> require_remote("https://mlflow.example.org", "mlflow-artifacts:/1")
        >>> require_remote("https://mlflow.example.org", "file:///home/me/.ssh")
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: the tracker https://mlflow.example.org keeps artifacts at \
'file:///home/me/.ssh', a place on this machine: start it with --serve-artifacts, or name a bucket as its \
--default-artifact-root
    """
    if _scheme(tracker) not in _SERVERS or _scheme(artifacts or "") in _REMOTE:
        return
    raise UserError(
        f"the tracker {tracker} keeps artifacts at {artifacts!r}, a place on this machine: start it with "
        f"--serve-artifacts, or name a bucket as its --default-artifact-root"
    )


def upload_file(client: MlflowClient, location: str, path: Path, folder: str | None) -> None:
    """Upload a file.

    Args:
        client: Client of the tracker.
        location: Location of the artifacts of the run or the model, as the tracker names it.
        path: The file.
        folder: Folder among the artifacts; ``None`` for their top.

    Raises:
        UserError: The location is not one that a server may name.
    """
    _repository(client, location).log_artifact(str(path), folder)


def upload_folder(client: MlflowClient, location: str, path: Path, folder: str | None = None) -> None:
    """Upload all files of a folder; see :func:`upload_file`."""
    _repository(client, location).log_artifacts(str(path), folder)


def _repository(client: MlflowClient, location: str) -> ArtifactRepository:
    # MLflow's own methods request the location anew, and a server may give another one than that which was checked.
    require_remote(client.tracking_uri, location)
    uri = str(add_databricks_profile_info_to_artifact_uri(location, client.tracking_uri))
    return get_artifact_repository(uri, tracking_uri=client.tracking_uri)


def _scheme(uri: str) -> str:
    return urlsplit(uri).scheme.lower() if ":" in uri else uri.lower()
