"""Run that a resumed sweep continues: one that is there, and that is its folder's own."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.runtime.printable import printable_name
from pipeline.runtime.redaction import redact
from pipeline.runtime.untrusted import SUMMARY, parse_json, read_bytes

__all__ = ["why_not_continued"]


def why_not_continued(client: MlflowClient, run_id: str, folder: str) -> str | None:
    """Return why a resumed sweep does not continue the run that its summary names, or None where it does.

    A run belongs to the folder that is its parameter ``output``. A folder that was moved since takes it along; one that
    was copied does not, for the sweep that it was copied from would have the scores of both. Nor does a run that no
    sweep has made, whatever another's summary says.

    Args:
        client: Client of the tracker.
        run_id: The run.
        folder: Folder of the sweep, behind any fsspec URL.

    Returns:
        The reason, as the rest of a sentence that begins with the run.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        # An id that no run of MLflow has is an invalid value.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return "is gone"
        raise
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        return "is gone"
    origin = run.data.params.get("output")
    if origin is None:
        return "is not a sweep's"
    if origin == redact(folder) or _real(origin) == _real(folder) or _was_moved(origin, folder, run_id):
        return None
    return f"belongs to {printable_name(origin, 200)}, of which this folder is a copy"


def _was_moved(origin: str, folder: str, run_id: str) -> bool:
    """Return whether the sweep of a run is no longer where it was, as far as can be seen from here.

    Only this machine is looked at, or the bucket that the folder is in: a run does not decide whom to talk to.
    """
    here, there = urlsplit(folder), urlsplit(origin)
    # A chain of file systems, as in "simplecache::s3://...", has no scheme.
    if "://" in origin and (not there.scheme or (there.scheme, there.netloc) != (here.scheme, here.netloc)):
        return False
    files, path = filesystem(origin)
    summary = f"{path}/summary.json"
    # A pipe of this name would be waited for.
    if is_local(files) and not os.path.isfile(summary):
        return True
    try:
        document = parse_json(read_bytes(files, summary, SUMMARY), SUMMARY)
    except FileNotFoundError:
        return True
    # Each file system has exceptions of its own; what cannot be read may be the sweep.
    except Exception:
        return False
    return not isinstance(document, dict) or document.get("mlflow_run_id") != run_id


def _real(url: str) -> str:
    return url.rstrip("/") if "://" in url else os.path.realpath(url)
