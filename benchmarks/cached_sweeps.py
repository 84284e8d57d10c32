"""Pages of results: sweeps run as their users run them, and not a second time; numbers as a table has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.report.comparisons.groups import group_runs
from pipeline.report.comparisons.sweeps import load_sweeps
from pipeline.tracking.seed_statistics import mean_and_error
from pipeline.tracking.summary import TrialRecord

__all__ = ["evaluation", "runs", "spread", "summary"]


def summary(folder: Path, verb: str, *words: str) -> dict[str, Any]:
    """Return the summary of a sweep, which is run if it is missing, and resumed if it was interrupted.

    Args:
        folder: of the sweep.
        verb: ``sweep`` or ``train``.
        words: of its command line.

    Returns:
        The contents of its ``summary.json``.
    """
    written = folder / "summary.json"
    if not written.exists():
        _command(verb, *words, f"output={folder}")
    elif any(trial["status"] in ("pending", "running") for trial in json.loads(written.read_text())["trials"]):
        _command(verb, f"resume={folder}")
    return json.loads(written.read_text())


def runs(folder: Path, verb: str, *words: str) -> dict[str, dict[int, TrialRecord]]:
    """Return the runs of a sweep, as ``pipeline.compare`` groups them.

    Args:
        folder: of the sweep, which is run if it is missing, and resumed if it was interrupted.
        verb: ``sweep`` or ``train``.
        words: of its command line.

    Returns:
        Objective -> seed -> the trial, in the order of the seeds.
    """
    summary(folder, verb, *words)
    groups = group_runs(load_sweeps([str(folder)]))
    return {group.objective: dict(sorted(group.runs.items())) for group in groups}


def evaluation(folder: Path, *words: str) -> dict[str, Any]:
    """Return the result of an evaluation, which is run if it is missing.

    Args:
        folder: of the evaluation.
        words: of its command line.

    Returns:
        The contents of its ``evaluation.json``.
    """
    written = folder / "evaluation.json"
    if not written.exists():
        _command("evaluate", *words, f"output={folder}")
    return json.loads(written.read_text())


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean and standard error, as written in a table.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        '2.00 ± 0.58'
    """
    estimate = mean_and_error(values)
    return f"{estimate.mean:.{digits}f} ± {estimate.error:.{digits}f}"


def _command(verb: str, *words: str) -> None:
    """Run a verb as a user does, and stop where it fails."""
    done = subprocess.run([sys.executable, "-m", f"pipeline.{verb}", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)
