"""Pages of results: sweeps run as their users run them, and not a second time; numbers as a table has them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["evaluation", "spread", "summary"]


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


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard error, as written in a table."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def _command(verb: str, *words: str) -> None:
    """Run a verb as a user does, and stop where it fails."""
    done = subprocess.run([sys.executable, "-m", f"pipeline.{verb}", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)
