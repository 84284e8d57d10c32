"""What an experiment is about: how its data are read, what its model is measured by, and how the result is drawn.

Everything else of a sweep, the alternation, the checkpoints, the search, the tracker, is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import Config
from pipeline.tasks.density import Density
from pipeline.tasks.images import Images
from pipeline.tasks.points import Points
from pipeline.tasks.protocol import Batches, Task, Work

__all__ = ["NAMES", "Batches", "Task", "Work", "make"]

NAMES: dict[str, Callable[[Config], Task]] = {"density": Density, "images": Images, "points": Points}


def make(config: Config) -> Task:
    """The task that the experiment names.

    Args:
        config: ``task``, and the keys that the task reads.

    Example:
        >>> from pipeline.config import from_dict
        >>> config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "digits"}},
        ...     "model": {"networks": "dcgan"}})
        >>> make(config).measure("inception-v3-compat")
        'FID by inception-v3-compat'
    """
    return NAMES[config.task](config)
