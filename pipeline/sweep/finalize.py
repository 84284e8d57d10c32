"""Final stage of a sweep: its report, its best model, the end of its tracker runs, and the final tables."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from rich.console import Console

from pipeline import config as schema
from pipeline.config import plugins
from pipeline.config.printed_commands import format_command, quote_words
from pipeline.config.sampler_search import is_sampler_search
from pipeline.config.scores import STANDARD_ERROR, format_score
from pipeline.config.temperature import BETA
from pipeline.config.warm_up import with_found
from pipeline.report.analysis import SweepResults, collect_results
from pipeline.report.escaping import escape
from pipeline.report.html import report
from pipeline.report.markdown import markdown
from pipeline.runtime.errors import LockLost, one_line
from pipeline.runtime.filesystem import write_file
from pipeline.sweep.display.live_table import scores_in_words
from pipeline.sweep.display.tables import draw_finalists, draw_seeds, draw_trials
from pipeline.tracking import provenance
from pipeline.tracking.metric_names import final_metric_name
from pipeline.tracking.registry import BEST, model_name
from pipeline.tracking.shared_view import route
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.summary_temperature import sweep_temperature, trial_beta, trial_temperature
from pipeline.tracking.tracker import Tracker, journal_path

__all__ = ["current_results", "finalize", "print_results"]

log = logging.getLogger(__name__)

# After Ctrl-C the tracker has this long to take what is left.
_FLUSH_TIMEOUT_INTERRUPTED = 5.0
# A registered model shows this many warnings, each cut to this many characters. The trial's run has all of them.
_MAX_MODEL_WARNINGS = 5
_MAX_WARNING_LENGTH = 300


def current_results(config: schema.Config, records: SweepSummary) -> SweepResults:
    """Return the sweep's results so far, for its report.

    Args:
        config: The experiment.
        records: Its trials.
    """
    sweep = config.sweep
    settings = {"search": sweep.search, "scheduler": sweep.scheduler, "space": sweep.space}
    return collect_results(str(config.output), records, settings | {"num_samples": config.evaluation.num_samples})


def finalize(
    config: schema.Config, records: SweepSummary, tracker: Tracker, command: str, *, interrupted: bool
) -> None:
    """Report, register the best model, end the tracker's runs, and wait for the tracker as long as the config says.

    Args:
        config: The experiment.
        records: Its trials.
        tracker: MLflow.
        command: ``sweep`` or ``train``.
        interrupted: Whether trials are left to run.
    """
    temperature = sweep_temperature(records)
    records.facts |= {} if temperature is None else {"temperature": temperature}
    records.write()
    tracker.log_files(None, [f"{records.output}/summary.json"])
    _log_best(config, records, tracker, interrupted=interrupted)
    if command == "sweep" and not interrupted:
        _write_report(config, records, tracker)
    _end_runs(config, records, tracker, interrupted=interrupted)
    left = tracker.close(_FLUSH_TIMEOUT_INTERRUPTED if interrupted else config.tracking.flush_timeout)
    if left:
        log.warning(
            f"{left} results are not in MLflow yet and are in {journal_path(records.output)}; once it answers, "
            f"`{format_command(command, {'resume': records.output})}` sends them"
        )
    for record in records.trials:
        record.mlflow_run_id = tracker.trial_run_id(record.name) or record.mlflow_run_id
    records.write()


def _log_best(config: schema.Config, records: SweepSummary, tracker: Tracker, *, interrupted: bool) -> None:
    """Log the best scores as the sweep's own, and register the model they belong to."""
    best = records.best()
    if best is None:
        return
    _log_finals(records, tracker)
    tracker.log_metrics(None, _best_scores(records, best), step=0)
    if config.tracking.register and not interrupted and best.best_checkpoint:
        _register(config, records, best, tracker)


def _log_finals(records: SweepSummary, tracker: Tracker) -> None:
    """Log the second scores of the finalists to their runs, in groups of their own."""
    for finalist in records.finals():
        names = [
            f"{name}{end}" for name in dict.fromkeys([*records.shown, records.metric]) for end in ("", STANDARD_ERROR)
        ]
        scores = {
            final_metric_name(name, tracker.extractor): finalist.metrics[name]
            for name in names
            if name in finalist.metrics
        }
        record = records.get(finalist.name)
        base_step = record.best_metrics.get("base_step", 0) if record is not None else 0
        tracker.log_metrics(finalist.name, scores, step=int(base_step))


def _end_runs(config: schema.Config, records: SweepSummary, tracker: Tracker, *, interrupted: bool) -> None:
    """Describe the sweep's run, and end it and those of trials that still run."""
    best = records.best()
    tracker.describe(None, markdown(current_results(config, records)), {"best_trial": best.name if best else "none"})
    for record in records.trials:
        if record.status == "running":
            tracker.end(record.name, "KILLED")
    tracker.end(None, "KILLED" if interrupted else "FINISHED")


def _write_report(config: schema.Config, records: SweepSummary, tracker: Tracker) -> None:
    """Write the report's page and charts among the results and to MLflow; a sweep does not fail without them."""
    folder = f"{records.output}/report"
    try:
        files = report(current_results(config, records))
        for name, content in files.items():
            records.verify()
            write_file(f"{folder}/{name}", content)
    except LockLost:
        raise
    # Each file system has exceptions of its own.
    except Exception as error:
        log.warning(f"the report at {folder} cannot be written ({one_line(error)})")
        return
    tracker.log_files(None, [f"{folder}/{name}" for name in files], folder="report")


