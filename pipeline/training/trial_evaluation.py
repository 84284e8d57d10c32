"""Evaluation of a trial's model, and the entries that it has in the trial's report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gebm import GEBM, Objective
from gebm.allocator import malloc_trim
from pipeline import config as schema
from pipeline import tasks
from pipeline.config.precision import sampling_precision
from pipeline.config.warm_up import FOUND_KERNEL
from pipeline.evaluation.base import Evaluation, EvaluationRun
from pipeline.tasks.base import TaskWorker
from pipeline.training.energy_health import EnergyHealth, measure_energy
from pipeline.training.trial_folder import TrialFolder
from pipeline.training.worker import Worker

__all__ = ["TrialEvaluation"]


class TrialEvaluation:
    """Evaluation of a trial's model on one worker.

    Args:
        config: The experiment; ``seed``.
        task: The task, on this worker.
        worker: This worker; the first one measures the energy, and writes pictures.
        objective: What the model was trained by.
        health: Judge of the energy.
    """

    def __init__(
        self,
        config: schema.Config,
        task: TaskWorker,
        worker: Worker,
        objective: Objective,
        health: EnergyHealth,
    ) -> None:
        self._config, self._task, self._worker = config, task, worker
        self._objective, self._health = objective, health

    def report(
        self,
        model: GEBM,
        base_step: int,
        folder: TrialFolder,
        name: str,
        run: EvaluationRun,
        *,
        sampler: schema.Sampler | None = None,
        is_drawn: Callable[[Evaluation], bool] = lambda evaluation: True,
    ) -> dict[str, Any]:
        """Evaluate a model, write its pictures to the trial's folder, and return the entries of the report.

        Args:
            model: The model to sample.
            base_step: Base steps that it has been trained for.
            folder: Where the pictures go.
            name: The evaluation, such as ``step-00001000``.
            run: Its progress, and what it shares with others.
            sampler: Settings of the sampler (default: those of the config).
            is_drawn: Whether an evaluation has pictures.
        """
        started = time.monotonic()
        task = self._task if sampler is None else self._task.with_sampler(sampler)
        evaluation = tasks.evaluate(self._config, task, model, run)
        # Hundreds of chains need more memory than a batch.
        malloc_trim()
        report = {**evaluation.scores, "chain": {str(step): list(point) for step, point in evaluation.chain.items()}}
        if evaluation.found_kernel:
            report[FOUND_KERNEL] = evaluation.found_kernel
        if task.label:
            report["extractor"] = task.label
        if evaluation.chain:
            config = self._config if sampler is None else replace(self._config, sampler=sampler)
            report["sampler_precision"] = sampling_precision(config, self._worker.device)
        if evaluation.sampler_path:
            report["sampler_path"] = evaluation.sampler_path
        notes, warnings = evaluation.notes, evaluation.warnings
        if self._worker.is_first:
            measures = run.shared.get("energy", lambda: self._measure_energy(model))
            report |= measures
            if measures:
                judge = self._health.judge_quality
                warnings = [*judge(measures["held_out_kale"], measures["floor_share"], base_step), *warnings]
            pictures = evaluation.pictures if is_drawn(evaluation) else {}
            report["figures"], failures = folder.write_figures(name, pictures) if pictures else ([], [])
            notes = notes + failures
        if notes:
            report["notes"] = notes
        if warnings:
            report["warnings"] = warnings
        return {**report, "evaluation_seconds": time.monotonic() - started}

    def _measure_energy(self, model: GEBM) -> dict[str, float]:
        """Return the energy's quality on held-out and on training data; nothing without held-out data."""
        if not (len(self._task.held_out) and self._objective.trains_energy):
            return {}
        return measure_energy(model, self._task.held_out, self._task.seen, self._config.seed)
