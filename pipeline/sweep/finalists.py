"""Finals of a sweep: its finalists are scored again, on the cluster, on latents that no trial was scored on.

Each is a task of Ray with the resources of a trial's worker, so that finalists run side by side where trials did. What
has its second score is in the summary, and a sweep that is resumed does not score it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Literal, cast

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from pipeline import config as schema
from pipeline import tasks
from pipeline.config.own_choices import DATA_KEYS
from pipeline.config.plugins import install, sources
from pipeline.config.scores import format_score, standard_error_of
from pipeline.evaluation.base import EvaluationRun
from pipeline.runtime.errors import LockLost, UserError, one_line
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.redaction import redact
from pipeline.runtime.terminal import Progress
from pipeline.runtime.watchdog import Watchdog
from pipeline.sweep.cluster import Capacity
from pipeline.sweep.finals_time import fewest_candidates
from pipeline.sweep.preparation import ProgressFile, read_progress
from pipeline.tracking.finalists import Finalist, close_to_best, order_changes
from pipeline.tracking.locations import absolute_folder
from pipeline.tracking.summary import SweepSummary
from pipeline.training.build_model import load_model
from pipeline.training.final_score import FinalScore, write_final_score
from pipeline.training.worker import Worker

__all__ = ["final_seed", "score_again", "score_finalists"]

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0


def score_finalists(
    config: schema.Config, records: SweepSummary, capacity: Capacity, console: Console | None = None
) -> None:
    """Score the finalists again, and put what they scored into the summary.

    A finalist that cannot be scored is logged, and the next of the trials that are close to the best replaces it.
    Nothing is done where :func:`pipeline.sweep.finals_time.fewest_candidates` finds too few.

    Args:
        config: The experiment.
        records: Its trials, all of which have ended.
        capacity: Resources of the cluster.
        console: Terminal that the log is printed on, for the bar of progress (default: standard error).

    Raises:
        LockLost: Another driver has taken over the folder.
    """
    finals = _Finals(config, records, capacity, console)
    fewest = fewest_candidates(config, len(records.trials))
    if fewest is None or len(finals.candidates) < fewest:
        records.finalists = []
        return
    finals.choose()
    finals.run()
    _log_outcome(records)


def final_seed(config: schema.Config, records: SweepSummary) -> int:
    """Return the seed of the finals' latents and noise: a stream of its own, whatever seeds the trials had.

    Args:
        config: The experiment.
        records: Its trials.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}})
        >>> records = SweepSummary("out", metric="fid_gebm", mode="min", shown=(), facts={})
        >>> final_seed(config, records) == final_seed(config, records) != config.seed
        True
    """
    used = {config.seed, config.evaluation.seed}
    used |= {record.params.get(key) for record in records.trials for key in ("seed", "evaluation.seed")}
    for attempt in range(len(used) + 1):
        digest = hashlib.sha256(f"{config.seed}/finalists/{attempt}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") % 2**31
        if seed not in used:
            return seed
    raise AssertionError("more seeds than values")


class _Finals:
    """Second scores of a sweep, from those that an earlier driver has left to the last."""

    def __init__(
        self, config: schema.Config, records: SweepSummary, capacity: Capacity, console: Console | None
    ) -> None:
        self._config, self._records, self._capacity, self._console = config, records, capacity, console
        ranking = records.ranking()
        count, seed = config.evaluation.final_samples or config.evaluation.num_samples, final_seed(config, records)
        extractor = str(records.facts.get("extractor") or "none")
        self.candidates = [
            Finalist(
                ranking[place].name,
                str(ranking[place].best_checkpoint),
                rank=place + 1,
                num_samples=count,
                seed=seed,
                metric=records.metric,
                extractor=extractor,
            )
            for place in close_to_best(ranking, records.metric)
        ]
        self._earlier = [finalist for finalist in records.finalists if finalist.is_scored]
        self._left = iter(self.candidates)
        self._running: dict[Any, Finalist] = {}

    def choose(self) -> None:
        """Choose as many finalists as the config says, of those whose checkpoint is there, before anything starts."""
        self._records.finalists = []
        for finalist in self._take(self._config.sweep.finalists):
            self._records.finalists.append(finalist)
        self._records.write()

    def run(self) -> None:
        """Score the finalists that have no second score yet, as many at the same time as the cluster has room for."""
        waiting = [each for each in self._records.finalists if not (each.is_scored or each.error)]
        if not waiting:
            return
        names = ", ".join(each.name for each in waiting)
        log.info(f"scoring the finalists on {waiting[0].num_samples:,} fresh latents each: {names}")
        total = sum(each.num_samples * self._num_steps(each) for each in waiting)
        try:
            with Progress(total, unit="chain-steps", write=log.info, console=self._console) as progress:
                for finalist in waiting:
                    self._submit(finalist)
                self._wait(progress)
        finally:
            for task in self._running:
                ray.cancel(task, force=True)
            for finalist in self._records.finalists:
                ProgressFile(self._progress_url(finalist)).close()

    def _take(self, count: int) -> Iterator[Finalist]:
        """Yield the next candidates until ``count`` of them can be scored, those that cannot with their reason."""
        while count:
            finalist = next(self._left, None)
            if finalist is None:
                return
            known = next((each for each in self._earlier if each.scores_the_same_as(finalist)), None)
            if known is not None:
                finalist = dataclasses.replace(known, rank=finalist.rank)
            elif not _exists(finalist.checkpoint):
                _give_up(finalist, f"no checkpoint at {finalist.checkpoint}")
            count -= finalist.error is None
            yield finalist

    def _submit(self, finalist: Finalist) -> None:
        record, worker = self._records.get(finalist.name), self._capacity.worker
        gpus, retries = worker.get("GPU", 0), self._config.scale.max_restarts
        remote = ray.remote(num_cpus=worker["CPU"], num_gpus=gpus, max_retries=retries)(_score_task)
        # Left by a driver that was killed.
        ProgressFile(self._progress_url(finalist)).close()
        params = record.params if record is not None else {}
        task = remote.remote(
            schema.to_dict(self._config),
            params,
            dataclasses.asdict(finalist),
            gpus,
            self._progress_url(finalist),
            sources(),
        )
        self._running[task] = finalist

    def _wait(self, progress: Progress) -> None:
        """Take in the scores as they come; in place of a finalist that cannot be scored, start the next."""
        steps: dict[str, int] = {}
        while self._running:
            ended, _ = ray.wait(list(self._running), timeout=_SECONDS_BETWEEN_LOOKS)
            before = sum(steps.values())
            steps |= {each.name: done for each in self._running.values() if (done := self._steps_done(each))}
            for task in ended:
                finalist = self._running.pop(task)
                self._take_scores(task, finalist)
                # The file of one that has ended is gone.
                if finalist.is_scored:
                    steps[finalist.name] = finalist.num_samples * self._num_steps(finalist)
                if finalist.error is not None:
                    for substitute in self._take(1):
                        self._records.finalists.append(substitute)
                        if not (substitute.is_scored or substitute.error):
                            self._submit(substitute)
                self._records.write()
            progress.advance(sum(steps.values()) - before)

    def _take_scores(self, task: Any, finalist: Finalist) -> None:
        try:
            metrics = cast(dict[str, float], ray.get(task))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            kind = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
            _give_up(finalist, kind + one_line(cause, limit=500))
            return
        except RayError as error:
            _give_up(finalist, one_line(error, limit=500))
            return
        value = metrics.get(self._records.metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            _give_up(finalist, f"its {self._records.metric} is not finite")
            return
        finalist.metrics, finalist.score = metrics, float(value)
        finalist.standard_error = standard_error_of(metrics, self._records.metric)
        _log_score(self._records, finalist)
        self._keep_with_checkpoint(finalist, finalist.score)

    def _keep_with_checkpoint(self, finalist: Finalist, score: float) -> None:
        """Write the score next to the checkpoint that has it, where that is one of this sweep's."""
        if not _is_own(self._records.output, finalist.checkpoint):
            return
        self._records.verify()
        try:
            final = FinalScore(
                metric=self._records.metric,
                mode=cast(Literal["min", "max"], self._records.mode),
                value=score,
                extractor=self._records.facts.get("extractor") or "none",
                num_samples=finalist.num_samples,
            )
            write_final_score(finalist.checkpoint, final)
        except LockLost:
            raise
        # Each file system has exceptions of its own.
        except Exception as error:
            log.warning(
                f"the score of trial {finalist.name} cannot be written next to its checkpoint: {one_line(error)}"
            )

    def _progress_url(self, finalist: Finalist) -> str:
        return f"{self._records.output}/.finalist-{finalist.name}.json"

    def _num_steps(self, finalist: Finalist) -> int:
        """Return the length of a finalist's chains."""
        record = self._records.get(finalist.name)
        return (record.params if record else {}).get("sampler.num_steps", self._config.sampler.num_steps)

    def _steps_done(self, finalist: Finalist) -> int:
        progress = read_progress(self._progress_url(finalist))
        return 0 if progress is None else progress[1]


