"""Sections of a report on what a sweep shows: the best trial next to the second, importances of keys, and cost."""

from __future__ import annotations

from pipeline.config.scores import plus_minus
from pipeline.report.analysis import SweepResults
from pipeline.report.escaping import code, escape, format_value, table
from pipeline.report.ranked_trials import compare_best
from pipeline.tracking.summary import TERMINAL_STATUSES, TrialRecord

__all__ = ["best_and_next", "cost_section", "importances_section"]


def best_and_next(results: SweepResults, items: int) -> str:
    """Return the section of what differs between the best trial and the next; empty where there is no other.

    Args:
        results: Results of the sweep.
        items: Number of items of a list, about; with 0 there is no section.
    """
    comparison = compare_best(results)
    if comparison is None or not items:
        return ""
    best, other, difference, error, keys = comparison
    text = f"Trial {other.name} comes next, {plus_minus(abs(difference), error)} behind trial {best.name}."
    if comparison.is_clear is not None:
        clear, close = "more than two standard errors", "within two standard errors: either may be the better one"
        text += f" That is {clear if comparison.is_clear else close}."
    title = "## The best and the next"
    if not keys:
        return f"{title}\n\n{text} The search set the same in both."
    values = [[_of(trial, key) for trial in (best, other)] for key in keys]
    rows = [[code(key), *map(escape, pair)] for key, pair in zip(keys, values, strict=True)][: 2 * items]
    lines = table(["key", f"best, trial {best.name}", f"next, trial {other.name}"], rows)
    return f"{title}\n\n{text} What the search set to something else:\n\n{lines}"


def importances_section(results: SweepResults, items: int) -> str:
    """Return the section of the importances of the keys, or of the trials that they still need.

    Args:
        results: Results of the sweep.
        items: Number of items of a list, about; with 0 there is no section.
    """
    numbers = results.numeric
    if not numbers or not items:
        return ""
    if results.shares is None:
        needed, scored = results.trials_for_importances, len(results.scored)
        text = (
            f"Importances of {len(numbers)} numeric parameter{'s' if len(numbers) > 1 else ''} need {needed} trials "
            f"with a score, and there {'is' if scored == 1 else 'are'} {scored}: with fewer, chance would decide them."
        )
    else:
        ordered = sorted(results.shares.items(), key=lambda item: -item[1])[: 2 * items]
        text = (
            "Share of each numeric parameter in what decides the rank of a trial, by the permutation importance of a "
            f"random forest: {', '.join(f'{code(key)} {share:.0%}' for key, share in ordered)}."
        )
    return f"## Importances\n\n{text}"


def cost_section(results: SweepResults) -> str:
    """Return the section of what the trials cost, and on which of them it was spent.

    Args:
        results: Results of the sweep.
    """
    hours, cost, wall = results.hours, results.cost, results.records.seconds() / 3600
    text = f"The trials ran for {_hours(hours)} hours altogether"
    workers = results.records.facts.get("workers_per_trial")
    if cost is not None and isinstance(workers, int):
        text += f", each on {workers} worker{'s' if workers > 1 else ''}: {_hours(workers * hours)} worker-hours"
        text += f" and {_hours(cost.rate * hours)} GPU-hours" if cost.unit == "GPU-hours" else ""
    text += "." if not wall else f". The sweep took {_hours(wall)} hours until its last evaluation."
    spent = [
        (sum(trial.seconds for trial in results.records.trials if trial.status == status) / 3600, status)
        for status in (*TERMINAL_STATUSES, "running")
    ]
    shares = ", ".join(f"{part / hours:.0%} {status}" for part, status in spent if part)
    return f"## Cost\n\n{text}" + (f" Of that time by the trials' ends: {shares}." if shares else "")


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 99.5 else f"{hours:,.0f}"


def _of(trial: TrialRecord, key: str) -> str:
    return format_value(trial.params[key]) if key in trial.params else ""
