"""A trial that trains nothing: it reports what a trial of images reports, at the given times.

This module is imported by every trial's process, so it imports what ``pipeline.sweep.trainable`` does and no more.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pipeline.sweep.trainable import TRIAL_NAME_KEY, report_to_tune

__all__ = ["SENT", "dummy", "report"]

SENT = "sent"  # the key under which a report says when it was sent; who measures takes it out again

_POLLED = 0.5  # seconds between two looks for the gate


def dummy(params: dict[str, Any], settings: dict[str, Any]) -> None:
    """Run in place of ``pipeline.sweep.trainable.trainable``, under Tune.

    It reports once, and waits until the gate is opened. Then it reports through phases, each with a start, an end and a
    period: seconds between two reports, each trial at a moment of its own, or as soon as the report before is taken
    where the period is 0.

    Args:
        params: keys that the search has set, and the trial's name.
        settings: ``gate``, a file that will hold the phases; ``trials``; ``evaluate_every``, in reports; ``figures``,
            URLs that each evaluation names; ``output``.
    """
    name = params[TRIAL_NAME_KEY]
    checkpoint = f"{settings['output']}/trials/{name}/checkpoints/step-00000000"
    report_to_tune(report(0) | {SENT: time.time()}, with_checkpoint=False)
    gate, number = Path(settings["gate"]), 1
    while not gate.exists():
        time.sleep(_POLLED)
    for start, end, period in json.loads(gate.read_text()):
        due = start + period * int(name) / settings["trials"]
        while max(due, time.time()) < end:
            time.sleep(max(0.0, due - time.time()))
            # Trials that began together evaluate at different times: they do not stay together.
            evaluated = (number + int(name)) % settings["evaluate_every"] == 0
            found = report(number, settings["figures"], checkpoint) if evaluated else report(number)
            report_to_tune(found | {SENT: time.time()}, with_checkpoint=False)
            due, number = due + period, number + 1


def report(number: int, figures: list[str] | None = None, checkpoint: str | None = None) -> dict[str, Any]:
    """Return a report with the number of values that a trial of images has.

    Args:
        number: of the report.
        figures: URLs of an evaluation's figures; no evaluation without them.
        checkpoint: URL of the evaluated checkpoint.
    """
    wave = 1.0 + (number * 0.618) % 1.0  # numbers that change, as MLflow keeps a metric once that does not
    found: dict[str, Any] = {
        "base_step": number,
        "energy_loss": -wave,
        "base_loss": wave,
        "penalty": wave,
        "energy_data": wave,
        "energy_base": wave,
        "log_partition": wave,
        "base_steps_per_second": wave,
        "images_per_second": wave,
        "flops_per_second": wave,
        "fraction_of_peak": wave,
        "seconds_left": wave,
        "energy_lr": wave,
        "base_lr": wave,
    }
    if figures is None:
        return found
    return found | {
        "fid_base": 10 * wave,
        "fid_gebm": 9 * wave,
        "acceptance": wave,
        "ess": wave,
        "r_hat": wave,
        "log_partition_monte_carlo": wave,
        "log_partition_monte_carlo_standard_error": wave,
        "energy_drop": wave,
        "displacement": wave,
        "restarts": wave,
        "chain": {str(100 * point): [9 * wave, wave] for point in range(11)},
        "extractor": "inception-v3-compat",
        "figures": figures,
        "evaluation_seconds": wave,
        "checkpoint": checkpoint,
    }