def _is_own(output: str, checkpoint: str) -> bool:
    """Return whether a checkpoint is of a trial of the sweep in this folder, and not the model that it started from."""
    return checkpoint.startswith(f"{absolute_folder(output)}/trials/")


def _exists(checkpoint: str) -> bool:
    """Return whether a checkpoint exists, or a folder of checkpoints; True where the storage does not answer."""
    try:
        files, path = filesystem(checkpoint)
        return any(files.exists(f"{path}/{name}") for name in ("state.json", "checkpoints/index.json"))
    # Each file system has exceptions of its own.
    except Exception:
        return True


def _give_up(finalist: Finalist, reason: str) -> None:
    finalist.error = redact(reason)
    log.warning(f"trial {finalist.name} cannot be scored again: {finalist.error}; the next finalist takes its place")


def _log_score(records: SweepSummary, finalist: Finalist) -> None:
    record = records.get(finalist.name)
    before = record.best_metrics if record is not None else {}
    log.info(
        f"finalist {finalist.name}: {records.metric} {format_score(finalist.metrics, records.metric)}, "
        f"before {format_score(before, records.metric, missing='-')} at rank {finalist.rank}"
    )


def _log_outcome(records: SweepSummary) -> None:
    finals = records.finals()
    if len(finals) > 1:
        changed, pairs = order_changes(finals, records.mode)
        log.info(f"{changed} of {pairs} pairs of finalists are in another order than before; best: {finals[0].name}")


