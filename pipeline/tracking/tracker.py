"""All that touches MLflow: one parent run a sweep, one child a trial. Only the driver is here."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.runtime.redaction import redact
from pipeline.tracking.journal import Journal, PermanentError
from pipeline.tracking.journal_entries import read_artifact, relative_name, validate_entry
from pipeline.tracking.metric_names import SKIPPED, metric_name
from pipeline.tracking.mlflow_entities import IMAGES, dataset_input, write_image
from pipeline.tracking.registry import register

__all__ = ["Tracker", "flatten", "journal_path", "run_folder"]

_MAX_PARAMS = 100  # MLflow's limit for one batch
_MAX_METRICS = 1000
_MAX_TAG = 4800  # characters of a tag or a description, of which MLflow's older servers take 5,000
# MLflow itself asks again for minutes: whoever mistyped an address should not wait for that, and the outbox asks again.
# Its own bars and addresses would be printed across our table.
_CLIENT_ENV = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# What will not be taken another time either. Whoever is not let in may be so after the credentials are renewed.
_PERMANENT_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
# What MLflow's UI calls an experiment that is about no language model.
_OF_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
_TRIAL = "trial"  # the tag that names a trial
_STORE = "store_checksum"  # the tag that names what a run has seen


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones.

    Example:
        >>> flatten({"train": {"base_lr": 1e-4}, "seed": 0})
        {'train.base_lr': 0.0001, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value})
    return flat


class Tracker:
    """A sweep in MLflow.

    The server is asked for at the start, so that a mistyped address is found at once. From then on nobody waits for it:
    what it is told goes through an :class:`pipeline.tracking.journal.Journal`, and reaches it whenever it answers.

    Args:
        uri: the server, or a database URL.
        experiment: its name there; made if it is new.
        artifacts: where a new experiment keeps its artifacts; by default where the server says.
        journal: the outbox's file, on a disk of this machine.
        folder: of the sweep, behind any fsspec URL: files that are logged lie in it.
        say: told in a line when the server stops answering, and when it is back.
        package: writes a checkpoint as an MLflow model; without it no model is registered.

    Raises:
        UserError: the tracker cannot be reached, or the journal is damaged.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        artifacts: str | None,
        journal: Path,
        folder: str,
        say: Callable[[str], None] = lambda line: None,
        package: Callable[..., None] | None = None,
    ) -> None:
        self.uri, self.extractor, self._folder, self._package = uri, None, folder, package
        self._journal, self._say = journal, say
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database tells of each of its tables
        os.environ.update(_CLIENT_ENV)
        with _as_user_error(uri):
            self._client = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name(experiment)
            self.experiment_id = (
                known.experiment_id
                if known
                else self._client.create_experiment(experiment, artifact_location=artifacts, tags=_OF_TRAINING)
            )
        self.run_id: str | None = None
        self._trials: dict[str, str] = {}  # the run of each trial, as far as the server has it
        self._shown: set[str] = set()  # runs that are known to have images
        self._data: dict[str, Any] | None = None

    def start_sweep(
        self, name: str, params: dict[str, Any], note: str, *, extractor: str | None, run_id: str | None = None
    ) -> str:
        """Open the parent run, or go on with an earlier one and what was not sent to it.

        Args:
            name: of the run.
            params: nested or flat.
            note: its description, in Markdown.
            extractor: the feature extractor, named in the metrics; None where there is none.
            run_id: the run of an interrupted sweep.

        Raises:
            UserError: this tracker does not know the run.
        """
        self.extractor = extractor
        with _as_user_error(self.uri):
            tags = {MLFLOW_RUN_NOTE: redact(note)}
            self.run_id = run_id or self._client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
            if run_id:
                self._client.update_run(run_id, status="RUNNING")
            else:
                self._send_params(self.run_id, redact(flatten(params)))
        self._outbox = Journal(self._journal, self._deliver, self._say)
        return self.run_id

    def start_trial(self, trial: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        """Open a child run, or go on with the one that this trial has.

        Args:
            trial: its name, which is unique in the sweep.
            params: nested or flat.
            tags: what a search in the UI may ask for.
        """
        flat = {key: str(value) for key, value in flatten(params).items()}
        if self._data is None:
            self._put("start", trial, params=flat, tags=tags, time=_now())
        else:
            self._put("start", trial, params=flat, tags={_STORE: self._data["checksum"], **tags}, time=_now())
            self._put("data", trial, data=self._data)

    def log_data(self, data: dict[str, Any]) -> None:
        """Say what the sweep has seen, and each of its trials that starts from now on.

        Args:
            data: from :func:`pipeline.tracking.provenance.describe_dataset`.
        """
        self._data = data
        self._put("tags", None, tags={_STORE: data["checksum"]})
        self._put("data", None, data=data)

    def log_metrics(self, trial: str | None, metrics: dict[str, Any], step: int) -> None:
        """Log numbers under their group, with the base step as the step; of the sweep itself if there is no trial."""
        numbers = {
            metric_name(name, self.extractor): value
            for name, value in metrics.items()
            if isinstance(value, int | float) and name not in SKIPPED
        }
        self._log(trial, numbers, step)

    def log_chain(self, trial: str, score: str, chain: dict[int, float], base_step: int) -> None:
        """Log a score along the chain, one metric a place on it, so that each has its curve over training."""
        carried = f".{self.extractor}" if self.extractor else ""
        self._log(trial, {f"{score}_chain/{int(step):05d}{carried}": value for step, value in chain.items()}, base_step)

    def _log(self, trial: str | None, metrics: dict[str, float], step: int) -> None:
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if finite:
            self._put("metrics", trial, metrics=finite, step=step, time=_now())

    def log_files(self, trial: str | None, urls: list[str], folder: str | None = None) -> None:
        """Log files of the sweep's folder as artifacts; they are read when they are sent."""
        for url in urls:
            self._put("file", trial, file=relative_name(self._folder, url), folder=folder)

    def log_pictures(self, trial: str, urls: list[str], base_step: int) -> None:
        """Log the pictures of an evaluation.

        Those of one name make a slider over base steps; what the UI shows no slider of, such as an animation, is an
        artifact in a folder of that step.
        """
        for url in urls:
            file, name = relative_name(self._folder, url), url.rsplit("/", 1)[-1]
            if name.endswith(".png"):
                self._put("image", trial, file=file, key=name.removesuffix(".png"), step=base_step, time=_now())
            else:
                self._put("file", trial, file=file, folder=f"step-{base_step:08d}")

    def log_model(
        self,
        trial: str,
        *,
        name: str,
        checkpoint: str,
        sampler: dict[str, Any],
        base_step: int,
        description: str,
        tags: dict[str, str],
    ) -> None:
        """Log a trial's checkpoint as a model, and register it: see :func:`pipeline.tracking.registry.register`."""
        told = {"name": name, "checkpoint": checkpoint, "sampler": sampler, "base_step": base_step}
        self._put("model", trial, **told, description=description, tags=tags)

    def describe(self, trial: str | None, note: str, tags: dict[str, str]) -> None:
        """Set a run's description and tags; those that are longer than MLflow takes are cut."""
        self.tag(trial, {MLFLOW_RUN_NOTE: note, **tags})

    def tag(self, trial: str | None, tags: dict[str, str]) -> None:
        """Set tags; those that are longer than MLflow takes, which would refuse all of them, are cut."""
        # Secrets go first: of one that is cut in two, nothing is recognised.
        self._put("tags", trial, tags={key: _shortened(redact(value)) for key, value in tags.items()})

    def end(self, trial: str | None, status: str) -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        self._put("end", trial, status=status, time=_now())

    def trial_run_id(self, trial: str) -> str | None:
        """The run of a trial, as soon as the server has it."""
        return self._trials.get(trial)

    def close(self, flush_timeout: float) -> int:
        """Wait for what is still to be sent.

        Args:
            flush_timeout: seconds to wait at most.

        Returns:
            How many entries are left, in the journal.
        """
        return self._outbox.close(flush_timeout)

    def _put(self, kind: str, trial: str | None, **entry: Any) -> None:
        self._outbox.put(redact({"kind": kind, "trial": trial, **entry}))

    def _deliver(self, entries: list[dict[str, Any]]) -> None:
        """Send entries; a second time changes nothing.

        A run is looked for before it is made, MLflow keeps a metric once that has the same step, time and value, and
        the others overwrite. A trial's metrics go together, as many as wait up to what else it has to say: a request
        of many takes little longer than a request of one.
        """
        metrics: dict[str | None, list[Metric]] = {}
        try:
            for entry in entries:
                validate_entry(entry)
                if entry["kind"] == "metrics":
                    found = [
                        Metric(name, value, entry["time"], entry["step"]) for name, value in entry["metrics"].items()
                    ]
                    metrics.setdefault(entry["trial"], []).extend(found)
                else:
                    self._send_metrics(entry["trial"], metrics.pop(entry["trial"], []))
                    self._deliver_to(entry)
            for trial, found in metrics.items():
                self._send_metrics(trial, found)
        except MlflowException as error:
            if error.error_code in _PERMANENT_CODES:
                raise PermanentError(one_line(error, limit=200)) from error
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise PermanentError(f"there is no file {entry.get('file')} any more") from error

    def _deliver_to(self, entry: dict[str, Any]) -> None:
        kind, trial = entry["kind"], entry["trial"]
        if kind == "start":
            self._start(trial, entry)
            return
        run_id = str(self.run_id) if trial is None else self._found(trial)
        if kind == "file":
            self._send_file(run_id, entry["file"], entry["folder"])
        elif kind == "image":
            self._send_image(run_id, entry)
        elif kind == "model":
            if self._package is None:
                raise PermanentError("nothing here can make a checkpoint a model")
            line = register(self._client, self.experiment_id, str(run_id), entry, self._package)
            if line:
                self._say(line)
        elif kind == "data":
            self._client.log_inputs(run_id, datasets=[dataset_input(entry["data"])])
        elif kind == "tags":
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in entry["tags"].items()])
        elif kind == "end":
            self._client.set_terminated(run_id, status=entry["status"], end_time=entry["time"])

    def _start(self, trial: str, entry: dict[str, Any]) -> None:
        run_id = self._found(trial, missing=None)
        if run_id is None:
            tags = {**entry["tags"], MLFLOW_PARENT_RUN_ID: str(self.run_id), _TRIAL: trial}
            created = self._client.create_run(
                self.experiment_id, start_time=entry["time"], tags=tags, run_name=f"trial {trial}"
            )
            run_id = self._trials[trial] = created.info.run_id
            self._send_params(run_id, entry["params"])
            return
        self._client.update_run(run_id, status="RUNNING")
        if not self._client.get_run(run_id).data.params:  # a sweep that goes on may have others, which MLflow refuses
            self._send_params(run_id, entry["params"])

    def _send_metrics(self, trial: str | None, metrics: list[Metric]) -> None:
        if metrics:
            run_id = str(self.run_id) if trial is None else self._found(trial)
            for start in range(0, len(metrics), _MAX_METRICS):
                self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])

    def _found(self, trial: str, missing: str | None = "") -> str | None:
        """The run of a trial, asked for at the server once."""
        if trial not in self._trials:
            query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and tags.`{_TRIAL}` = '{trial}'"
            runs = self._client.search_runs([self.experiment_id], query, max_results=1)
            if not runs:
                if missing is None:
                    return None
                raise PermanentError(f"trial {trial} has no run, perhaps because it was deleted")
            self._trials[trial] = runs[0].info.run_id
        return self._trials[trial]

    def _send_params(self, run_id: str, params: dict[str, Any]) -> None:
        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), _MAX_PARAMS):
            self._client.log_batch(run_id, params=entries[start : start + _MAX_PARAMS])

    def _send_file(self, run_id: str, name: str, folder: str | None) -> None:
        with tempfile.TemporaryDirectory() as here:
            local = Path(here) / name.rsplit("/", 1)[-1]
            local.write_bytes(read_artifact(self._folder, name))
            self._client.log_artifact(run_id, str(local), folder)

    def _send_image(self, run_id: str, entry: dict[str, Any]) -> None:
        told = {key: entry[key] for key in ("key", "step", "time")}
        with tempfile.TemporaryDirectory() as here:
            write_image(read_artifact(self._folder, entry["file"]), Path(here), run_id=run_id, **told)
            self._client.log_artifacts(run_id, here, IMAGES)
        if run_id not in self._shown:  # the UI looks for images where this tag is
            self._client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, True)
            self._shown.add(run_id)


def journal_path(output: str) -> Path:
    """What MLflow is still to be told: beside the results, or where those are not on this machine, in a folder here.

    Args:
        output: the results' folder, behind any fsspec URL.
    """
    files, path = filesystem(output)
    if is_local(files):
        return Path(path) / "tracking.jsonl"
    name = hashlib.sha256(output.encode()).hexdigest()[:8]
    return Path("results").absolute() / "tracking" / f"{output.rsplit('/', 1)[-1]}-{name}.jsonl"


def run_folder(run_id: str) -> str:
    """The results' folder of a sweep, or of the sweep that a trial is of, by its run in MLflow.

    Args:
        run_id: the run; the tracker is the one that ``MLFLOW_TRACKING_URI`` names, or the default one here.

    Raises:
        UserError: the tracker does not answer, or does not know the run, or it is of something else.
    """
    default = Path("results").absolute() / "mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{default}"
    if uri == f"sqlite:///{default}" and not default.exists():
        raise UserError(f"no tracker is named and there is no {default}: set MLFLOW_TRACKING_URI, or give the folder")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.update(_CLIENT_ENV)
    with _as_user_error(uri):
        client = MlflowClient(tracking_uri=uri)
        try:
            run = client.get_run(run_id)
            parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
            run = client.get_run(parent) if parent else run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(f"the tracker {uri} knows no run {run_id}: give the sweep's folder") from None
    folder = run.data.params.get("output")
    if not folder:
        raise UserError(f"the run {run_id} is of no sweep: give the sweep's folder")
    return folder


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TAG else text[: _MAX_TAG - 3] + "..."


def _now() -> int:
    """The time as MLflow has it, in milliseconds; taken when a thing happens and not when it is sent."""
    return int(time.time() * 1000)


@contextlib.contextmanager
def _as_user_error(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # MLflow raises what its transport, its database driver or its store raise.
        if not isinstance(error, MlflowException | OSError) and "sqlalchemy" not in type(error).__module__:
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"no MLflow tracker at {uri} ({reason}): start one with `mlflow server`, or leave out tracking.uri"
        ) from None
