"""Report in Markdown, which MLflow shows as a run's description."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

from pipeline.config.compose import format_overrides
from pipeline.config.own_choices import own_overrides
from pipeline.config.printed_commands import command_words
from pipeline.config.scores import difference, format_score, plus_minus
from pipeline.report.analysis import SweepResults
from pipeline.report.escaping import code, code_block, escape, format_value, table
from pipeline.report.findings import best_and_next, cost_section, importances_section
from pipeline.tracking.finalists import CLOSE, close_to_best, order_changes
from pipeline.tracking.finalists_table import finalists_table
from pipeline.tracking.summary import TrialRecord

__all__ = [
    "LIMIT",
    "markdown",
    "sections",
]

LIMIT = 4800
"""Characters of a description, of which MLflow's older servers take 5,000."""

# Rows of the table, and items of each list, from the most to the fewest: the first for which there is room.
_ROWS = (20, 10, 5, 2, 1, 0)
_ITEMS = (3, 2, 1, 0)
_ALL_ITEMS = 1000
# Rows of the table of a page, which stays below 10 MB.
_MAX_ROWS = 2000
# Characters of a warning in a description.
_MAX_WARNING = 200
# And of the reason of a failure.
_MAX_ERROR = 300
# Overrides of the sweep that a single training does not take.
_SWEEP_ONLY = ("sweep.", "output=", "resume=", "log=", "-")
# Characters of a line of a command; MLflow's UI cuts longer ones.
_LINE_WIDTH = 100


def markdown(results: SweepResults, limit: int | None = LIMIT) -> str:
    """Return the report in Markdown.

    Args:
        results: Results of the sweep.
        limit: Number of characters at most; rows of the table are left out first, then items of lists. ``None`` for
            the complete report.
    """
    if limit is None:
        return _joined(_sections(results, len(results.records.trials), _ALL_ITEMS))
    text = ""
    for rows, items in [*((rows, _ITEMS[0]) for rows in _ROWS), *((0, items) for items in _ITEMS[1:])]:
        text = _joined(_sections(results, rows, items))
        if len(text) <= limit:
            break
    return text[:limit]


def sections(results: SweepResults) -> dict[str, str]:
    """Return the sections of the report for a page of its own, in Markdown, with all trials that a page has room for.

    Args:
        results: Results of the sweep.

    Returns:
        Key of a section -> its text, which may be empty.
    """
    return _sections(results, _MAX_ROWS, _ALL_ITEMS) | {"headline": f"# {_headline(results)}"}


def _joined(parts: dict[str, str]) -> str:
    return "\n\n".join(part for part in parts.values() if part)


def _sections(results: SweepResults, rows: int, items: int) -> dict[str, str]:
    """Return the sections with a number of rows of the table, and a number of items in each list."""
    return {
        # Lines of a large heading that is wrapped overlap in MLflow's UI.
        "headline": f"**{_headline(results)}**",
        "setup": _setup(results),
        "best": _best_trial(results, items),
        "next": best_and_next(results, items),
        "finalists": _finalists(results, items),
        "warnings": _warnings(results, items),
        "trials": _table(results, rows),
        "importances": importances_section(results, items),
        "cost": cost_section(results),
        "ended": _pruned_and_failed(results, items),
        "commands": _next_steps(results),
    }


def _headline(results: SweepResults) -> str:
    """Return the result in a line: MLflow shows little more of a description until it is expanded."""
    trials, best = f"{len(results.records.trials)} trials by {escape(results.measure)}", results.records.best()
    count = f"{escape(results.experiment)}: {trials}"
    if best is None:
        return count
    notes = "; ".join(filter(None, [results.trial_temperature(best), "with warnings" if best.warnings else None]))
    return f"{count}, the best {format_score(results.records.final_metrics(best), results.metric)}" + (
        f" ({notes})" if notes else ""
    )


def _setup(results: SweepResults) -> str:
    """Return the section of what was searched."""
    settings = results.settings
    lines = ["## Setup"]
    if settings:
        better = "lower" if results.records.mode == "min" else "higher"
        samples = f", over {settings['num_samples']:,} samples" if results.records.facts.get("extractor") else ""
        lines.append(
            f"Search {escape(settings['search'])}, scheduler {escape(settings['scheduler'])}, ranked by "
            f"{code(results.metric)}, {better} is better{samples}."
        )
        lines += [f"- {code(key)}: {code(json.dumps(form))}" for key, form in list(settings["space"].items())[:20]]
    return "\n".join([lines[0], "", *lines[1:]])


