"""Batches of a trial that may be stopped at each of them, so that a stop waits for one energy step at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor

from pipeline import tasks
from pipeline.data import Position

__all__ = ["StoppableBatches"]


class StoppableBatches:
    """Batches that check before each one whether the sweep has stopped the trial.

    A base step may have a hundred energy steps before it. The process that is to take the next trial waits for all of
    them otherwise.

    Args:
        batches: The batches.
        require_running: Raises where the sweep has stopped the trial.
    """

    def __init__(self, batches: tasks.Batches, require_running: Callable[[], None]) -> None:
        self._batches, self._require_running = batches, require_running

    @property
    def position(self) -> Position:
        """Position after the last batch that was taken."""
        return self._batches.position

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages on what the batches have skipped."""
        return self._batches.notes

    @property
    def bad_shards(self) -> int:
        """Number of shards skipped so far."""
        return self._batches.bad_shards

    def __next__(self) -> Tensor:
        """Return the next batch.

        Raises:
            Stopped: The sweep has stopped the trial.
        """
        self._require_running()
        return next(self._batches)

    def __iter__(self) -> Self:
        return self
