"""Rows without a likelihood: base class of the tasks that compare a model's samples to data, along the chain."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gebm import GEBM
from gebm.freezing import frozen
from pipeline.config.temperature import describe_temperature
from pipeline.config.training_parts import make_objective
from pipeline.data import Splits
from pipeline.evaluation import plots
from pipeline.evaluation.base import Evaluation, EvaluationRun, SampleScorer
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.local_chains import start_latents
from pipeline.tasks.rows import TableTask, TableTaskWorker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SampledRows", "SampledRowsWorker"]


class SampledRows(TableTask, ABC):
    """Base class of a task over rows whose samples are scored at both ends of the chain, and at points between.

    A subclass has a :meth:`scorer`; :class:`pipeline.tasks.scored_rows.ScoredRows` makes one of a function.

    Args:
        config: The experiment.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the score that is followed along the chain, for figures."""

    @abstractmethod
    def scorer(self, splits: Splits) -> SampleScorer:
        """Return what scores samples.

        Args:
            splits: The rows, as the networks take them; ``splits.restore`` maps rows to the units of the table.
        """

    def draw(self, samples: Mapping[str, Tensor]) -> Figure:
        """Draw sets of rows next to one another, by default the marginals of their columns.

        Args:
            samples: Name of a set -> its rows (N, D), in the units of the table.
        """
        return plots.marginals(samples)

    def open(self, rank: int, world_size: int, device: torch.device) -> SampledRowsWorker:
        """Return the rows on one worker."""
        return SampledRowsWorker(self, rank, world_size, device)

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """Return base and GEBM side by side."""
        name = plots.at_temperature("GEBM", describe_temperature(self.config.sampler.beta), separator="\n")
        return {"base_and_gebm.png": plots.png(self.draw({"base": base, name: gebm}))}


class SampledRowsWorker(TableTaskWorker):
    """Task of rows whose samples are scored, on one worker.

    Args:
        task: The task.
        rank: This worker.
        world_size: Number of workers.
        device: Where batches are.
    """

    def __init__(self, task: SampledRows, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(task.config, rank, world_size, device)
        self._task, self._scorer = task, task.scorer(self.splits)

    def evaluate(self, model: GEBM, run: EvaluationRun | None = None) -> Evaluation:
        """Return the scores of base and GEBM, and along the chain, with pictures on the first worker."""
        evaluation = evaluate(model, self.config, self._scorer, run, rank=self.rank, world_size=self.world_size)
        if self.rank == 0:
            evaluation.draw = functools.partial(self._draw, model)
        return evaluation

    def draw_start(self, model: GEBM) -> dict[str, bytes]:
        """Return rows of the base, of the same latents as in each evaluation, for each of its pictures."""
        latents, _ = start_latents(model, self.config, self.world_size)
        with torch.no_grad(), frozen(model.base):
            base = self._scorer.show(model.base(latents[: self.config.evaluation.grid].to(self.device)))
        sets = {"data": self.splits.restore(self.splits.test), plots.AT_START: base}
        names = ("base_and_gebm.png", "energies.png", "log_partition.png", self._along_chain)
        return dict.fromkeys(names, plots.png(self._task.draw(sets)))

    @property
    def _along_chain(self) -> str:
        return f"{self._scorer.primary}_along_chain.png"

    def _draw(self, model: GEBM, evaluation: Evaluation) -> dict[str, bytes]:
        steps, test = sorted(evaluation.frames), self.splits.test
        temperature = describe_temperature(self.config.sampler.beta)
        name = plots.at_temperature("GEBM", temperature, separator="\n")
        sets = {
            "data": self.splits.restore(test),
            "base": evaluation.frames[steps[0]],
            name: evaluation.frames[steps[-1]],
        }
        with torch.no_grad(), frozen(model.energy):
            of_data = model.energy(test.to(self.device)).cpu()
        energies = {"data": of_data, "base": evaluation.ends["base"].energies}
        energies[plots.at_temperature("GEBM", temperature)] = evaluation.ends["gebm"].energies
        trained = make_objective(self.config.train).trains_log_partition
        partition = plots.log_partition(energies["base"], model.log_partition.item() if trained else None)
        return {
            "base_and_gebm.png": plots.png(self._task.draw(sets)),
            "energies.png": plots.png(plots.energy_histogram(energies)),
            "log_partition.png": plots.png(partition),
            self._along_chain: plots.png(plots.chain_curve(evaluation.chain, self._task.title, temperature)),
        }
