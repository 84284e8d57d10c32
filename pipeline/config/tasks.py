"""Tasks: what an experiment's data are, how its model is scored, and which other keys go with it.

A task is a class or a function that takes the experiment and returns a :class:`pipeline.tasks.base.Task`. What the rest
of a run asks about a task is written where it is registered, as its facts, so that one of one's own is as good as the
built-in ones::

    @tasks.register("energy_distance", like="points", score="energy_distance")
    class EnergyDistance(ScoredRows): ...
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gebm import networks
from gebm.registry import Registry
from pipeline.config.schema import Config

__all__ = ["NAMES", "TaskFacts", "facts_of", "make", "networks_of", "networks_with_density", "register", "scores"]

_ENCODINGS = {"images": ("blocks", "images"), "rows": ("rows",)}


@dataclass(frozen=True)
class TaskFacts:
    """Facts of a task.

    Args:
        like: The task whose networks it takes, and whose facts hold where it is registered without; ``None`` for none.
        of: What a sample is, one of the ``images`` or the ``rows`` of a store.
        score: Name of the score that is monitored while a sweep runs, without the model that has it.
        better: ``down`` where less of that score is better, else ``up``.
        ranked_by: Form of the names of the scores that trials are ranked by.
        other_scores: Names of further scores that its evaluations have.
        metrics: Whether its evaluations have the scores of ``evaluation.metrics`` as well, to rank by.
        likelihood: Whether the model is scored by its likelihood, in which no sampler has a part.
        trained_energy: Whether only a model with a trained energy can be scored.
        splits: Whether the rows are those of :func:`pipeline.tasks.open_store.split_store`: whitened, and with
            validation rows, so that none are held out by ``data.held_out``.

    Example:
        >>> facts_of("points").monitored("gebm"), facts_of("points").ranked("gebm")
        ('distance_gebm', 'distance_validation_gebm')
    """

    like: str | None = None
    of: str = "images"
    score: str = ""
    better: str = "down"
    ranked_by: str = "{score}_{model}"
    other_scores: tuple[str, ...] = ()
    metrics: bool = False
    likelihood: bool = False
    trained_energy: bool = False
    splits: bool = False

    @property
    def encodings(self) -> tuple[str, ...]:
        """Encodings of the stores that it can read."""
        return _ENCODINGS[self.of]

    def monitored(self, model: str) -> str:
        """Return the name of the score that is monitored, of a model, ``base`` or ``gebm``."""
        return f"{self.score}_{model}"

    def ranked(self, model: str) -> str:
        """Return the name of the score that trials are ranked by, of a model, ``base`` or ``gebm``."""
        return self.ranked_by.format(score=self.score, model=model)


NAMES: Registry[Callable[..., Any]] = Registry(
    "task",
    given=("config",),
    facts=asdict(TaskFacts()),
    choices={
        "of": tuple(_ENCODINGS),
        "better": ("down", "up"),
        "ranked_by": ("{score}_{model}", "{score}_validation_{model}", "{score}_{model}_validation"),
    },
    inherits="like",
    has_settings=False,
)
"""The tasks by their names, which are values of ``task``; for their facts see :class:`TaskFacts`."""

register = NAMES.register
"""Register a class or a function that takes the experiment and returns a :class:`pipeline.tasks.base.Task`."""


# The modules of the built-in ones are imported where a task is made: torch-fidelity alone, which only images need,
# takes seconds.
@register("images", of="images", score="fid", metrics=True)
def _images(config: Config) -> Any:
    """Images, scored by FID along the chain."""
    return pkgutil.resolve_name("pipeline.tasks.images:Images")(config)


@register("density", of="rows", score="nll", ranked_by="{score}_{model}_validation", likelihood=True, splits=True)
def _density(config: Config) -> Any:
    """Rows, scored by likelihood."""
    return pkgutil.resolve_name("pipeline.tasks.density:Density")(config)


@register(
    "points",
    of="rows",
    score="distance",
    ranked_by="{score}_validation_{model}",
    other_scores=("off_support",),
    trained_energy=True,
    splits=True,
)
def _points(config: Config) -> Any:
    """Rows, scored by their samples' distance to data."""
    return pkgutil.resolve_name("pipeline.tasks.points:Points")(config)


def facts_of(name: str) -> TaskFacts:
    """Return the facts of a task.

    Args:
        name: One of :data:`NAMES`.

    Example:
        >>> facts_of("density").encodings, facts_of("density").likelihood
        (('rows',), True)
    """
    return TaskFacts(**NAMES.part(name).facts)


def make(config: Config) -> Any:
    """Return the task that the experiment names; :func:`pipeline.tasks.make` is the same with its type.

    Args:
        config: The experiment.
    """
    return NAMES.part(config.task).build(config=config)


def scores() -> tuple[str, ...]:
    """Return the names of the scores that the tasks have, none before one that it begins with."""
    facts = [facts_of(name) for name in NAMES]
    return tuple(sorted({name for each in facts for name in (each.score, *each.other_scores)}, reverse=True))


def networks_of(name: str) -> tuple[str, ...]:
    """Return the names of the networks that are for a task, or for one that it is like.

    Args:
        name: One of :data:`NAMES`.

    Example:
        >>> networks_of("density")
        ('gaussian', 'realnvp', 'maf', 'nsf')
    """
    kinds = set(_with_likes(name))
    return tuple(part.name for part in networks.NAMES.parts() if not kinds.isdisjoint(part.facts["tasks"]))


def networks_with_density() -> tuple[str, ...]:
    """Return the names of the networks whose bases have a density: those for a task with a likelihood."""
    likely = set(NAMES.having("likelihood", True))
    return tuple(part.name for part in networks.NAMES.parts() if not likely.isdisjoint(part.facts["tasks"]))


def _with_likes(name: str) -> Iterator[str]:
    """Yield a task, the one that it is like, and so on."""
    kind: str | None = name
    while kind is not None:
        yield kind
        kind = NAMES.part(kind).facts["like"]