def score_again(
    config: schema.Config, params: dict[str, Any], finalist: Finalist, device: torch.device, report: ProgressFile
) -> dict[str, float]:
    """Return the scores of a finalist, of as many samples and from such latents as it says.

    Args:
        config: The sweep's experiment.
        params: Keys that the search set for the trial.
        finalist: The finalist.
        device: Where to compute.
        report: Takes the chain-steps that are done.

    Raises:
        UserError: The checkpoint cannot be read, or its chains diverge.
    """
    choices = {key: attrgetter(key)(config) for key in (*DATA_KEYS, "evaluation.weights")}
    model, trained, *_ = load_model(finalist.checkpoint, choices, device)
    # A trial's own checkpoint says how it is sampled; a model of elsewhere is sampled as the sweep says.
    sampled = trained if _is_own(str(config.output), finalist.checkpoint) else schema.apply(config, params)
    sampled = dataclasses.replace(
        sampled,
        evaluation=dataclasses.replace(
            config.evaluation, num_samples=finalist.num_samples, seed=finalist.seed, chain_points=1
        ),
    )
    done, total = 0, finalist.num_samples * sampled.sampler.num_steps
    watchdog = Watchdog(config.scale.timeout)

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        watchdog.heartbeat()
        report(f"trial {finalist.name}", done, total)

    try:
        worker = tasks.make(sampled).open(0, 1, device)
        scores = tasks.evaluate(sampled, worker, model, EvaluationRun(advance)).scores
    finally:
        watchdog.stop()
    return {name: float(value) for name, value in scores.items() if math.isfinite(value)}


def _score_task(
    values: dict[str, Any],
    params: dict[str, Any],
    finalist: dict[str, Any],
    gpus: float,
    progress_url: str,
    plugins: list[dict[str, Any]],
) -> dict[str, float]:
    install(plugins)
    device = Worker.alone(gpus).device
    with contextlib.closing(ProgressFile(progress_url)) as report:
        return score_again(schema.from_dict(values), params, Finalist(**finalist), device, report)
