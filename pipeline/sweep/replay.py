"""Reports that a trial wrote down and Ray did not pass on."""

from __future__ import annotations

import logging
from typing import Any

from pipeline import config as schema
from pipeline.runtime.errors import one_line
from pipeline.tracking.locations import own_checkpoint, present_place
from pipeline.tracking.summary import TrialRecord
from pipeline.tracking.trial_reports import missed_reports

__all__ = ["lost_reports"]

log = logging.getLogger(__name__)


def lost_reports(config: schema.Config, record: TrialRecord, before: int | None = None) -> list[dict[str, Any]]:
    """Return the reports of a trial that have not been taken into its record, and note in it that they are.

    Args:
        config: The experiment.
        record: The trial.
        before: Number of a report that has just arrived; None to return all there are.
    """
    folder = f"{config.output}/trials/{record.name}"
    # Nothing is missing between two reports that follow one another, which is all that happens for days.
    if before is not None and before <= record.reports + 1:
        return []
    try:
        missed = [item for item in missed_reports(folder, record.reports) if before is None or item[0] < before]
    # Each file system has exceptions of its own.
    except Exception as error:
        log.warning(f"trial {record.name}: cannot read its reports at {folder} ({one_line(error)})")
        return []
    if missed:
        record.reports = missed[-1][0]
        log.info(f"trial {record.name}: {len(missed)} report(s) were lost on their way and are read from its folder")
    return [_where_it_is(config, record, report) for _, report in missed]


def _where_it_is(config: schema.Config, record: TrialRecord, report: dict[str, Any]) -> dict[str, Any]:
    """Return a report with its files where the sweep is now; a checkpoint that is not the trial's own is left out."""
    output, checkpoint = str(config.output), report.pop("checkpoint", None)
    if checkpoint != config.checkpoint:
        try:
            checkpoint = own_checkpoint(output, record.name, checkpoint)
        except ValueError:
            checkpoint = None
    if checkpoint is not None:
        report["checkpoint"] = checkpoint
    pictures = {key: [present_place(output, url) for url in report[key]] for key in ("figures", "start_figures")}
    return {**report, **pictures}
