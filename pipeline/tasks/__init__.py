"""Tasks of an experiment: how its data are read, its model is scored, and the result is drawn.

Everything else of a sweep, the alternation, the checkpoints, the search, the tracker, is the same for all tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.tasks.open_store import open_data

if TYPE_CHECKING:
    from pipeline.tasks.base import Batches, Task, TaskWorker

__all__ = ["Batches", "Task", "TaskWorker", "make", "open_data"]


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
    # Each is imported on demand: torch-fidelity alone, which only images need, takes seconds.
    match config.task:
        case "images":
            from pipeline.tasks.images import Images

            return Images(config)
        case "density":
            from pipeline.tasks.density import Density

            return Density(config)
        case "points":
            from pipeline.tasks.points import Points

            return Points(config)
    raise ValueError(f"task={config.task}")
