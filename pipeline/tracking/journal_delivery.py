"""Delivery of a journal's entries to the runs of a sweep in MLflow."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES, MLFLOW_PARENT_RUN_ID

from pipeline.config.own_choices import kept_choices
from pipeline.runtime.errors import UserError, one_line
from pipeline.tracking.artifacts import upload_file, upload_folder
from pipeline.tracking.journal import PermanentError
from pipeline.tracking.journal_entries import (
    DatasetEntry,
    EndEntry,
    Entry,
    FileEntry,
    ImageEntry,
    MetricsEntry,
    ModelEntry,
    StartEntry,
    TagsEntry,
    ViewEntry,
    parse_entry,
    read_artifact,
)
from pipeline.tracking.locations import CONFIG_FILE, own_checkpoint
from pipeline.tracking.mlflow_entities import IMAGES, dataset_input, param_names, write_image
from pipeline.tracking.registry import Package, register
from pipeline.tracking.shared_view import tag_name

__all__ = ["Delivery", "log_params"]

# MLflow's limits for one request.
_MAX_PARAMS = 100
_MAX_METRICS = 1000
# A second attempt fails as well. Missing rights are not among them: the credentials may be renewed.
_PERMANENT_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
# The tag that names a trial.
_TRIAL = "trial"


@dataclass
class Delivery:
    """Sender of entries to a sweep's run and to the runs of its trials, its children.

    Args:
        client: Client of the tracker.
        experiment_id: MLflow's experiment.
        run_id: The sweep's run.
        folder: Folder of the sweep, behind any fsspec URL, which holds the files that entries name.
        package: Writes a checkpoint as an MLflow model; without it no model is registered.
        notify: Called with a one-line message about the registry.
    """

    client: MlflowClient
    experiment_id: str
    run_id: str
    folder: str
    package: Package | None
    notify: Callable[[str], None]
    trial_run_ids: dict[str, str] = field(default_factory=dict, init=False)
    _locations: dict[str, str] = field(default_factory=dict, init=False)
    _runs_with_images: set[str] = field(default_factory=set, init=False)

    def deliver(self, entries: list[dict[str, Any]]) -> None:
        """Send entries; a second time changes nothing.

        A run is searched for before it is created, MLflow stores a metric once that has the same step, time and value,
        and everything else overwrites. The metrics of a trial that wait between two of its other entries are sent
        together: a request with many takes little longer than a request with one.

        Args:
            entries: Entries of the journal, in their order.

        Raises:
            PermanentError: When an entry is invalid, or MLflow refuses it for good.
            Exception: When the tracker does not answer, as MLflow's client or its stores raise it.
        """
        metrics: dict[str | None, list[Metric]] = {}
        for document in entries:
            entry = parse_entry(document)
            if isinstance(entry, MetricsEntry):
                metrics.setdefault(entry.trial, []).extend(
                    Metric(name, value, entry.time, entry.step) for name, value in entry.metrics.items()
                )
            else:
                self._log_metrics(entry.trial, metrics.pop(entry.trial, []))
                self._send(entry)
        for trial, waiting in metrics.items():
            self._log_metrics(trial, waiting)

    def _send(self, entry: Entry) -> None:
        """Send one entry, of any kind but metrics."""
        with _permanent_errors(entry):
            match entry:
                case StartEntry():
                    self._start(entry)
                case FileEntry():
                    self._send_file(entry)
                case ImageEntry():
                    self._send_image(entry)
                case ModelEntry():
                    self._send_model(entry)
                case DatasetEntry():
                    self.client.log_inputs(self._run_of(entry.trial), datasets=[dataset_input(entry.data.model_dump())])
                case TagsEntry():
                    tags = [RunTag(key, value) for key, value in entry.tags.items()]
                    self.client.log_batch(self._run_of(entry.trial), tags=tags)
                case EndEntry():
                    run_id = self._run_of(entry.trial)
                    self.client.set_terminated(run_id, status=entry.status, end_time=entry.time)
                    if entry.name:
                        self.client.update_run(run_id, name=entry.name)
                case ViewEntry():
                    self.client.set_experiment_tag(self.experiment_id, tag_name(self.run_id), entry.view)

    def _log_metrics(self, trial: str | None, metrics: list[Metric]) -> None:
        if not metrics:
            return
        with _permanent_errors():
            run_id = self._run_of(trial)
            for start in range(0, len(metrics), _MAX_METRICS):
                self.client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])

    def _run_of(self, trial: str | None) -> str:
        """Return the id of a trial's run, or of the sweep's; raise ``PermanentError`` where the trial has none."""
        if trial is None:
            return self.run_id
        run_id = self._find_run(trial)
        if run_id is None:
            raise PermanentError(f"trial {trial} has no run, perhaps because it was deleted")
        return run_id

    def _find_run(self, trial: str) -> str | None:
        """Return the id of a trial's run, which is requested from the server once, or ``None``."""
        if trial not in self.trial_run_ids:
            query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and tags.`{_TRIAL}` = '{trial}'"
            runs = self.client.search_runs([self.experiment_id], query, max_results=1)
            if not runs:
                return None
            self.trial_run_ids[trial] = runs[0].info.run_id
        return self.trial_run_ids[trial]

    def _start(self, entry: StartEntry) -> None:
        """Create a trial's run, or reopen the one that it has."""
        trial = entry.trial
        if trial is None:
            raise PermanentError("invalid journal entry (trial of kind start)")
        run_id = self._find_run(trial)
        if run_id is None:
            tags = {**entry.tags, MLFLOW_PARENT_RUN_ID: self.run_id, _TRIAL: trial}
            created = self.client.create_run(
                self.experiment_id, start_time=entry.time, tags=tags, run_name=f"trial {trial}"
            )
            run_id = self.trial_run_ids[trial] = created.info.run_id
            log_params(self.client, run_id, entry.params)
        else:
            self.client.update_run(run_id, status="RUNNING", name=f"trial {trial}")
            # A resumed sweep may have other params, and MLflow refuses to change them.
            if not self.client.get_run(run_id).data.params:
                log_params(self.client, run_id, entry.params)
        if entry.config:
            self._send_config(run_id, entry.config)

    def _send_config(self, run_id: str, config: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / CONFIG_FILE
            local.write_text(config, encoding="utf-8")
            upload_file(self.client, self._artifacts_of(run_id), local, None)

    def _send_file(self, entry: FileEntry) -> None:
        run_id = self._run_of(entry.trial)
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / entry.file.rsplit("/", 1)[-1]
            local.write_bytes(read_artifact(self.folder, entry.file))
            upload_file(self.client, self._artifacts_of(run_id), local, entry.folder)

    def _send_image(self, entry: ImageEntry) -> None:
        run_id = self._run_of(entry.trial)
        with tempfile.TemporaryDirectory() as scratch:
            content = read_artifact(self.folder, entry.file)
            write_image(content, Path(scratch), run_id=run_id, key=entry.key, step=entry.step, time=entry.time)
            upload_folder(self.client, self._artifacts_of(run_id), Path(scratch), IMAGES)
        # MLflow's UI looks for images in runs with this tag.
        if run_id not in self._runs_with_images:
            self.client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, True)
            self._runs_with_images.add(run_id)

    def _own_checkpoint(self, entry: ModelEntry) -> str:
        """Return the URL of an entry's checkpoint: one of its trial, or the model that the user started from."""
        if entry.checkpoint == kept_choices(self.folder).get("checkpoint"):
            return entry.checkpoint
        try:
            return str(own_checkpoint(self.folder, str(entry.trial), entry.checkpoint))
        except ValueError as error:
            raise PermanentError(str(error)) from None

    def _artifacts_of(self, run_id: str) -> str:
        """Return the location of a run's artifacts, which is requested from the server once."""
        if run_id not in self._locations:
            self._locations[run_id] = str(self.client.get_run(run_id).info.artifact_uri)
        return self._locations[run_id]

    def _send_model(self, entry: ModelEntry) -> None:
        run_id = self._run_of(entry.trial)
        if self.package is None:
            raise PermanentError("this process cannot package a checkpoint as a model")
        package = self.package

        def package_here(checkpoint: str, *arguments: Any, **settings: Any) -> dict[str, str]:
            # The sweep's folder may have been moved since the entry was written.
            return package(self._own_checkpoint(entry), *arguments, **settings)

        message = register(self.client, self.experiment_id, run_id, entry.model_dump(), package_here)
        if message:
            self.notify(message)