def _best_trial(results: SweepResults, items: int) -> str:
    """Return the section of the best trial."""
    best = results.records.best()
    if best is None:
        return "## Best trial\n\nNo trial has been evaluated so far."
    params = ", ".join(f"{code(key)} = {escape(format_value(value))}" for key, value in best.params.items())
    metrics, samples = results.records.final_metrics(best), results.records.final_samples(best)
    scores = ", ".join(
        f"{code(name)} {format_score(metrics, name)}"
        for name in results.records.shown
        if isinstance(metrics.get(name), int | float)
    )
    if samples is not None:
        scores += f" over {samples:,} fresh samples"
    temperature = results.trial_temperature(best)
    if temperature is not None:
        scores += f" ({temperature})"
    if best.warnings:
        scores += f". **Do not rely on this score before its warnings are looked into**: {_list_warnings(best, items)}"
    base_step = escape(str(best.best_metrics.get("base_step", "?")))
    return (
        f"## Best trial\n\nThe best is trial {best.name} at base step {base_step}: "
        f"{scores}.{_gain(results, best)} Its parameters: {params or 'none searched'}."
    )


def _gain(results: SweepResults, trial: TrialRecord) -> str:
    """Return a sentence that compares a trial's GEBM with its base; empty where one has no score."""
    added = difference(results.records.final_metrics(trial), *results.records.shown[:2])
    if added is None:
        return ""
    gain = added.score * (-1 if results.records.mode == "min" else 1)
    verdict = "better" if gain > 0 else "no better" if gain == 0 else "worse"
    if not added.standard_error:
        return f" With its energy it is {verdict} than its base alone, by {abs(gain):.3g}."
    difference_in_words = f"{verdict} than its base alone, by {plus_minus(abs(gain), added.standard_error)}"
    if abs(gain) <= CLOSE * added.standard_error:
        return f" With its energy it is {difference_in_words}: within two standard errors, which shows nothing."
    return f" With its energy it is {difference_in_words}."


def _list_warnings(trial: TrialRecord, items: int) -> str:
    """Return a trial's warnings in one line, the first ``items`` of them."""
    shown = [line if items == _ALL_ITEMS else line[:_MAX_WARNING] for line in trial.warnings[:items]]
    left = len(trial.warnings) - len(shown)
    more = [f"{left} more" if shown else f"{left} warning{'s' if left > 1 else ''}"] if left else []
    return "; ".join([*map(escape, shown), *more])


def _finalists(results: SweepResults, items: int) -> str:
    """Return the section of the finalists: what their second scores changed; empty where there are none."""
    finals = results.records.finals()
    if not finals:
        return ""
    close = len(close_to_best(results.records.ranking(), results.metric))
    changed, pairs = order_changes(finals, results.records.mode)
    first = {finalist.rank: finalist.name for finalist in results.records.finalists}.get(1)
    verdict = f"The first ranking had {'the same trial' if first == finals[0].name else 'another trial'} first"
    order = f", and {changed} of {pairs} pairs of finalists are in another order than before" if pairs else ""
    text = (
        f"{len(finals)} of {close} trials within two standard errors of the best were scored again, on "
        f"{finals[0].num_samples:,} samples each from latents that no trial was scored on: these scores choose the "
        f"best. {verdict}{order}."
    )
    if close == 1:
        text = (
            f"No other trial is within two standard errors of the best, which was scored again, on "
            f"{finals[0].num_samples:,} samples from latents that no trial was scored on."
        )
    heads, *rows = finalists_table(results.records)
    lines = table(map(escape, heads), [[escape(cell) for cell in row] for row in rows[: max(1, items)]])
    failed = [
        f"- trial {finalist.name} could not be scored again: {escape(finalist.error[:_MAX_ERROR])}"
        for finalist in results.records.finalists
        if finalist.error
    ]
    return "\n\n".join(["## Finalists", text, lines, *(["\n".join(failed[:items])] if failed[:items] else [])])


def _warnings(results: SweepResults, items: int) -> str:
    """Return the section of the trials with warnings, and advice; empty where there are none."""
    warned = results.warned
    if not warned:
        return ""
    lines = [f"- trial {trial.name} ({trial.status}): {_list_warnings(trial, items)}" for trial in warned[:items]]
    if len(warned) > items:
        lines.append(f"- {len(warned) - items} {'more ' if items else ''}of {len(results.records.trials)} trials")
    advice = (
        "A score alone does not show what is wrong with an energy. Before one of these is relied on, compare "
        "`energy_data` with `energy_base` and look at the other metrics of the group `kale` in MLflow; then train it "
        "again with a lower `train.energy_lr` or a larger `train.penalty`, or take the best trial without a warning."
    )
    return "\n".join(["## Warnings", "", *lines, "", advice])


def _table(results: SweepResults, rows: int) -> str:
    """Return the table of the trials, the best first; empty where it has no row."""
    shown = results.records.ranking()[:rows]
    if not shown:
        return ""
    columns = _columns(results, shown)
    lines = table(
        [escape(head) for head, _ in columns], [[escape(cell(trial)) for _, cell in columns] for trial in shown]
    )
    left = len(results.records.trials) - len(shown)
    more = f"\n\nand {left} more." if left else ""
    temperature = f"Scores of the GEBM: {results.temperature}.\n\n" if results.temperature else ""
    order = " by their first scores" if results.records.finals() else ""
    return f"## The trials, best first{order}\n\n{temperature}{lines}{more}"


