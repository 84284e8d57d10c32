"""How a sweep ends: its report, its best model, what the tracker is told last, and what the terminal shows."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from pipeline import config as schema
from pipeline.config.compose import format_overrides
from pipeline.config.temperature import BETA
from pipeline.report.analysis import SweepResults, collect_results
from pipeline.report.html import report
from pipeline.report.markdown import markdown
from pipeline.report.markup import escape
from pipeline.runtime.errors import one_line
from pipeline.runtime.filesystem import write_file
from pipeline.sweep import cluster
from pipeline.sweep.display.console import results_table, seeds_table
from pipeline.sweep.display.table import scores_in_words
from pipeline.sweep.space import is_sampler_search
from pipeline.tracking import provenance
from pipeline.tracking.registry import BEST, model_name
from pipeline.tracking.summary import SweepSummary, TrialRecord
from pipeline.tracking.tracker import Tracker, journal_path
from pipeline.tracking.trial_temperature import sweep_temperature, trial_beta, trial_temperature

__all__ = ["finish", "found_so_far", "show"]

_HURRIED = 5.0  # seconds that Ctrl-C waits for the tracker
_MOST_WARNINGS = 5  # of a registered model; all of them are in the trial's run
_LONGEST = 300  # characters of each in its description


def found_so_far(config: schema.Config, records: SweepSummary) -> SweepResults:
    """The sweep as its report has it.

    Args:
        config: the experiment.
        records: its trials.
    """
    sweep = config.sweep
    settings = {"search": sweep.search, "scheduler": sweep.scheduler, "space": sweep.space}
    return collect_results(str(config.output), records, settings | {"num_samples": config.evaluation.num_samples})


def _write_report(config: schema.Config, records: SweepSummary, tracker: Tracker, console: Console) -> None:
    """The report's page and its charts, among the results and in MLflow; a sweep does not fail for want of them."""
    found, folder = found_so_far(config, records), f"{records.output}/report"
    try:
        files = report(found)
        for name, content in files.items():
            write_file(f"{folder}/{name}", content)
    except Exception as error:  # each file system has exceptions of its own
        reason = one_line(error)
        console.print(f"the report at {folder} cannot be written ({reason})", highlight=False, markup=False)
        return
    tracker.log_files(None, [f"{folder}/{name}" for name in files], folder="report")


def finish(
    config: schema.Config, records: SweepSummary, tracker: Tracker, verb: str, console: Console, *, interrupted: bool
) -> None:
    """Tell the tracker what has come of the sweep, and wait for it as long as the config says.

    Args:
        config: the experiment.
        records: its trials.
        tracker: MLflow.
        verb: ``sweep`` or ``train``.
        console: where to print.
        interrupted: whether trials are left to go on with.
    """
    temperature = sweep_temperature(records)
    records.facts |= {} if temperature is None else {"temperature": temperature}
    records.write()
    best = records.best()
    tracker.log_files(None, [f"{records.output}/summary.json"])
    if best is not None:
        scores = {key: best.best_metrics[key] for key in records.shown if key in best.best_metrics}
        tracker.log_metrics(None, scores, step=0)
        if config.tracking.register and not interrupted and best.best_checkpoint:
            _register(config, records, best, tracker)
    if verb == "sweep" and not interrupted:
        _write_report(config, records, tracker, console)
    tracker.describe(None, markdown(found_so_far(config, records)), {"best_trial": best.name if best else "none"})
    for record in records.trials:
        if record.status == "running":
            tracker.end(record.name, "KILLED")
    tracker.end(None, "KILLED" if interrupted else "FINISHED")
    left = tracker.close(_HURRIED if interrupted else config.tracking.flush_timeout)
    if left:
        console.print(
            f"{left} results are not in MLflow yet and lie in {journal_path(records.output)}; once it answers, "
            f"`python -m pipeline.{verb} resume={records.output}` sends them",
            highlight=False,
        )
    for record in records.trials:
        record.mlflow_run_id = tracker.trial_run_id(record.name) or record.mlflow_run_id
    records.write()
    cluster.remove_ray_storage(records.output)


def _register(config: schema.Config, records: SweepSummary, best: TrialRecord, tracker: Tracker) -> None:
    """The best trial's model goes into MLflow's registry, under the experiment's name."""
    scores = {key: best.best_metrics[key] for key in records.shown if key in best.best_metrics}
    written = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
    beta = trial_beta(records, best)
    if beta is not None:
        written += f" ({trial_temperature(records, best)})"
    warned = "".join(f"\n\nWarning: {escape(line[:_LONGEST])}" for line in best.warnings[:_MOST_WARNINGS])
    tracker.log_model(
        best.name,
        name=model_name(config.tracking.experiment or config.name),
        checkpoint=str(best.best_checkpoint),
        sampler=dataclasses.asdict(schema.apply(config, best.params).sampler) if is_sampler_search(config) else {},
        base_step=int(best.best_metrics.get("base_step", 0)),
        description=f"{written}: {records.facts['measure']}. From `{best.best_checkpoint}`.{warned}",
        tags={
            **{key: f"{value:.6g}" for key, value in scores.items()},
            **provenance.tags(schema.apply(config, best.params)),
            "value": repr(best.best_metrics[records.metric]),
            "metric": records.metric,
            "mode": records.mode,
            "extractor": str(records.facts.get("extractor", "none")),
            "num_samples": str(config.evaluation.num_samples),
            "store_checksum": records.facts["store_checksum"],
            "checkpoint": str(best.best_checkpoint),
            **({} if beta is None else {BETA: f"{beta:g}"}),
            **({"warnings": "; ".join(best.warnings[:_MOST_WARNINGS])} if best.warnings else {}),
        },
    )


def show(config: schema.Config, records: SweepSummary, verb: str, console: Console) -> None:
    """Print the trials, best first, and what to do with the best.

    Args:
        config: the experiment.
        records: its trials.
        verb: ``sweep`` or ``train``.
        console: where to print.
    """
    console.print(results_table(records))
    means = seeds_table(records)
    if means is not None:
        console.print(means)
    told, best, uri = {}, records.best(), str(config.tracking.uri)
    if best is not None:
        console.print(
            f"{'best trial':<30}{best.name}: {scores_in_words(records, best)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        for line in best.warnings:
            console.print(f"{'':<30}warning: {line}", highlight=False, markup=False, soft_wrap=True, style="yellow")
        told["best model"] = str(best.best_checkpoint)
        found = " ".join(["", *format_overrides(best.params)]) if is_sampler_search(config) else ""
        told["sample it"] = f"python -m pipeline.sample checkpoint={best.best_checkpoint}{found}"
        if config.tracking.register:
            name = model_name(config.tracking.experiment or config.name)
            serve = f"mlflow models serve -m models:/{name}@{BEST} --env-manager local"
            told["serve the best of all sweeps"] = f"MLFLOW_TRACKING_URI={uri} {serve}"
    told["results"] = records.output
    if verb == "sweep":
        told["report"] = f"{records.output}/report/report.html"
    if uri.startswith("http"):
        place = "#/experiments/{mlflow_experiment_id}/runs/{mlflow_run_id}".format(**records.facts)
        # Or a new browser shows MLflow's pages for language models.
        told["review in MLflow"] = f"open {uri.rstrip('/')}/{place}?workflowType=machine_learning"
    else:
        told["review in MLflow"] = f"mlflow ui --backend-store-uri {uri}"
    for what, where in told.items():
        # A command that is folded cannot be copied.
        console.print(f"{what:<30}{where}", highlight=False, markup=False, soft_wrap=True)