def _best_scores(records: SweepSummary, best: TrialRecord) -> dict[str, float]:
    """Return the monitored scores of the best trial, each followed by its standard error."""
    metrics = records.final_metrics(best)
    names = (f"{name}{end}" for name in records.shown for end in ("", STANDARD_ERROR))
    return {name: metrics[name] for name in names if name in metrics}


def _register(config: schema.Config, records: SweepSummary, best: TrialRecord, tracker: Tracker) -> None:
    """Put the best trial's model into MLflow's registry, under the experiment's name."""
    scores, metrics = _best_scores(records, best), records.final_metrics(best)
    score_text = ", ".join(f"{key} {format_score(metrics, key)}" for key in records.shown if key in scores)
    beta = trial_beta(records, best)
    if beta is not None:
        score_text += f" ({trial_temperature(records, best)})"
    warnings = best.warnings[:_MAX_MODEL_WARNINGS]
    warning_text = "".join(f"\n\nWarning: {escape(line[:_MAX_WARNING_LENGTH])}" for line in warnings)
    tracker.log_model(
        best.name,
        name=model_name(config.tracking.experiment or config.name),
        checkpoint=str(best.best_checkpoint),
        sampler=_found_sampler(config, best) if is_sampler_search(config) else {},
        base_step=int(best.best_metrics.get("base_step", 0)),
        description=f"{score_text}: {records.facts['measure']}. From `{best.best_checkpoint}`.{warning_text}",
        tags={
            **{key: f"{value:.6g}" for key, value in scores.items()},
            **provenance.tags(schema.apply(config, best.params)),
            "value": repr(metrics[records.metric]),
            "metric": records.metric,
            "mode": records.mode,
            "extractor": str(records.facts.get("extractor", "none")),
            "num_samples": str(records.final_samples(best) or config.evaluation.num_samples),
            "store_checksum": records.facts["store_checksum"],
            "checkpoint": str(best.best_checkpoint),
            **({} if beta is None else {BETA: f"{beta:g}"}),
            **({"warnings": "; ".join(warnings)} if warnings else {}),
        },
    )


def _found_sampler(config: schema.Config, best: TrialRecord) -> dict[str, Any]:
    """Return the settings of the best sampler, with the kernel that its warm-up found."""
    return dataclasses.asdict(with_found(schema.apply(config, best.params).sampler, best.best_kernel))


def print_results(config: schema.Config, records: SweepSummary, command: str, console: Console) -> None:
    """Print the trials, best first, and the commands for the best of them.

    Args:
        config: The experiment.
        records: Its trials.
        command: ``sweep`` or ``train``.
        console: Where to print.
    """
    for draw in (draw_trials, draw_finalists, draw_seeds):
        table = draw(records, console.width)
        if table is not None:
            console.print(table)
    best, lines = records.best(), {}
    if best is not None:
        _print_line(console, "best trial", f"{best.name}: {scores_in_words(records, best)}")
        for warning in best.warnings:
            _print_line(console, "", f"warning: {warning}", style="yellow")
        lines |= _commands_for_best(config, best)
    lines["results"] = records.output
    if command == "sweep":
        lines["report"] = f"{records.output}/report/report.html"
    lines["review in MLflow"] = _review_command(str(config.tracking.uri), records)
    if command == "sweep":
        lines["its trials, best first"] = _trials_page(str(config.tracking.uri), records)
    for label, text in lines.items():
        _print_line(console, label, text)


def _print_line(console: Console, label: str, text: str, style: str | None = None) -> None:
    # Not folded: a folded command cannot be copied.
    console.print(f"{label:<30}{text}", highlight=False, markup=False, soft_wrap=True, style=style)


def _commands_for_best(config: schema.Config, best: TrialRecord) -> dict[str, str]:
    """Return the best model and the commands that use it, by label."""
    sampler = best.params if is_sampler_search(config) else {}
    lines = {}
    if best.best_checkpoint:
        lines |= {
            "best model": best.best_checkpoint,
            "sample it": format_command("sample", {"checkpoint": best.best_checkpoint, **sampler}),
        }
    if config.tracking.register:
        name = model_name(config.tracking.experiment or config.name)
        serve = ("mlflow", "models", "serve", "-m", f"models:/{name}@{BEST}", "--env-manager", "local")
        # Where the model has a plugin's code: this user's consent to it.
        needed = ",".join(plugin["name"] for plugin in plugins.sources_of(config))
        variables = {"MLFLOW_TRACKING_URI": str(config.tracking.uri)} | (
            {plugins.ENVIRONMENT: needed} if needed else {}
        )
        lines["serve the best of all sweeps"] = quote_words(*serve, **variables)
    return lines


def _review_command(uri: str, records: SweepSummary) -> str:
    if not uri.startswith("http"):
        return quote_words("mlflow", "ui", "--backend-store-uri", uri)
    page = "#/experiments/{mlflow_experiment_id}/runs/{mlflow_run_id}".format(**records.facts)
    # Without the query, a new browser shows MLflow's pages for language models.
    return quote_words("open", f"{uri.rstrip('/')}/{page}?workflowType=machine_learning")


def _trials_page(uri: str, records: SweepSummary) -> str:
    """Return where MLflow shows the trials, best first; behind the address of the local UI where there is no server."""
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/{route(str(records.facts['mlflow_experiment_id']), str(records.facts['mlflow_run_id']))}"
