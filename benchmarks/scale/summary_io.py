"""What it takes to keep the summary of many trials and to draw them in a terminal, as it was done and as it is done.

As it was: indented JSON of copies of all records, written at each evaluation, and a table of all trials, drawn twice a
second. As it is: a line a trial, written as often as takes a tenth of the driver's time, and the rows that fit the
terminal.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import harness
from benchmarks.scale.noop_trial import report
from pipeline.runtime.filesystem import write_file
from pipeline.sweep.display.console import Display
from pipeline.tracking.summary import SweepSummary
from pipeline.tracking.trial_steps import TrialSteps

__all__ = ["many_trials", "measure"]

_SHOWN = ("fid_base", "fid_gebm")


def measure(folder: Path, trials: int, repeat: int) -> list[dict[str, Any]]:
    """Return a table: seconds of each way, and the ratio of old to new, round by round.

    Args:
        folder: for the summary.
        trials: that there are, all of them running.
        repeat: rounds.
    """
    records = many_trials(folder, trials)
    tall, screen = (
        Display(records, "lsun", Console(file=io.StringIO(), force_terminal=True, width=160, height=height))
        for height in (10 * trials, 50)
    )
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "summary.json, a write": (lambda: _indented(records), records.write),
        "the table, a frame": (
            lambda: tall.console.print(tall.status),
            lambda: screen.console.print(screen.status),
        ),
    }
    rows = []
    for name, (before, after) in pairs.items():
        seconds = [(_seconds(before), _seconds(after)) for _ in range(repeat)]
        old, new = (harness.Timing(tuple(values)) for values in zip(*seconds, strict=True))
        rows.append(
            {"what": name, "trials": trials, "before, s": old, "after, s": new, "ratio": harness.ratio(old, new)}
        )
    return rows


def many_trials(folder: Path, trials: int, evaluations: int = 15) -> SweepSummary:
    """Return records as in a sweep of LSUN's experiment.

    Args:
        folder: of the sweep.
        trials: of it.
        evaluations: of each.
    """
    steps = TrialSteps.of_training(150_000)
    records = SweepSummary(
        str(folder), metric="fid_gebm", mode="min", shown=_SHOWN, facts={"experiment": "lsun"}, steps=steps
    )
    for trial in range(trials):
        params = {"train.energy_lr": 1.23456e-4, "train.base_lr": 1.23456e-4, "sampler.step_size": 1.23456e-5}
        record = records.add(f"{trial:03d}", params)
        record.status, record.mlflow_run_id = "running", f"{trial:032x}"
        for number in range(evaluations):
            found = report(10_000 * (number + 1), ["figure.png"])
            numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
            url = f"s3://bucket/sweeps/lsun/trials/{record.name}/checkpoints/step-{found['base_step']:08d}"
            records.evaluated(record, numbers | {"extractor": found["extractor"]}, url)
    return records


def _indented(records: SweepSummary) -> None:
    best = records.best()
    document = {"best": asdict(best) if best else None, "trials": [_finite(asdict(trial)) for trial in records.trials]}
    write_file(f"{records.output}/indented.json", json.dumps(document, indent=1).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not isinstance(item, float) or math.isfinite(item)}
        return {key: _finite(item) for key, item in kept.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
