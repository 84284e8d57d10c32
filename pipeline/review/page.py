"""A report in Markdown, which MLflow shows as a run's description, and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shlex
from typing import Any

from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from pipeline import figures
from pipeline.records import TrialRecord
from pipeline.review.charts import charts, draw, interactive
from pipeline.review.findings import Findings
from pipeline.words import words

__all__ = ["LIMIT", "markdown", "report"]

LIMIT = 4800  # characters of a description, of which MLflow's older servers take 5,000
_ROWS = 20
_OF_THE_SWEEP = ("sweep.", "output=", "resume=", "log=", "-")  # which a trial that is trained anew does not take over

_BAR = {"displaylogo": False, "showSendToCloud": False}  # no button leads to somebody else's host
_CELL = "&emsp;"  # MLflow's tables have no space between columns
_WIDTH = 100  # of a line of a command, or MLflow's UI shows what stands beside it behind the edge

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .875rem; }
img { max-width: 100%; }
"""


def markdown(found: Findings, limit: int | None = LIMIT) -> str:
    """The report in Markdown.

    Args:
        found: what the sweep has found.
        limit: characters it may have; rows of the table go first. None for all of it.
    """
    rows = len(found.records.trials) if limit is None else _ROWS
    while True:
        text = "\n\n".join(part for part in _parts(found, rows, limit) if part)
        if limit is None or len(text) <= limit or rows == 0:
            return text if limit is None else text[:limit]
        rows = rows // 2


def report(found: Findings) -> dict[str, bytes]:
    """The report's files: the page, for which no address outside of it is asked for anything, and its charts as PNG.

    Args:
        found: what the sweep has found.

    Returns:
        File name to contents, ``report.html`` first.
    """
    made = charts(found)
    stills = {f"{chart.key}.png": figures.png(draw(chart)) for chart in made}
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown(found, limit=None))
    parts = []
    for chart, still in zip(made, stills.values(), strict=True):
        drawn = interactive(chart).to_html(full_html=False, include_plotlyjs=False, div_id=chart.key, config=_BAR)
        source = f"data:image/png;base64,{base64.b64encode(still).decode()}"
        parts.append(f'{drawn}<noscript><img alt="{html.escape(chart.title)}" src="{source}"></noscript>')
    title = html.escape(f"{found.experiment}: report of a sweep")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body>{body}{''.join(parts)}</body></html>"
    )
    return {"report.html": page.encode(), **stills}


def _parts(found: Findings, rows: int, limit: int | None) -> list[str]:
    return [
        f"# {_text(found.experiment)}: {_headline(found)}",
        _question(found),
        _answer(found),
        _table(found, rows),
        _ends(found, 3 if limit else 1000),
        _commands(found),
    ]


def _headline(found: Findings) -> str:
    """The answer in a line: of a description, MLflow shows little more before one asks for all of it."""
    count, best = f"{len(found.records.trials)} trials by {_text(found.measure)}", found.records.best()
    return count if best is None else f"{count}, the best {_value(float(best.best_metrics[found.metric]))}"


def _question(found: Findings) -> str:
    settings = found.settings
    lines = ["## The question"]
    if settings:
        better = "lower" if found.records.mode == "min" else "higher"
        samples = f", over {settings['num_samples']:,} samples" if found.records.facts.get("extractor") else ""
        lines.append(
            f"Search {_text(settings['search'])}, scheduler {_text(settings['scheduler'])}, ranked by "
            f"{_code(found.metric)}, {better} is better{samples}."
        )
        lines += [f"- {_code(key)}: {_code(json.dumps(form))}" for key, form in list(settings["space"].items())[:20]]
    return "\n".join([lines[0], "", *lines[1:]])


def _answer(found: Findings) -> str:
    best = found.records.best()
    spent = f"The trials ran for {found.hours:.2g} hours altogether."
    if best is None:
        return f"## The answer\n\nNo trial has been evaluated so far. {spent}"
    params = (
        ", ".join(f"{_code(key)} = {_text(_value(value))}" for key, value in best.params.items()) or "none searched"
    )
    scores = ", ".join(
        f"{_code(name)} {best.best_metrics[name]:.4g}"
        for name in found.records.shown
        if isinstance(best.best_metrics.get(name), int | float)
    )
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


def _table(found: Findings, rows: int) -> str:
    shown = found.records.ranking()[:rows]
    if not shown:
        return ""
    keys = list(dict.fromkeys(key for trial in found.records.trials for key in trial.params))[:8]
    names = [name for name in found.records.shown if any(name in trial.best_metrics for trial in shown)]
    head = ["trial", "status", *names, "base steps", "minutes", *map(_text, keys)]
    lines = [[cell + _CELL for cell in head], ["---"] * len(head)]
    for trial in shown:
        scores = [_value(trial.best_metrics.get(name)) for name in names]
        params = [_text(_value(trial.params.get(key))) for key in keys]
        steps = _value(trial.metrics.get("base_step"))
        lines.append([trial.name, trial.status, *scores, steps, f"{trial.seconds / 60:.1f}", *params])
    left = len(found.records.trials) - len(shown)
    more = f"\n\nand {left} more." if left else ""
    return "## The trials, best first\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def _ends(found: Findings, most: int) -> str:
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
        f"- trial {trial.name} failed: {_text(trial.error or 'no reason is known')[:300]}" for trial in failed[:most]
    ]
    if len(failed) > most:
        lines.append(f"- and {len(failed) - most} more failed.")
    open_ones = [t.name for t in found.records.trials if t.status in ("running", "pending")]
    if open_ones:
        lines.append(f"- {len(open_ones)} have not ended: go on with them by `resume`.")
    return "## What ended early\n\n" + "\n".join(lines) if lines else ""


def _commands(found: Findings) -> str:
    best: TrialRecord | None = found.records.best()
    lines = [
        "# go on, with more trials by sweep.num_trials=...",
        _folded(["python -m pipeline.sweep   ", f"resume={shlex.quote(found.output)}"]),
    ]
    if best is not None:
        model = f"checkpoint={shlex.quote(str(best.best_checkpoint))}"
        params = words(best.params)
        settings = params if found.of_samplers else []
        ready = [
            _folded(["python -m pipeline.sample  ", model, *settings]),
            _folded(["python -m pipeline.evaluate", model, *settings]),
        ]
        if not found.of_samplers:
            ready += [
                "# search its sampler's settings",
                _folded(["python -m pipeline.sweep   ", "sweeps=mcmc", model]),
                "# train it anew",
                _folded(["python -m pipeline.train   ", *words({"conf": found.experiment}), *_named(found), *params]),
            ]
        lines = [*ready, *lines]
    block = "\n".join(line.replace("`", "'") for line in lines)
    return f"## Go on from here\n\n```sh\n{block}\n```\n\nThe whole config is `config.yaml` in the sweep's folder."


def _named(found: Findings) -> list[str]:
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


def _text(text: str) -> str:
    """A stranger's text in Markdown: one line, and nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    """A stranger's text as code in Markdown, in a table as well."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "/") + "`"
