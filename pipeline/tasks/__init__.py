"""Tasks of an experiment: how its data are read, its model is scored, and the result is drawn.

Everything else of a sweep, the alternation, the checkpoints, the search, the tracker, is the same for all tasks. The
built-in ones are registered in :mod:`pipeline.config.tasks`, as those of plugins are by :data:`register`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.config import Config, monitored_metrics
from pipeline.config import tasks as registry
from pipeline.config.scores import STANDARD_ERROR
from pipeline.config.tasks import register
from pipeline.runtime.part_errors import refusal
from pipeline.tasks.open_store import open_data

if TYPE_CHECKING:
    from gebm import GEBM
    from pipeline.evaluation.base import Evaluation, EvaluationRun
    from pipeline.tasks.base import Batches, Task, TaskWorker

__all__ = ["Batches", "Task", "TaskWorker", "evaluate", "make", "open_data", "register"]


def make(config: Config) -> Task:
    """Return the task that the experiment names.

    Args:
        config: ``task``, and the keys that the task reads.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}})
        >>> make(config).measure("inception-v3-compat")
        'FID by inception-v3-compat'
    """
    return cast("Task", registry.make(config))


def evaluate(config: Config, worker: TaskWorker, model: GEBM, run: EvaluationRun | None = None) -> Evaluation:
    """Evaluate a model by its task.

    Args:
        config: The experiment.
        worker: Its task, on this worker.
        model: The model to evaluate.
        run: Its progress, and what it shares with others.

    Raises:
        UserError: It is a plugin's task, and the scores that it is registered with are not among those that it
            returns; the line names the plugin's file and line.
    """
    evaluation, part = worker.evaluate(model, run), registry.NAMES.part(config.task)
    names = (*monitored_metrics(config), config.sweep.metric)
    missing = [name for name in names if not isinstance(evaluation.scores.get(name), int | float)]
    if missing and not part.builtin:
        raise refusal(
            part,
            f"its evaluation has no score {missing[0]}, which its facts (score, ranked_by, ...) say it has; it has "
            f"{', '.join(name for name in evaluation.scores if not name.endswith(STANDARD_ERROR)) or 'none'}",
        )
    return evaluation
