"""Sweeps that are compared: read from their folders alone, and refused where a comparison would mean nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.own_choices import OUTSIDE
from pipeline.report.analysis import SweepResults, load_results
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.untrusted import CONFIG, parse_yaml, read_bytes
from pipeline.tracking.summary import TrialRecord

__all__ = ["NETWORKS", "OBJECTIVE", "SEED", "ComparedSweep", "load_sweeps"]

SEED, NETWORKS, OBJECTIVE = "seed", "model.networks", "train.objective"
"""Keys that runs are paired by, and those that they are grouped by, searched or not."""

# Groups of keys that say where and how a sweep ran, and what it searched, and not what a trial is.
_NOT_OF_A_TRIAL = ("sweep.", "spaces.", "scale.", "ray.", "tracking.", "checkpoints.", "data.source.", "evaluation.")
# What decides how good the best of a search is.
_BUDGET = ("sweep.search", "sweep.scheduler", "sweep.num_trials", "sweep.space")


@dataclass(frozen=True)
class ComparedSweep:
    """A sweep, and what of it has to agree with the others.

    Attributes:
        results: Its trials.
        config: Its config, each value by its dotted key.
    """

    results: SweepResults
    config: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Folder of the sweep."""
        return self.results.output

    @property
    def data(self) -> str:
        """Name of the store that it was trained on."""
        store = str(self.results.records.facts.get("store") or self.config.get("data.store") or "?")
        return store.rstrip("/").rpartition("/")[2]

    @property
    def checksum(self) -> str:
        """Checksum of that store."""
        return str(self.results.records.facts.get("store_checksum", "none"))

    @property
    def extractors(self) -> list[str]:
        """Feature extractors of its scores."""
        own = [trial.best_metrics.get("extractor") for trial in self.results.records.trials]
        found = {name for name in own if isinstance(name, str)}
        return sorted(found or {str(self.results.records.facts.get("extractor", "none"))})

    @property
    def num_samples(self) -> int:
        """Samples of each score."""
        return int(self.results.settings["num_samples"])

    @property
    def score(self) -> str:
        """Name of the score that is compared, without the end of the chain: on test data where validation data rank."""
        return self.results.records.metric.replace("_validation", "").removesuffix("_gebm").removesuffix("_base")

    @property
    def workers(self) -> int:
        """Workers of a trial."""
        workers = self.config.get("scale.num_workers", 1)
        return workers if isinstance(workers, int) and workers > 0 else 1

    def value(self, trial: TrialRecord, key: str, default: Any) -> Any:
        """Return the value of a key for a trial: the one that the search set, or the config's."""
        return trial.params.get(key, self.config.get(key, default))

    def fixed_keys(self) -> dict[str, str]:
        """Return the keys that say what its runs are, as JSON by key: without the seed, and with what is searched."""
        searched = {key for trial in self.results.records.trials for key in trial.params}
        apart = {SEED, NETWORKS, OBJECTIVE, "name", "data.store", *OUTSIDE, *searched}
        keys = {
            key: value for key, value in self.config.items() if key not in apart and not key.startswith(_NOT_OF_A_TRIAL)
        }
        if searched - {SEED, NETWORKS, OBJECTIVE}:
            budget = [key for key in self.config if key.startswith(_BUDGET)]
            keys |= {key: self.config[key] for key in budget}
        return {key: json.dumps(value, sort_keys=True, default=str) for key, value in keys.items()}


def load_sweeps(folders: Sequence[str]) -> list[ComparedSweep]:
    """Load sweeps, and refuse those that cannot be compared.

    Args:
        folders: Their folders, each a path or an fsspec URL.

    Raises:
        UserError: A folder is no sweep or given twice, or two sweeps are not measured alike; one line says which.
    """
    typed: dict[str, str] = {}
    for folder in folders:
        local = "://" not in folder
        path = os.path.realpath(os.path.expanduser(folder)) if local else folder.rstrip("/")
        if path in typed:
            raise UserError(f"{folder} is the same folder as {typed[path]}: name each sweep once")
        typed[path] = folder
    sweeps = [_load(folder.rstrip("/")) for folder in folders]
    _require_comparable(sweeps)
    return sweeps


def _load(folder: str) -> ComparedSweep:
    results = load_results(folder)
    files, path = filesystem(folder)
    try:
        config = parse_yaml(read_bytes(files, f"{path}/config.yaml", CONFIG), CONFIG)
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.yaml: copy it from the machine that ran the sweep") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}/config.yaml cannot be read ({one_line(error)})") from None
    if not isinstance(config, dict) or "num_samples" not in results.settings:
        raise UserError(f"{folder}/config.yaml is damaged: it lacks the settings of the sweep")
    return ComparedSweep(results, dict(_flatten(config)))


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        # A search space's keys are dotted already.
        if isinstance(value, Mapping) and name not in ("sweep.space", "spaces"):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _require_comparable(sweeps: Sequence[ComparedSweep]) -> None:
    """Refuse sweeps of other tasks or scores, and of one data set those that are not measured on it alike."""
    for sweep in sweeps:
        if len(sweep.extractors) > 1:
            names = ", ".join(sweep.extractors)
            raise UserError(f"not comparable: trials of {sweep.folder} were measured by {names}; leave the sweep out")
        for other in sweeps:
            if other is sweep:
                break
            for what, mine, others in _conditions(sweep, other):
                if mine != others:
                    raise UserError(
                        f"not comparable: {what} of {sweep.folder} is {mine}, and of {other.folder} {others}; leave "
                        f"one of them out"
                    )


def _conditions(sweep: ComparedSweep, other: ComparedSweep) -> Iterator[tuple[str, str, str]]:
    """Yield what has to agree, with both values."""
    yield "the task", str(sweep.config.get("task")), str(other.config.get("task"))
    yield "the score", sweep.score, other.score
    yield "the better end of the score", sweep.results.records.mode, other.results.records.mode
    if sweep.data != other.data:
        return
    yield f"the checksum of the store {sweep.data}", sweep.checksum[:16], other.checksum[:16]
    yield "the feature extractor", ", ".join(sweep.extractors), ", ".join(other.extractors)
    yield "the number of samples of a score", f"{sweep.num_samples:,}", f"{other.num_samples:,}"
