"""Proposals of Optuna's tree-structured Parzen estimator, each of which is a point of the search space."""

from __future__ import annotations

import math
from typing import Any

import optuna

from pipeline.sweep.dimension import Choice, Dimension, Interval, WholeNumbers
from pipeline.sweep.search_space import SearchSpace

__all__ = ["Proposer"]


class Proposer:
    """Proposer of points that learns from scores; a key is suggested where its condition holds, and only there.

    Args:
        space: Search space.
        mode: ``min`` or ``max``.
        seed: Seed of the proposals.
    """

    def __init__(self, space: SearchSpace, mode: str, seed: int) -> None:
        self._space = space
        # It logs the name of each study.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed), direction="minimize" if mode == "min" else "maximize"
        )

    def learn(self, params: dict[str, Any], score: float) -> None:
        """Learn from a trial that ended before.

        Args:
            params: Its parameters, a point of the space.
            score: Its score.
        """
        # Optuna refuses a value that is beyond a bound by rounding.
        self._study.enqueue_trial(self._space.nearest(params))
        self.end(self.propose()[0], score)

    def propose(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """Return Optuna's trial, and the point that it proposes."""
        trial = self._study.ask()
        return trial, self._space.compose(lambda key: _suggest(trial, key, self._space[key]))

    def end(self, trial: optuna.Trial, score: float | None) -> None:
        """End a trial.

        Args:
            trial: From :meth:`propose`.
            score: Its score; ``None`` where it has none, from which nothing is learned.
        """
        if score is None or math.isnan(score):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, score)


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    match dimension:
        case Choice():
            return trial.suggest_categorical(key, dimension.values)
        case Interval(low, high, log):
            return trial.suggest_float(key, low, high, log=log)
        case WholeNumbers():
            low, high = dimension.extremes
            # Optuna's logarithmic ranges have no steps.
            step = 1 if dimension.log else dimension.multiple
            return dimension.nearest(trial.suggest_int(key, low, high, step=step, log=dimension.log))
        case _:
            raise TypeError(f"{key}: {type(dimension).__name__} is no dimension")
