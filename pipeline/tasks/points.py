"""Task of points without a density, scored by their distance to data: the toy example of the paper.

Where the support has a lower dimension than space, there is no likelihood. Samples are compared to held-out data by
the sliced Wasserstein distance, along the chain as images are by FID.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from pipeline.config.scores import STANDARD_ERROR
from pipeline.data import Splits
from pipeline.data.sources.tables import toy
from pipeline.evaluation import plots
from pipeline.evaluation.standard_error import mean_standard_error, wasserstein_standard_error
from pipeline.tasks.sampled_rows import SampledRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PointScorer", "Points"]

_DIRECTIONS = 100
# Points on a known support, so dense that the nearest of them is as good as the support itself.
_SUPPORT = 20_000


class Points(SampledRows):
    """Task of points in space."""

    @property
    def title(self) -> str:
        """The distance."""
        return "sliced Wasserstein distance"

    def measure(self, label: str | None) -> str:
        """Return the distance, in the units of the data."""
        return f"{self.title} to test points, chosen by that to validation points"

    def scorer(self, splits: Splits) -> PointScorer:
        """Return the distances to the held-out points, and to the support where it is known."""
        support = None
        if self.config.data.source.kind == "toy":
            uniform = (torch.arange(_SUPPORT, dtype=torch.float64) + 0.5) / _SUPPORT
            support = toy.base(torch.special.ndtri(uniform)[:, None]).float()
        test, validation = splits.restore(splits.test), splits.restore(splits.validation)
        return PointScorer(test, validation, support, splits.restore)

    def draw(self, samples: Mapping[str, Tensor]) -> Figure:
        """Draw points in space, a panel a set, in the range of the data where these are one of the sets."""
        return plots.scatter_3d(samples, samples.get("data"))


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

    def kept_rows(self, total: int) -> Tensor:
        """Return none of the points: the features are the points themselves."""
        return torch.zeros(total, dtype=torch.bool)

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
