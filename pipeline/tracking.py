"""All that touches MLflow: one parent run a sweep, one child a trial. Only the driver is here."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pipeline.errors import UserError

__all__ = ["Tracker", "flatten"]

_MAX_PARAMS = 100  # MLflow's limit for one batch
_MAX_METRICS = 1000

# Where the UI files a metric: it groups names by what stands before the slash.
_GROUPS = {
    "energy_loss": "train",
    "base_loss": "train",
    "penalty": "train",
    "energy_lr": "train",
    "base_lr": "train",
    "energy_data": "kale",
    "energy_base": "kale",
    "base_steps_per_second": "rate",
    "images_per_second": "rate",
}
_OF_FEATURES = ("fid", "kid", "kid_std", "is", "is_std", "precision", "recall")
_OF_SAMPLES = ("nll", "distance", "off_support")  # what needs no extractor
_SKIPPED = ("base_step", "seconds_left")


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


def metric_name(name: str, extractor: str | None) -> str:
    """How the tracker calls a metric; one that depends on a feature extractor carries its name.

    Example:
        >>> metric_name("fid_gebm", "inception-v3-compat"), metric_name("energy_loss", "any")
        ('fid/gebm/inception-v3-compat', 'train/energy_loss')
        >>> metric_name("nll_gebm_validation", None)
        'nll/gebm_validation'
    """
    score, _, model = name.rpartition("_")
    if model in ("base", "gebm") and score in _OF_FEATURES:
        return f"{score}/{model}/{extractor}"
    for score in _OF_SAMPLES:
        if name.startswith(f"{score}_"):
            return f"{score}/{name.removeprefix(f'{score}_')}"
    if name.startswith("log_partition"):
        return f"kale/{name}"
    return f"{_GROUPS.get(name, 'mcmc')}/{name}"


class Tracker:
    """A sweep in MLflow.

    Args:
        uri: the server, or a database URL.
        experiment: its name there; made if it is new.
        artifacts: where a new experiment keeps its artifacts; by default where the server says.

    Raises:
        UserError: the tracker cannot be reached.
    """

    def __init__(self, uri: str, experiment: str, *, artifacts: str | None) -> None:
        self.uri, self.extractor = uri, None
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database tells of each of its tables
        with _impatient(), _one_line(uri):
            self._client = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name(experiment)
            self.experiment_id = (
                known.experiment_id
                if known
                else self._client.create_experiment(experiment, artifact_location=artifacts)
            )
        self.run_id: str | None = None

    def start_sweep(
        self, name: str, params: dict[str, Any], note: str, *, extractor: str | None, run_id: str | None = None
    ) -> str:
        """Open the parent run, or go on with an earlier one.

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
        with _one_line(self.uri):
            self.run_id = run_id or self._create(name, {MLFLOW_RUN_NOTE: note})
            if run_id:
                self._client.update_run(run_id, status="RUNNING")
            else:
                self._log_params(self.run_id, params)
        return self.run_id

    def start_trial(self, name: str, params: dict[str, Any], tags: dict[str, str], run_id: str | None = None) -> str:
        """Open a child run, or go on with an earlier one."""
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        run_id = self._create(name, {MLFLOW_PARENT_RUN_ID: str(self.run_id), **tags})
        self._log_params(run_id, params)
        return run_id

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return self._client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        entries = [Param(key, str(value)) for key, value in flatten(params).items()]
        for start in range(0, len(entries), _MAX_PARAMS):
            self._client.log_batch(run_id, params=entries[start : start + _MAX_PARAMS])

    def log_metrics(self, run_id: str, metrics: dict[str, Any], step: int) -> None:
        """Log numbers under their group, with the base step as the step."""
        self._log(
            run_id,
            {
                metric_name(name, self.extractor): value
                for name, value in metrics.items()
                if isinstance(value, int | float) and name not in _SKIPPED
            },
            step,
        )

    def log_chain(self, run_id: str, score: str, chain: dict[int, float], base_step: int) -> None:
        """Log a score along the chain, one metric a place on it, so that each has its curve over training."""
        carried = f"/{self.extractor}" if self.extractor else ""
        names = {f"{score}_chain/{int(step):05d}{carried}": value for step, value in chain.items()}
        self._log(run_id, names, base_step)

    def _log(self, run_id: str, metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)]
        for start in range(0, len(entries), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=entries[start : start + _MAX_METRICS])

    def log_files(self, run_id: str, urls: list[str], folder: str | None = None) -> None:
        """Log files that lie behind fsspec URLs as artifacts."""
        for url in urls:
            files, path = fsspec.url_to_fs(url)
            with tempfile.TemporaryDirectory() as here:
                local = Path(here) / path.rsplit("/", 1)[-1]
                local.write_bytes(files.cat_file(path))
                self._client.log_artifact(run_id, str(local), folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self._client.log_text(run_id, text, name)

    def describe(self, run_id: str, note: str, tags: dict[str, str]) -> None:
        """Set a run's description and tags."""
        entries = [RunTag(key, value) for key, value in {MLFLOW_RUN_NOTE: note, **tags}.items()]
        self._client.log_batch(run_id, tags=entries)

    def end(self, run_id: str, status: str) -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status=status)


@contextlib.contextmanager
def _one_line(uri: str) -> Iterator[None]:
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


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Ask once: whoever mistyped an address should not wait through minutes of retries."""
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in patience}
    os.environ.update(patience)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
