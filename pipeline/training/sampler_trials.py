"""Settings of a sampler, tried on one trained model one after another, in a process that has loaded it once."""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Callable
from typing import Any

from pipeline import config as schema
from pipeline import tasks
from pipeline.evaluation.base import Evaluation, EvaluationRun
from pipeline.evaluation.shared_results import SharedResults
from pipeline.runtime.errors import UserError
from pipeline.runtime.system_metrics import SystemMetrics
from pipeline.runtime.watchdog import Watchdog
from pipeline.tracking.trial_reports import CHAIN_SCORE, CHAIN_STEP, SINCE_FIRST_STEP
from pipeline.training.build_model import make_trainer, model_to_train
from pipeline.training.checkpoint_format import require_same_classes
from pipeline.training.checkpoints import read
from pipeline.training.energy_health import EnergyHealth
from pipeline.training.load_trainer import load_trainer
from pipeline.training.trial_evaluation import TrialEvaluation
from pipeline.training.trial_folder import TrialFolder
from pipeline.training.worker import Worker

__all__ = ["NUM_DRAWN", "SamplerTrials"]

NUM_DRAWN = 3
"""Settings of a process that have pictures: each of so many best so far, or ``sweep.finalists`` if more."""


class SamplerTrials:
    """Trials of a search over the sampler alone: settings that are tried on the same model, in this process.

    Model, data, extractor and reference statistics are loaded once. The latents, their samples of the base, the
    samples' features and scores are computed at the first setting. A score is what an evaluation of that setting alone
    gives, to the last bit.

    Args:
        config: The experiment, whose ``checkpoint`` is the model.
        owner: Owner of the lock of the sweep's folder; None where there is no lock.
        worker: The worker that samples, the only one.
    """

    def __init__(self, config: schema.Config, owner: str | None, worker: Worker) -> None:
        if config.checkpoint is None:
            raise UserError("a search over the sampler alone needs a trained model: give checkpoint=<a trial's folder>")
        self._config, self._owner = copy.deepcopy(config), owner
        if config.data.split_seed is None:
            # As in the trial that trained it.
            self._config.data.split_seed = config.seed
        device, self._shared = worker.device, SharedResults()
        self._task = tasks.make(self._config).open(0, 1, device)
        model = model_to_train(self._config, device, self._task.classes)
        self._trainer = make_trainer(model, self._config, device)
        checkpoint = read(config.checkpoint)
        require_same_classes(checkpoint.url, checkpoint.classes, self._task.classes)
        load_trainer(self._trainer, model, checkpoint, self._config, worker)
        train, objective = config.train, self._trainer.objective
        health = EnergyHealth(objective, train.gradient_guard, train.beta2)
        self._evaluation = TrialEvaluation(self._config, self._task, worker, objective, health)
        self._best: list[float] = []
        self._system_metrics = SystemMetrics(device)

    def run(
        self, params: dict[str, Any], url: str, reached: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Try a setting, and return its report, which is in the trial's folder as well.

        Args:
            params: Keys of the sampler, with their values.
            url: The trial's folder.
            reached: Called with a report at each point along the chains, before they run on; where it raises, the
                setting is given up. Without it there is one report, that of the chains' end.

        Raises:
            UserError: All chains diverged, or pictures cannot be written.
            LockLost: Another driver has taken over the sweep's folder.
        """
        config = schema.apply(self._config, params)
        folder, base_step = TrialFolder(config, url, self._owner), self._trainer.base_step

        def pass_on(step: int, score: float) -> None:
            point = {"base_step": base_step, CHAIN_STEP: step, CHAIN_SCORE: score}
            if reached is not None:
                reached(folder.write_report(point))

        watchdog = Watchdog(config.scale.timeout)
        run = EvaluationRun(lambda steps: watchdog.heartbeat(), self._shared, None if reached is None else pass_on)
        try:
            model, is_drawn = self._trainer.sampling_model(), self._is_among_best
            entries = self._evaluation.report(
                model, base_step, folder, "sampled", run, sampler=config.sampler, is_drawn=is_drawn
            )
            if entries["figures"]:
                pictures = self._shared.get("pictures at the start", lambda: self._task.draw_start(model))
                entries["start_figures"], notes = folder.write_figures("step-00000000", pictures)
                entries |= {"notes": [*entries.get("notes", ()), *notes]} if notes else {}
            end = {CHAIN_STEP: config.sampler.num_steps, CHAIN_SCORE: entries[config.sweep.metric]}
            # The peak is that of all settings of this process so far.
            system = {"system": {**self._system_metrics.sample(), **self._system_metrics.peak()}}
            end[SINCE_FIRST_STEP] = entries["evaluation_seconds"]
            return folder.write_report(
                {"base_step": base_step, **entries, **end, **system, "checkpoint": config.checkpoint}
            )
        finally:
            watchdog.stop()

    def _is_among_best(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is one of the best so far; of equal ones the first are."""
        sweep = self._config.sweep
        score = evaluation.scores[sweep.metric] * (1 if sweep.mode == "min" else -1)
        score = math.inf if math.isnan(score) else score
        rank = bisect.bisect_right(self._best, score)
        self._best.insert(rank, score)
        # Any finalist may turn out to be the best.
        num_drawn = max(NUM_DRAWN, sweep.finalists)
        del self._best[num_drawn:]
        return rank < num_drawn
