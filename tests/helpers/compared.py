"""Folders of finished sweeps with chosen scores, for the tests of reports and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import from_dict, to_dict
from pipeline.tracking.summary import SweepSummary, TrialRecord

__all__ = ["score_of", "write_sweep"]

FACTS = {
    "experiment": "digits",
    "measure": "FID by an extractor",
    "extractor": "classifier-1",
    "store": "/stores/digits-8",
    "store_checksum": "1" * 64,
}


def score_of(params: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Scores that differ between searched values and between seeds."""
    offset = sum(len(str(value)) for value in params.values())
    return {"fid_base": 9.0 + offset + 0.3 * seed, "fid_gebm": 7.0 + offset + 0.1 * seed**2}


def write_sweep(
    folder: Path,
    params: Sequence[Mapping[str, Any]] = ({},),
    scores: Callable[[Mapping[str, Any], int], Mapping[str, float]] = score_of,
    facts: Mapping[str, Any] | None = None,
    mode: str = "min",
    metric: str = "fid_gebm",
    finish: Callable[[TrialRecord], None] = lambda trial: None,
    **groups: Any,
) -> str:
    """Write the summary and the config of a sweep with a trial for each of ``params``."""
    values: dict[str, Any] = {
        "name": "digits",
        "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
        "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
    }
    for key, value in groups.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    config = from_dict(values)
    prefix = metric.removesuffix("_gebm").removesuffix("_base")
    shown = (f"{prefix}_base", f"{prefix}_gebm")
    all_facts = {key: value for key, value in {**FACTS, **(facts or {})}.items() if value is not None}
    records = SweepSummary(str(folder), metric=metric, mode=mode, shown=shown, facts=all_facts)
    for index, searched in enumerate(params):
        trial = records.add(f"{index:03d}", dict(searched))
        own = {key: value for key, value in searched.items() if key != "seed"}
        metrics = {"base_step": 10, **scores(own, searched.get("seed", config.seed))}
        records.evaluated(trial, metrics, f"{folder}/trials/{trial.name}/checkpoints/step-00000010")
        trial.status, trial.seconds = "finished", 1800.0
        finish(trial)
    folder.mkdir(parents=True, exist_ok=True)
    records.write()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    return str(folder)
