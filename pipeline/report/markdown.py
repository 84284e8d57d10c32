"""A report in Markdown, which MLflow shows as a run's description."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

from pipeline.config.compose import format_overrides
from pipeline.report.analysis import SweepResults
from pipeline.report.markup import code, escape
from pipeline.tracking.summary import TrialRecord

__all__ = [
    "LIMIT",
    "markdown",
]

LIMIT = 4800  # characters of a description, of which MLflow's older servers take 5,000
_ROWS = 20
# Trials that are listed for what went wrong, and warnings of each, fewer where there is no room.
_LISTED = (3, 2, 1, 0)
_LONGEST = 200  # characters of a warning in a description
_ALL = 1000
_OF_THE_SWEEP = ("sweep.", "output=", "resume=", "log=", "-")  # which a trial that is trained anew does not take over
_CELL = "&emsp;"  # MLflow's tables have no space between columns
_WIDTH = 100  # of a line of a command, or MLflow's UI shows what stands beside it behind the edge


def markdown(found: SweepResults, limit: int | None = LIMIT) -> str:
    """The report in Markdown.

    Args:
        found: what the sweep has found.
        limit: characters it may have; rows of the table go first, then warnings. None for all of it.
    """
    if limit is None:
        return _joined(found, len(found.records.trials), _ALL)
    sizes = [*((rows, _LISTED[0]) for rows in (_ROWS, 10, 5, 2, 1, 0)), *((0, most) for most in _LISTED[1:])]
    for rows, most in sizes:
        text = _joined(found, rows, most)
        if len(text) <= limit:
            break
    return text[:limit]


def _joined(found: SweepResults, rows: int, most: int) -> str:
    """Return the whole report with so many rows of the table and so many trials in each list."""
    parts = [
        f"# {escape(found.experiment)}: {_headline(found)}",
        _question(found),
        _answer(found, most),
        _warnings(found, most),
        _table(found, rows),
        _ends(found, most),
        _commands(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(found: SweepResults) -> str:
    """The answer in a line: of a description, MLflow shows little more before one asks for all of it."""
    count, best = f"{len(found.records.trials)} trials by {escape(found.measure)}", found.records.best()
    if best is None:
        return count
    notes = "; ".join(filter(None, [found.trial_temperature(best), "with warnings" if best.warnings else None]))
    return f"{count}, the best {_value(float(best.best_metrics[found.metric]))}" + (f" ({notes})" if notes else "")


def _question(found: SweepResults) -> str:
    settings = found.settings
    lines = ["## The question"]
    if settings:
        better = "lower" if found.records.mode == "min" else "higher"
        samples = f", over {settings['num_samples']:,} samples" if found.records.facts.get("extractor") else ""
        lines.append(
            f"Search {escape(settings['search'])}, scheduler {escape(settings['scheduler'])}, ranked by "
            f"{code(found.metric)}, {better} is better{samples}."
        )
        lines += [f"- {code(key)}: {code(json.dumps(form))}" for key, form in list(settings["space"].items())[:20]]
    return "\n".join([lines[0], "", *lines[1:]])


def _answer(found: SweepResults, most: int) -> str:
    best = found.records.best()
    spent = f"The trials ran for {found.hours:.2g} hours altogether."
    if best is None:
        return f"## The answer\n\nNo trial has been evaluated so far. {spent}"
    params = (
        ", ".join(f"{code(key)} = {escape(_value(value))}" for key, value in best.params.items()) or "none searched"
    )
    scores = ", ".join(
        f"{code(name)} {best.best_metrics[name]:.4g}"
        for name in found.records.shown
        if isinstance(best.best_metrics.get(name), int | float)
    )
    temperature = found.trial_temperature(best)
    if temperature is not None:
        scores += f" ({temperature})"
    if best.warnings:
        scores += f". **Do not rely on this score before its warnings are looked into**: {_listed(best, most)}"
    base, gebm = (best.best_metrics.get(name, math.nan) for name in found.records.shown[:2])
    gain = ""
    if all(isinstance(value, int | float) and math.isfinite(value) for value in (base, gebm)):
        gained = (base - gebm) * (1 if found.records.mode == "min" else -1)
        verdict = "better" if gained > 0 else "no better" if gained == 0 else "worse"
        gain = f" With its energy it is {verdict} than its base alone, by {abs(gained):.3g}."
    return (
        f"## The answer\n\nThe best is trial {best.name} at base step {best.best_metrics.get('base_step', '?')}: "
        f"{scores}.{gain} Its parameters: {params}. {spent}"
    )


def _listed(trial: TrialRecord, most: int) -> str:
    """Return a trial's warnings in one line, so many of them."""
    shown = [line if most == _ALL else line[:_LONGEST] for line in trial.warnings[:most]]
    left = len(trial.warnings) - len(shown)
    more = [f"{left} more" if shown else f"{left} warning{'s' if left > 1 else ''}"] if left else []
    return "; ".join([*map(escape, shown), *more])


