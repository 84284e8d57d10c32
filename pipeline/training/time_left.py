"""Time that is left of a trial: of its steps, its evaluations, and the energy's final phases."""

from __future__ import annotations

from gebm.training import Trainer
from pipeline.config import Config
from pipeline.training.progress import evaluations_left, steps_between

__all__ = ["RecentMean", "TimeLeft"]


class RecentMean:
    """Mean time of a step, over the last few reports.

    On a machine with other work, the steps between two reports may take three times as long as those before, and the
    next ones not. So the rest of a trial is estimated by an exponentially decayed mean: each report multiplies the sums
    of earlier ones by a factor below one, which leaves them the weight of five reports, or of a tenth of all if that is
    more.

    Example:
        >>> mean = RecentMean()
        >>> for seconds in (1.0, 3.0, 1.0, 3.0):
        ...     mean.add(seconds, count=10)
        >>> round(mean.seconds, 2)
        0.21
    """

    def __init__(self) -> None:
        self._seconds = self._count = 0.0
        self._reports = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add the steps since the last report.

        Args:
            seconds: How long they took together.
            count: Their number; without any nothing is added.
        """
        if count <= 0:
            return
        self._reports += 1
        kept = 1 - 1 / max(5.0, self._reports / 10)
        self._seconds = kept * self._seconds + max(0.0, seconds)
        self._count = kept * self._count + count

    @property
    def seconds(self) -> float:
        """Seconds of one step; 0 while none is known."""
        return self._seconds / self._count if self._count else 0.0


class TimeLeft:
    """Time that is left of a trial.

    Args:
        trainer: Its trainer.
        config: The experiment.
    """

    def __init__(self, trainer: Trainer, config: Config) -> None:
        self._trainer, self._config = trainer, config
        self._step, self._evaluation = RecentMean(), RecentMean()

    def add_steps(self, seconds: float, base_steps: int) -> None:
        """Add the base steps since the last report, and the energy steps before each.

        Args:
            seconds: How long they took.
            base_steps: Number of base steps.
        """
        done = self._trainer.base_step
        # A warm-up has many more energy steps than the base steps that are left, most of them.
        self._step.add(seconds, steps_between(self._trainer, done - base_steps, done))

    def add_evaluation(self, seconds: float) -> None:
        """Add an evaluation, without a final phase before it.

        Args:
            seconds: How long it took.
        """
        self._evaluation.add(seconds)

    def resume(self, report: dict[str, float]) -> None:
        """Take over what a report has measured; the first steps of one's own count many times as much.

        Args:
            report: A report with the entries of :meth:`numbers`.
        """
        for mean, key in ((self._step, "seconds_a_step"), (self._evaluation, "seconds_an_evaluation")):
            if report.get(key):
                mean.add(report[key])

    def numbers(self) -> dict[str, float]:
        """Return a report's entries: the seconds that are left, and those of a step and of an evaluation.

        An evaluation's are 0 until there was one.
        """
        train, done = self._config.train, self._trainer.base_step
        evaluations = evaluations_left(self._config, done)
        phases = evaluations if train.final_phase.before_evaluations else min(evaluations, 1)
        steps = steps_between(self._trainer, done, train.base_steps) + phases * train.final_energy_steps
        return {
            "seconds_left": steps * self._step.seconds + evaluations * self._evaluation.seconds,
            "seconds_a_step": self._step.seconds,
            "seconds_an_evaluation": self._evaluation.seconds,
        }
