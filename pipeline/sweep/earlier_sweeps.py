"""Expected time of a sweep, by an earlier one of the same config next to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import Config, to_dict
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.runtime.untrusted import CONFIG, parse_yaml, read_bytes
from pipeline.tracking.locations import CONFIG_FILE
from pipeline.tracking.summary import TERMINAL_STATUSES, read_summary, sweep_seconds

__all__ = ["expected_seconds"]

# Groups of keys that a trial's time depends on.
_GROUPS = ("task", "data", "model", "train", "sampler", "evaluation", "scale", "sweep")
# Number of the newest folders that are read.
_MAX_FOLDERS = 5
# Most seconds a trial that a sweep takes for anything but its trials.
_MAX_PAUSE = 300.0


def expected_seconds(config: Config) -> float | None:
    """Return the time that a sweep will take if it takes as long as the last one of the same config.

    Args:
        config: The experiment, with its output folder.

    Returns:
        Seconds; None where the folder that the output is in has no such sweep that ran without a break, or is not on
        this machine.
    """
    files, path = filesystem(config.output or "")
    if not is_local(files):
        return None
    output = Path(path)
    try:
        folders = [one for one in output.parent.iterdir() if one != output and (one / "summary.json").is_file()]
        folders.sort(key=lambda folder: (folder / "summary.json").stat().st_mtime, reverse=True)
    except OSError:
        return None
    wanted = _groups(to_dict(config))
    for folder in folders[:_MAX_FOLDERS]:
        try:
            content = parse_yaml(read_bytes(files, f"{folder}/{CONFIG_FILE}", CONFIG), CONFIG)
            if not isinstance(content, dict) or _groups(content) != wanted:
                continue
            trials = read_summary(str(folder))[1]
            # The config is written when the trials start, or start again, and the summary last when they are done.
            wall = (folder / "summary.json").stat().st_mtime - (folder / CONFIG_FILE).stat().st_mtime
        # A damaged folder is reported to the user who resumes it or writes its report.
        except (UserError, OSError, ValueError):
            continue
        seconds = [trial.seconds for trial in trials if trial.status in TERMINAL_STATUSES and trial.error is None]
        if not seconds or len(seconds) < len(trials):
            continue
        # Files that were copied may have any time, and those of a sweep that was resumed have that of its last part.
        least, most = max(*seconds, sweep_seconds(trials)), sum(seconds) + _MAX_PAUSE * len(seconds)
        if least <= wall <= most:
            return wall
    return None


def _groups(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values.get(name) for name in _GROUPS}