def log_params(client: MlflowClient, run_id: str, params: dict[str, Any]) -> None:
    """Log the parameters of a run, in requests of the size that MLflow takes.

    Args:
        client: Client of the tracker.
        run_id: The run.
        params: Flat parameters; values become text.
    """
    entries = [Param(name, str(value)) for name, value in zip(param_names(params), params.values(), strict=True)]
    for start in range(0, len(entries), _MAX_PARAMS):
        client.log_batch(run_id, params=entries[start : start + _MAX_PARAMS])


@contextlib.contextmanager
def _permanent_errors(entry: Entry | None = None) -> Iterator[None]:
    """Raise ``PermanentError`` for an error that would recur at every attempt."""
    try:
        yield
    except MlflowException as error:
        if error.error_code in _PERMANENT_CODES:
            raise PermanentError(one_line(error, limit=200)) from error
        raise
    except UserError as error:
        raise PermanentError(str(error)) from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        name = entry.file if isinstance(entry, FileEntry | ImageEntry) else None
        raise PermanentError(f"there is no file {name} any more") from error
    except ValueError as error:
        # A proxy's page instead of JSON is temporary: the entry is sent again. A value that cannot be stored never is.
        if isinstance(error, OSError | json.JSONDecodeError):
            raise
        raise PermanentError(one_line(error, limit=200)) from error