def _columns(results: SweepResults, shown: list[TrialRecord]) -> list[tuple[str, Callable[[TrialRecord], str]]]:
    """Return the columns of the table: heads, and the cell of a trial."""
    keys = list(dict.fromkeys(key for trial in results.records.trials for key in trial.params))[:8]
    columns: list[tuple[str, Callable[[TrialRecord], str]]] = [
        ("trial", lambda trial: trial.name),
        ("status", lambda trial: trial.status),
    ]
    if results.warned:
        columns.append(("warnings", lambda trial: str(len(trial.warnings) or "-")))
    if results.differs_in_beta and "sampler.beta" not in keys:
        columns.append(("beta", lambda trial: format_value(results.trial_beta(trial))))
    # The score that ranks is the last where it is none of those that are followed.
    for name in dict.fromkeys([*results.records.shown, results.metric]):
        if any(name in trial.best_metrics for trial in shown):
            columns.append((name, lambda trial, name=name: format_score(trial.best_metrics, name, missing="-")))
    steps = results.records.steps
    columns.append((f"{steps.unit}s", lambda trial: str(steps.done(trial) or "-")))
    columns.append(("minutes", lambda trial: f"{trial.seconds / 60:.1f}"))
    if (cost := results.cost) is not None:
        columns.append((cost.unit, lambda trial: f"{cost.rate * trial.seconds / 3600:.3g}"))
    # Empty where a trial does not have the key.
    columns += [(k, lambda trial, k=k: format_value(trial.params[k]) if k in trial.params else "") for k in keys]
    return columns


def _pruned_and_failed(results: SweepResults, items: int) -> str:
    """Return the section of the trials that did not finish; empty where all did."""
    lines = []
    pruned = [trial for trial in results.records.trials if trial.status == "pruned"]
    if pruned:
        steps, unit = sorted(map(results.records.steps.done, pruned)), results.records.steps.unit
        when = f", between {unit}s {steps[0]} and {steps[-1]}" if steps[0] < steps[-1] else f" at {unit} {steps[0]}"
        of_training = "Their scores are those of a shorter training."
        score = "They have no score." if results.is_sampler_search else of_training
        lines.append(f"- {len(pruned)} pruned{when}: others were better at that step. {score}")
    failed = [trial for trial in results.records.trials if trial.status == "failed"]
    lines += [
        f"- trial {trial.name} failed: {escape((trial.error or 'no reason is known')[:_MAX_ERROR])}"
        for trial in failed[:items]
    ]
    if len(failed) > items:
        lines.append(f"- and {len(failed) - items} more failed.")
    unfinished = results.count("running") + results.count("pending")
    if unfinished:
        lines.append(f"- {unfinished} have not ended: `resume` continues them.")
    return "## Pruned and failed trials\n\n" + "\n".join(lines) if lines else ""


def _next_steps(results: SweepResults) -> str:
    """Return the section of the commands that continue from here."""
    best = results.records.best()
    lines = [
        "# resume, with more trials by sweep.num_trials=...",
        _fold(command_words("sweep", {"resume": results.output})),
    ]
    if best is not None and best.best_checkpoint:
        model = {"checkpoint": best.best_checkpoint}
        settings = best.params if results.is_sampler_search else {}
        ready = [_fold(command_words(command, model | settings)) for command in ("sample", "evaluate")]
        if not results.is_sampler_search:
            ready += [
                "# search its sampler's settings",
                _fold(command_words("sweep", {"sweeps": "mcmc"} | model)),
                "# train it again",
                _fold(
                    [
                        *command_words("train", {"conf": results.conf}, config_dir=results.config_dir),
                        *_overrides(results),
                        *format_overrides(best.params),
                    ]
                ),
            ]
        lines = [*ready, *lines]
    return f"## Next steps\n\n{code_block(lines)}\n\nThe whole config is `config.yaml` in the sweep's folder."


def _overrides(results: SweepResults) -> list[str]:
    """Return the overrides of the sweep's own command that apply to a trial, quoted since the folder is untrusted."""
    overrides = own_overrides(str(results.records.facts.get("named", "")), results.output)
    return [shlex.quote(override) for override in overrides if not override.startswith(_SWEEP_ONLY)]


def _fold(args: list[str]) -> str:
    """Return a command on the lines that it needs, for a shell to read."""
    lines = args[:1]
    for arg in args[1:]:
        if len(lines[-1]) + 1 + len(arg) <= _LINE_WIDTH:
            lines[-1] += f" {arg}"
        else:
            lines.append(f"    {arg}")
    return " \\\n".join(lines)
