"""MLflow's model registry: versions of an experiment's model, and an alias that moves only to a better one."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.runtime.errors import UserError
from pipeline.tracking.artifacts import upload_folder
from pipeline.tracking.journal import PermanentError

__all__ = ["BEST", "MEASURE", "Package", "is_better_version", "model_name", "register"]

BEST = "best"
"""The alias."""

Package = Callable[..., dict[str, str]]
"""Writes a checkpoint as an MLflow model, and returns the tags that state its score, as its own checkpoint has it."""

MEASURE = ("metric", "mode", "extractor", "num_samples", "store_checksum")
"""Tags of a version that state how it was measured: only versions that agree in all of them are compared.

The sampler's settings are not among them. A version is weights together with the sampler that it is served with, so its
beta is a part of what is compared, as its number of MCMC steps is, and not of how it is compared. Beta is a tag, and in
words in the description, and a message reports when the alias moves from one beta to another.
"""


def model_name(experiment: str) -> str:
    """Return the name of an experiment's model, without what MLflow takes in no model's name, or reads as a query.

    Example:
        >>> model_name("lsun"), model_name("team/lsun:2"), model_name("Bob's lsun.v2")
        ('lsun', 'team-lsun-2', 'Bob-s lsun-v2')
    """
    return re.sub(r"[/:.%\"'?]", "-", experiment)


def is_better_version(new: Mapping[str, str], old: Mapping[str, str] | None) -> bool:
    """Return whether the alias moves from one version to another.

    Args:
        new: Tags of the new version: ``value``, and those of :data:`MEASURE`.
        old: Tags of the version that has the alias; ``None`` if there is none.

    Returns:
        ``True`` where the new value is finite, was measured like the old one and is better, or where there is no old
        one. Values that were measured differently are not compared, and the alias stays.

    Example:
        >>> old = {"metric": "fid_gebm", "mode": "min", "extractor": "x", "num_samples": "10000", "value": "12.5"}
        >>> is_better_version({**old, "value": "11.0"}, old)
        True
        >>> is_better_version({**old, "value": "11.0", "extractor": "y"}, old)
        False
        >>> is_better_version({**old, "value": "nan"}, None)
        False
    """
    value = _value(new)
    if math.isnan(value):
        return False
    if old is None:
        return True
    if any(new.get(key) != old.get(key) for key in MEASURE):
        return False
    old_value = _value(old)
    return math.isnan(old_value) or (value > old_value if new.get("mode") == "max" else value < old_value)


def register(
    client: MlflowClient, experiment_id: str, run_id: str, entry: Mapping[str, Any], package: Package
) -> str | None:
    """Log a trial's checkpoint as a model, register it, and move the alias if it is the best.

    A second time changes nothing: a version is known by its run and its checkpoint.

    Args:
        client: Client of the tracker.
        experiment_id: MLflow's experiment.
        run_id: The trial's run.
        entry: ``name`` in the registry, ``checkpoint``, ``sampler`` as ``package`` takes it, ``base_step``,
            ``description``, and ``tags``: ``checkpoint``, and those of the score where no checkpoint has it.
        package: Writes a checkpoint as an MLflow model, as :func:`pipeline.training.export.write_package` does. The
            score that the alias is moved by is what it returns, and not what a summary or a journal says.

    Returns:
        A message for the user where a better version may have been left without the alias, or where the alias moved to
        a version that is sampled at another temperature; otherwise ``None``.

    Raises:
        PermanentError: When the checkpoint cannot be packaged as a model.
        MlflowException: When the tracker does not answer, or refuses.
    """
    name = entry["name"]
    _create_registered_model(client, name)
    version = _find_version(client, name, run_id, entry["checkpoint"])
    if version is None:
        version = _create_version(client, experiment_id, run_id, entry, package)
    return _move_alias(client, name, version, version.tags)


def _move_alias(client: MlflowClient, name: str, version: ModelVersion, tags: Mapping[str, str]) -> str | None:
    """Move the alias to a version if it is better than the best, and return the message of :func:`register`."""
    best = _best_version(client, name)
    if best is None:
        if is_better_version(tags, None):
            client.set_registered_model_alias(name, BEST, version.version)
        return None
    if best.version == version.version:
        return None
    if is_better_version(tags, best.tags):
        client.set_registered_model_alias(name, BEST, version.version)
        beta, best_beta = tags.get("beta"), best.tags.get("beta")
        if beta is None or best_beta is None or beta == best_beta:
            return None
        return (
            f"version {version.version} of the model {name} is {BEST} from now on, sampled at beta {beta}; "
            f"version {best.version} was at beta {best_beta}, where 1 is the model itself and larger is colder"
        )
    if any(tags.get(key) != best.tags.get(key) for key in MEASURE):
        return (
            f"version {version.version} of the model {name} was measured otherwise than version {best.version}, "
            f"which stays {BEST}: to move the alias by hand, see the model's page in MLflow"
        )
    return None


def _create_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description=f"GEBMs of the experiment {name}, the best of each sweep.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find_version(client: MlflowClient, name: str, run_id: str, checkpoint: str) -> ModelVersion | None:
    # Not every store of the registry searches by tags; all search by the run, which has few versions.
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((version for version in versions if version.tags.get("checkpoint") == checkpoint), None)


def _create_version(
    client: MlflowClient, experiment_id: str, run_id: str, entry: Mapping[str, Any], package: Package
) -> ModelVersion:
    model = _find_logged_model(client, experiment_id, run_id, entry["checkpoint"])
    if model is None:
        model = _log(client, experiment_id, run_id, entry, package)
    return client.create_model_version(
        entry["name"],
        # A database's registry resolves `models:/<id>` by the global tracker alone.
        source=model.artifact_location,
        run_id=run_id,
        model_id=model.model_id,
        tags={**entry["tags"], **{key: value for key, value in model.tags.items() if key in ("value", *MEASURE)}},
        description=entry["description"],
    )


def _find_logged_model(client: MlflowClient, experiment_id: str, run_id: str, checkpoint: str) -> LoggedModel | None:
    """Return the model that a driver logged before it died, if there is one."""
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    ready = [model for model in models if str(model.status) == "READY"]
    return next((model for model in ready if model.tags.get("checkpoint") == checkpoint), None)


def _log(
    client: MlflowClient, experiment_id: str, run_id: str, entry: Mapping[str, Any], package: Package
) -> LoggedModel:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        # Packaged before it is created in MLflow, so that a damaged checkpoint leaves no half-made model there.
        try:
            measured = package(entry["checkpoint"], folder, sampler=entry["sampler"], run_id=run_id)
        except (UserError, OSError, ValueError) as error:
            raise PermanentError(f"{entry['checkpoint']} cannot be made a model ({error})") from error
        model = client.create_logged_model(
            experiment_id, name=entry["name"], source_run_id=run_id, tags={**entry["tags"], **measured}
        )
        upload_folder(client, str(model.artifact_location), folder)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=entry["base_step"])])
        return client.finalize_logged_model(model.model_id, "READY")


def _best_version(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, BEST)
    except MlflowException as error:
        # Stores differ in the code for an alias that does not exist.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _value(tags: Mapping[str, str]) -> float:
    try:
        value = float(tags["value"])
    except (KeyError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan
