"""Tracker of a sweep in MLflow: a parent run for the sweep and a child run for each trial. Only the driver has one."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pipeline.config.printed_commands import quote_words
from pipeline.config.scores import STANDARD_ERROR, ChainPoint
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.runtime.redaction import redact
from pipeline.runtime.user_folders import default_tracker
from pipeline.tracking.artifacts import require_remote
from pipeline.tracking.database import opening
from pipeline.tracking.journal import Journal
from pipeline.tracking.journal_delivery import Delivery, log_params
from pipeline.tracking.locations import relative_place
from pipeline.tracking.metric_names import SKIPPED, best_metric_name, final_metric_name, metric_name
from pipeline.tracking.registry import Package
from pipeline.tracking.resumed_run import why_not_continued
from pipeline.tracking.shared_view import shared_view

__all__ = ["Tracker", "flatten", "journal_path", "run_folder"]

# Characters of a tag or a description, of which MLflow's older servers take 5,000.
_MAX_TAG = 4800
# MLflow's client retries for minutes, which is long for a mistyped address, and the journal retries anyway. Its
# progress bars and addresses would be printed across the live table.
_CLIENT_ENV = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# The kind by which MLflow's UI shows an experiment that is not about a language model.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# The tag that names the store of a run.
_STORE = "store_checksum"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict with dotted keys.

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

    The constructor connects, so that a mistyped address is found at once, and :meth:`start_sweep` opens the run, before
    which nothing can be logged. From then on no caller waits for the server: entries go through a
    :class:`pipeline.tracking.journal.Journal`, whose thread delivers them whenever the server answers.

    Args:
        uri: Address of the server, or a database URL.
        experiment: Name of the experiment; created if it is new.
        artifacts: Location of a new experiment's artifacts (default: the server's choice).
        journal: File of the journal, on a disk of this machine.
        folder: Folder of the sweep, behind any fsspec URL, which holds the files that are logged.
        notify: Called with a one-line message when the server stops answering, and when it is back.
        package: Writes a checkpoint as an MLflow model; without it no model is registered.

    Raises:
        UserError: When the tracker cannot be reached.
    """

    # Both exist from `start_sweep` on.
    _delivery: Delivery
    _journal: Journal

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        artifacts: str | None,
        journal: Path,
        folder: str,
        notify: Callable[[str], None] = lambda message: None,
        package: Package | None = None,
    ) -> None:
        self.uri, self._folder, self._package = uri, folder, package
        self._journal_path, self._notify = journal, notify
        self.extractor: str | None = None
        self._dataset: dict[str, Any] | None = None
        # MLflow logs each table of a new database.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        os.environ.update(_CLIENT_ENV)
        with _as_user_error(uri), opening(uri):
            self._client = MlflowClient(tracking_uri=uri)
            existing = _ensure_experiment(self._client, uri, experiment, artifacts)
        self.experiment_id = existing.experiment_id
        require_remote(uri, existing.artifact_location)

    @property
    def run_id(self) -> str:
        """Id of the sweep's run, from :meth:`start_sweep` on."""
        return self._delivery.run_id

    def start_sweep(
        self, name: str, params: dict[str, Any], note: str, *, extractor: str | None, run_id: str | None = None
    ) -> str:
        """Open the parent run, or resume an earlier one and send what its journal still holds.

        Args:
            name: Name of the run.
            params: Its parameters, nested or flat.
            note: Its description, in Markdown.
            extractor: The feature extractor, named in the metrics; ``None`` where there is none.
            run_id: Run of an interrupted sweep. Where it was deleted, the tracker is new, or the run is not this
                folder's, another is made; see :func:`pipeline.tracking.resumed_run.why_not_continued`.

        Returns:
            The id of the run.

        Raises:
            UserError: When the tracker does not answer, or the journal is damaged.
        """
        self.extractor = extractor
        with _as_user_error(self.uri):
            if run_id and (reason := why_not_continued(self._client, run_id, self._folder)):
                self._notify(
                    f"run {run_id} {reason} (tracker {self.uri}): this sweep and its trials get new runs from "
                    f"summary.json, without their pictures"
                )
                run_id = None
            if run_id:
                self._client.update_run(run_id, status="RUNNING")
            else:
                tags = {MLFLOW_RUN_NOTE: redact(note)}
                run_id = str(self._client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id)
                log_params(self._client, run_id, redact(flatten(params)))
        self._delivery = Delivery(
            self._client, self.experiment_id, run_id, self._folder, self._package, notify=self._notify
        )
        self._journal = Journal(self._journal_path, self._deliver, self._notify)
        return run_id

    def start_trial(self, trial: str, params: dict[str, Any], tags: dict[str, str], config: str = "") -> None:
        """Open a child run, or reopen the one that this trial has.

        Args:
            trial: Name of the trial, unique in the sweep.
            params: Its parameters, nested or flat.
            tags: Tags to search by in the UI.
            config: Its whole config as YAML, which becomes the artifact ``config.yaml``.
        """
        flat = {key: str(value) for key, value in flatten(params).items()}
        if self._dataset is None:
            self._put("start", trial, params=flat, tags=tags, time=_now(), config=config)
        else:
            tags = {_STORE: self._dataset["checksum"], **tags}
            self._put("start", trial, params=flat, tags=tags, time=_now(), config=config)
            self._put("data", trial, data=self._dataset)

    def log_data(self, data: dict[str, Any]) -> None:
        """Log the data set of the sweep, and of each trial that starts from now on.

        Args:
            data: The data set, from :func:`pipeline.tracking.provenance.describe_dataset`.
        """
        self._dataset = data
        self._put("tags", None, tags={_STORE: data["checksum"]})
        self._put("data", None, data=data)

    def log_metrics(self, trial: str | None, metrics: dict[str, Any], step: int) -> None:
        """Log numbers under their group at a base step, to a trial's run or, for ``None``, to the sweep's."""
        numbers = {
            metric_name(name, self.extractor): value
            for name, value in metrics.items()
            if isinstance(value, int | float) and name not in SKIPPED
        }
        self._log(trial, numbers, step)

    def log_best(self, trial: str, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of a trial's best evaluation so far, by which the view of trials is ordered."""
        self._log(trial, {best_metric_name(name, self.extractor): value for name, value in metrics.items()}, step)

    def log_chain(self, trial: str, score: str, chain: Mapping[int, ChainPoint], base_step: int) -> None:
        """Log a score along the chain, one metric per position, so that each has its curve over training."""
        suffix, metrics = f".{self.extractor}" if self.extractor else "", {}
        for step, point in chain.items():
            name = f"{score}_chain/{step:05d}"
            metrics[f"{name}{suffix}"] = point.score
            if point.standard_error is not None:
                metrics[f"{name}{STANDARD_ERROR}{suffix}"] = point.standard_error
        self._log(trial, metrics, base_step)

    def _log(self, trial: str | None, metrics: Mapping[str, float], step: int) -> None:
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if finite:
            self._put("metrics", trial, metrics=finite, step=step, time=_now())

    def log_files(self, trial: str | None, urls: list[str], folder: str | None = None) -> None:
        """Log files of the sweep's folder as artifacts; they are read when they are sent."""
        for url in urls:
            self._put("file", trial, file=relative_place(self._folder, url), folder=folder)

    def log_pictures(self, trial: str, urls: list[str], base_step: int) -> None:
        """Log the pictures of an evaluation.

        PNG files of one name make a slider over base steps; other files, such as an animation, are artifacts in a
        folder of that step, since the UI has no slider for them.
        """
        for url in urls:
            file, name = relative_place(self._folder, url), url.rsplit("/", 1)[-1]
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
        self._put(
            "model",
            trial,
            name=name,
            checkpoint=checkpoint,
            sampler=sampler,
            base_step=base_step,
            description=description,
            tags=tags,
        )

    def describe(self, trial: str | None, note: str, tags: dict[str, str]) -> None:
        """Set a run's description and tags; those longer than MLflow takes are cut."""
        self.tag(trial, {MLFLOW_RUN_NOTE: note, **tags})

    def tag(self, trial: str | None, tags: dict[str, str]) -> None:
        """Set tags; those longer than MLflow takes are cut, since it would refuse all of them."""
        # Redacted before they are cut: half a secret is not recognized.
        self._put("tags", trial, tags={key: _truncate(redact(value)) for key, value in tags.items()})

    def end(self, trial: str | None, status: str, name: str | None = None) -> None:
        """Close a run.

        Args:
            trial: Name of the trial; ``None`` for the sweep's own run.
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            name: The run's new name; ``None`` for the one that it has.
        """
        self._put("end", trial, status=status, time=_now(), name=name)

    def share_view(
        self, metrics: Sequence[str], score: str, mode: str, searched: Sequence[str], *, has_finals: bool
    ) -> None:
        """Keep a view of the trials in the tracker; see :func:`pipeline.tracking.shared_view.shared_view`.

        Args:
            metrics: Numbers of a trial's best evaluation that are columns; see :meth:`log_best`.
            score: The one that trials are ranked by.
            mode: ``min`` or ``max``.
            searched: Keys that the search sets.
            has_finals: Whether the second score of finalists is a column as well.
        """
        names, best = (
            [best_metric_name(name, self.extractor) for name in metrics],
            best_metric_name(score, self.extractor),
        )
        names += [final_metric_name(score, self.extractor)] if has_finals else []
        view = shared_view(self.run_id, names, best, is_ascending=mode == "min", searched=searched)
        self._put("view", None, view=view)

    def trial_run_id(self, trial: str) -> str | None:
        """Return the id of a trial's run, or ``None`` as long as the server does not have it."""
        return self._delivery.trial_run_ids.get(trial)

    def close(self, flush_timeout: float) -> int:
        """Wait until all entries are sent, and stop.

        Args:
            flush_timeout: Time to wait at most, in seconds.

        Returns:
            The number of entries that are left in the journal.
        """
        return self._journal.close(flush_timeout)

    def _put(self, kind: str, trial: str | None, **entry: Any) -> None:
        self._journal.put(redact({"kind": kind, "trial": trial, **entry}))

    def _deliver(self, entries: list[dict[str, Any]]) -> None:
        self._delivery.deliver(entries)


def journal_path(output: str) -> Path:
    """Return the path of a sweep's journal: in its folder, or under ``results/`` where that is not a local one.

    Args:
        output: Folder of the sweep, behind any fsspec URL.
    """
    files, path = filesystem(output)
    if is_local(files):
        return Path(path) / "tracking.jsonl"
    name = hashlib.sha256(output.encode()).hexdigest()[:8]
    return Path("results").absolute() / "tracking" / f"{output.rsplit('/', 1)[-1]}-{name}.jsonl"


def run_folder(run_id: str) -> str:
    """Return the folder of a sweep, by the id of its run in MLflow or of a trial's.

    Args:
        run_id: Id of the run in the tracker that ``MLFLOW_TRACKING_URI`` names (default: ``results/mlflow.db``).

    Raises:
        UserError: When the tracker does not answer or does not know the run, or the run is not a sweep's.
    """
    default = Path("results").absolute() / "mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_tracker()
    if uri == default_tracker() and not default.exists():
        raise UserError(f"no tracker is named and there is no {default}: set MLFLOW_TRACKING_URI, or pass the folder")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.update(_CLIENT_ENV)
    with _as_user_error(uri):
        with opening(uri):
            client = MlflowClient(tracking_uri=uri)
        try:
            run = client.get_run(run_id)
            parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
            run = client.get_run(parent) if parent else run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(f"run {run_id} not found at {uri}: pass the sweep's folder") from None
    folder = run.data.params.get("output")
    if not folder:
        raise UserError(f"run {run_id} is not a sweep's: pass the sweep's folder")
    return folder


def _ensure_experiment(client: MlflowClient, uri: str, name: str, artifacts: str | None) -> Experiment:
    """Return an experiment, which is created if it is new."""
    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            return client.get_experiment(
                client.create_experiment(name, artifact_location=artifacts, tags=_EXPERIMENT_TAGS)
            )
        except MlflowException as error:
            # Another sweep has created it meanwhile.
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or not (existing := client.get_experiment_by_name(name)):
                raise
    if existing.lifecycle_stage == LifecycleStage.DELETED:
        words = ("mlflow", "experiments", "restore", "--experiment-id", existing.experiment_id)
        raise UserError(
            f"experiment {name} is deleted at {uri}: restore it with `{quote_words(*words, MLFLOW_TRACKING_URI=uri)}`, "
            f"or use tracking.experiment=<another name>"
        )
    return existing


def _truncate(text: str) -> str:
    """Return a text, cut to the length that MLflow takes."""
    return text if len(text) <= _MAX_TAG else text[: _MAX_TAG - 3] + "..."


def _now() -> int:
    """Return the time in milliseconds, as MLflow has it: the time of the event, not of its delivery."""
    return int(time.time() * 1000)


@contextlib.contextmanager
def _as_user_error(uri: str) -> Iterator[None]:
    """Raise what MLflow's client raises as a ``UserError``."""
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
