"""Task of points without a density, scored by their distance to data: the toy example of the paper.

Where the support has a lower dimension than space, there is no likelihood. Samples are compared to held-out data by
the sliced Wasserstein distance, along the chain as images are by FID.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from gebm import GEBM
from gebm.freezing import frozen
from pipeline.config import Config
from pipeline.config.scores import STANDARD_ERROR
from pipeline.config.temperature import describe_temperature
from pipeline.config.training_parts import make_objective
from pipeline.data.sources.tables import toy
from pipeline.evaluation import plots
from pipeline.evaluation.base import Evaluation, EvaluationRun
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.local_chains import start_latents
from pipeline.evaluation.standard_error import mean_standard_error, wasserstein_standard_error
from pipeline.tasks.rows import TableTask, TableTaskWorker

__all__ = ["PointScorer", "Points"]

_DIRECTIONS = 100
# Pictures of an evaluation.
_SERIES = ("base_and_gebm.png", "energies.png", "log_partition.png", "distance_along_chain.png")
# Points on a known support, so dense that the nearest of them is as good as the support itself.
_SUPPORT = 20_000


class Points(TableTask):
    """Task of points in space."""

    def measure(self, label: str | None) -> str:
        """Return the distance, in the units of the data."""
        return "sliced Wasserstein distance to test points, chosen by that to validation points"

    def open(self, rank: int, world_size: int, device: torch.device) -> PointsTaskWorker:
        """Return the points on one worker."""
        return PointsTaskWorker(self._config, rank, world_size, device)

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """Return a scatter plot of base and GEBM side by side."""
        name = plots.at_temperature("GEBM", describe_temperature(self._config.sampler.beta), separator="\n")
        return {"base_and_gebm.png": plots.png(plots.scatter_3d({"base": base, name: gebm}))}


class PointScorer:
    """Scores of points, by their distance to data.

    Args:
        data: Held-out points (M, D) for the reported score; they choose nothing.
        validation: Other held-out points (V, D), which trials are ranked by.
        support: Points that cover the true support (S, D); ``None`` where it is not known.
        restore: Map from the networks' units to the data's.
    """

    primary = "distance"

    def __init__(
        self, data: Tensor, validation: Tensor, support: Tensor | None, restore: Callable[[Tensor], Tensor]
    ) -> None:
        self._data, self._validation, self._support, self._restore = data, validation, support, restore
        directions = torch.randn(_DIRECTIONS, data.shape[1], generator=torch.Generator().manual_seed(0))
        self._directions = directions / directions.norm(dim=1, keepdim=True)

    def show(self, samples: Tensor) -> Tensor:
        """Return points in the units of the data."""
        return self._restore(samples.cpu())

    def features(self, shown: Tensor) -> dict[str, Tensor]:
        """Return the points themselves."""
        return {"points": shown}

    def score(self, features: dict[str, Tensor], *, end: bool) -> dict[str, float]:
        """Return the mean 1-Wasserstein distance over fixed directions.

        At an end of the chain also that to the validation points, and the mean distance to the support. Each has its
        standard error over the draw of the points; the data are fixed.
        """
        points = features["points"]
        estimates = {"distance": self._distance(points, self._data)}
        if end:
            estimates["distance_validation"] = self._distance(points, self._validation)
        if end and self._support is not None:
            nearest = [torch.cdist(part, self._support).min(1).values for part in points.split(500)]
            off_support = torch.cat(nearest)
            estimates["off_support"] = float(off_support.mean()), mean_standard_error(off_support)
        scores = {name: value for name, (value, _) in estimates.items()}
        errors = {f"{name}{STANDARD_ERROR}": error for name, (_, error) in estimates.items() if math.isfinite(error)}
        return scores | errors

    def _distance(self, points: Tensor, data: Tensor) -> tuple[float, float]:
        """Return the mean distance over the directions, and its standard error."""
        ours, theirs = points @ self._directions.T, data @ self._directions.T
        distances = [wasserstein_distance(a, b) for a, b in zip(ours.T.numpy(), theirs.T.numpy(), strict=True)]
        return float(np.mean(distances)), wasserstein_standard_error(ours, theirs)


class PointsTaskWorker(TableTaskWorker):
    """Task of points on one worker."""

    def __init__(self, config: Config, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(config, rank, world_size, device)
        self._held_out = self._splits.restore(self._splits.test)
        support = None
        if config.data.source.kind == "toy":
            uniform = (torch.arange(_SUPPORT, dtype=torch.float64) + 0.5) / _SUPPORT
            support = toy.base(torch.special.ndtri(uniform)[:, None]).float()
        validation = self._splits.restore(self._splits.validation)
        self._scorer = PointScorer(self._held_out, validation, support, self._splits.restore)

    def evaluate(self, model: GEBM, run: EvaluationRun | None = None) -> Evaluation:
        """Return the distance of base and GEBM to the data, and along the chain, with pictures on the first worker."""
        evaluation = evaluate(model, self._config, self._scorer, run, rank=self._rank, world_size=self._world_size)
        if self._rank == 0:
            evaluation.draw = functools.partial(self._draw, model)
        return evaluation

    def draw_start(self, model: GEBM) -> dict[str, bytes]:
        """Return points of the base, of the same latents as in each evaluation, for each of its pictures."""
        latents, _ = start_latents(model, self._config, self._world_size)
        with torch.no_grad(), frozen(model.base):
            base = self._scorer.show(model.base(latents[: self._config.evaluation.grid].to(self._device)))
        clouds = {"data": self._held_out, plots.AT_START: base}
        picture = plots.png(plots.scatter_3d(clouds, self._held_out))
        return dict.fromkeys(_SERIES, picture)

    def _draw(self, model: GEBM, evaluation: Evaluation) -> dict[str, bytes]:
        steps = sorted(evaluation.frames)
        temperature = describe_temperature(self._config.sampler.beta)
        name = plots.at_temperature("GEBM", temperature, separator="\n")
        clouds = {"data": self._held_out, "base": evaluation.frames[steps[0]], name: evaluation.frames[steps[-1]]}
        measure = "sliced Wasserstein distance"
        curve = plots.chain_curve(evaluation.chain, measure, temperature)
        with torch.no_grad(), frozen(model.energy):
            of_data = model.energy(self._splits.test.to(self._device)).cpu()
        energies = {"data": of_data, "base": evaluation.ends["base"].energies}
        energies[plots.at_temperature("GEBM", temperature)] = evaluation.ends["gebm"].energies
        trained = make_objective(self._config.train).trains_log_partition
        partition = plots.log_partition(energies["base"], model.log_partition.item() if trained else None)
        return {
            "base_and_gebm.png": plots.png(plots.scatter_3d(clouds, self._held_out)),
            "energies.png": plots.png(plots.energy_histogram(energies)),
            "log_partition.png": plots.png(partition),
            "distance_along_chain.png": plots.png(curve),
        }