def _warnings(found: SweepResults, most: int) -> str:
    """Return the section of trials with warnings, and what to do about them; empty where there are none."""
    warned = found.warned
    if not warned:
        return ""
    lines = [f"- trial {trial.name} ({trial.status}): {_listed(trial, most)}" for trial in warned[:most]]
    if len(warned) > most:
        lines.append(f"- {len(warned) - most} {'more ' if most else ''}of {len(found.records.trials)} trials")
    advice = (
        "A score alone does not show what is wrong with an energy. Before one of these is relied on, compare "
        "`energy_data` with `energy_base` and look at the other metrics of the group `kale` in MLflow; then train it "
        "again with a lower `train.energy_lr` or a larger `train.penalty`, or take the best trial without a warning."
    )
    return "\n".join(["## Warnings", "", *lines, "", advice])


def _table(found: SweepResults, rows: int) -> str:
    shown = found.records.ranking()[:rows]
    if not shown:
        return ""
    keys = list(dict.fromkeys(key for trial in found.records.trials for key in trial.params))[:8]
    names = [name for name in found.records.shown if any(name in trial.best_metrics for trial in shown)]
    warned, differs = bool(found.warned), found.differs_in_beta and "sampler.beta" not in keys
    extra = [*(["warnings"] if warned else []), *(["beta"] if differs else [])]
    head = ["trial", "status", *extra, *names, "base steps", "minutes", *map(escape, keys)]
    lines = [[cell + _CELL for cell in head], ["---"] * len(head)]
    for trial in shown:
        scores = [_value(trial.best_metrics.get(name)) for name in names]
        params = [escape(_value(trial.params.get(key))) for key in keys]
        steps = _value(trial.metrics.get("base_step"))
        marks = [str(len(trial.warnings) or "-")] if warned else []
        marks += [_value(found.trial_beta(trial))] if differs else []
        lines.append([trial.name, trial.status, *marks, *scores, steps, f"{trial.seconds / 60:.1f}", *params])
    left = len(found.records.trials) - len(shown)
    more = f"\n\nand {left} more." if left else ""
    temperature = f"Scores of the GEBM: {found.temperature}.\n\n" if found.temperature else ""
    rows_of_table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## The trials, best first\n\n{temperature}{rows_of_table}{more}"


def _ends(found: SweepResults, most: int) -> str:
    lines = []
    pruned = [trial for trial in found.records.trials if trial.status == "pruned"]
    if pruned:
        steps = sorted(trial.metrics.get("base_step", 0) for trial in pruned)
        when = (
            f", between base steps {steps[0]} and {steps[-1]}" if steps[0] < steps[-1] else f" at base step {steps[0]}"
        )
        lines.append(
            f"- {len(pruned)} pruned{when}: others were better at that step. "
            f"Their scores are those of a shorter training."
        )
    failed = [trial for trial in found.records.trials if trial.status == "failed"]
    lines += [
        f"- trial {trial.name} failed: {escape(trial.error or 'no reason is known')[:300]}" for trial in failed[:most]
    ]
    if len(failed) > most:
        lines.append(f"- and {len(failed) - most} more failed.")
    open_ones = [t.name for t in found.records.trials if t.status in ("running", "pending")]
    if open_ones:
        lines.append(f"- {len(open_ones)} have not ended: go on with them by `resume`.")
    return "## What ended early\n\n" + "\n".join(lines) if lines else ""


def _commands(found: SweepResults) -> str:
    best: TrialRecord | None = found.records.best()
    lines = [
        "# go on, with more trials by sweep.num_trials=...",
        _folded(["python -m pipeline.sweep   ", f"resume={shlex.quote(found.output)}"]),
    ]
    if best is not None:
        model = f"checkpoint={shlex.quote(str(best.best_checkpoint))}"
        params = format_overrides(best.params)
        settings = params if found.is_sampler_search else []
        ready = [
            _folded(["python -m pipeline.sample  ", model, *settings]),
            _folded(["python -m pipeline.evaluate", model, *settings]),
        ]
        if not found.is_sampler_search:
            ready += [
                "# search its sampler's settings",
                _folded(["python -m pipeline.sweep   ", "sweeps=mcmc", model]),
                "# train it anew",
                _folded(
                    [
                        "python -m pipeline.train   ",
                        *format_overrides({"conf": found.experiment}),
                        *_named(found),
                        *params,
                    ]
                ),
            ]
        lines = [*ready, *lines]
    block = "\n".join(line.replace("`", "'") for line in lines)
    return f"## Go on from here\n\n```sh\n{block}\n```\n\nThe whole config is `config.yaml` in the sweep's folder."


def _named(found: SweepResults) -> list[str]:
    """The keys that the sweep's own command named, as far as they are about a trial; a stranger's words are quoted."""
    try:
        named = shlex.split(str(found.records.facts.get("named", "")))
    except ValueError:  # not what was written there
        return []
    return [shlex.quote(word) for word in named if not word.startswith(_OF_THE_SWEEP)]


def _folded(words: list[str]) -> str:
    """A command on as many lines as it needs, for a shell to read."""
    lines = words[:1]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= _WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n".join(lines)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:#.4g}" if isinstance(value, float) else str(value)
