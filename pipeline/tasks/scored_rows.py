"""Rows whose samples are scored by a function: base class of a task of one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.config.metrics import MAX_SAMPLES, Score, checked
from pipeline.config.scores import STANDARD_ERROR
from pipeline.config.tasks import NAMES, facts_of
from pipeline.data import Splits, Store
from pipeline.runtime.part_errors import refusal
from pipeline.tasks.open_store import split_store
from pipeline.tasks.sampled_rows import SampledRows

__all__ = ["ScoredRows"]

# Rows that a score is tried on, before anything starts.
_TRIED = 64


class ScoredRows(SampledRows):
    """Base class of a task over rows whose samples are compared to data by :meth:`score`.

    The score that is reported is that to the test rows. Trials are ranked by that to the validation rows,
    ``<score>_validation_gebm``, as ``like="points"`` has it. As many rows of each are compared, 10,000 at most.

    Args:
        config: The experiment.
    """

    @abstractmethod
    def score(self, samples: Tensor, data: Tensor) -> float | tuple[float, float]:
        """Return how far samples are from data, perhaps with its standard error.

        Args:
            samples: Rows of the model (N, D), float32, in the units of the table, on the CPU.
            data: Rows of the table (M, D), in the same units; M is N, or less where the table has fewer.
        """

    @property
    def title(self) -> str:
        """The score's name, in words."""
        return facts_of(self.config.task).score.replace("_", " ")

    def measure(self, label: str | None) -> str:
        """Return the score, and what it is to."""
        return f"{self.title} to test rows, chosen by that to validation rows"

    def check(self, store: Store) -> None:
        """Refuse a store that does not fit, and a score that is no finite number, or another one of the same rows.

        Raises:
            UserError: The store does not fit, and the line names the key; or the score does not, and the line names
                the plugin's file and line.
        """
        super().check(store)
        splits = split_store(self.config, store)
        scorer = self.scorer(splits)
        features = scorer.features(splits.restore(splits.train[:_TRIED]))
        once, again = (scorer.score(features, end=True) for _ in range(2))
        if once != again:
            raise refusal(NAMES.part(self.config.task), "the same rows have two scores: draw from torch alone")

    def scorer(self, splits: Splits) -> RowScorer:
        """Return what scores samples by the function."""
        test, validation = (splits.restore(rows[:MAX_SAMPLES]) for rows in (splits.test, splits.validation))
        return RowScorer(self._measure, facts_of(self.config.task).score, test, validation, splits.restore)

    def _measure(self, samples: Tensor, data: Tensor) -> Score:
        count = min(len(samples), MAX_SAMPLES)
        # It may change what it is given.
        rows = samples[:count].clone(), data[:count].clone()
        return checked(NAMES.part(self.config.task), lambda: self.score(*rows), f"of {count} samples")


class RowScorer:
    """Scores of rows by a function of samples and data.

    Args:
        measure: The function.
        primary: Name of its score.
        test: Rows for the reported score (M, D); they choose nothing.
        validation: Other rows (V, D), which trials are ranked by.
        restore: Map from the networks' units to the table's.
    """

    def __init__(
        self,
        measure: Callable[[Tensor, Tensor], Score],
        primary: str,
        test: Tensor,
        validation: Tensor,
        restore: Callable[[Tensor], Tensor],
    ) -> None:
        self.primary, self._measure, self._restore = primary, measure, restore
        self._test, self._validation = test, validation

    def show(self, samples: Tensor) -> Tensor:
        """Return rows in the units of the table."""
        return self._restore(samples.cpu())

    def features(self, shown: Tensor) -> dict[str, Tensor]:
        """Return the rows themselves."""
        return {"rows": shown}

    def kept_rows(self, total: int) -> Tensor:
        """Return none of the rows: the features are the rows themselves."""
        return torch.zeros(total, dtype=torch.bool)

    @torch.no_grad()
    def score(self, features: dict[str, Tensor], *, end: bool) -> dict[str, float]:
        """Return the score to the test rows, and at an end of the chain that to the validation rows."""
        data = {self.primary: self._test, **({f"{self.primary}_validation": self._validation} if end else {})}
        scores: dict[str, float] = {}
        for name, rows in data.items():
            value, error = self._measure(features["rows"], rows)
            scores |= {name: value, **({} if error is None else {f"{name}{STANDARD_ERROR}": error})}
        return scores
