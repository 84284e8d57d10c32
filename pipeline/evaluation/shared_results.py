"""Results that several evaluations of one model have in common, because they do not depend on its sampler."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

__all__ = ["SharedResults"]

_Result = TypeVar("_Result")


class SharedResults:
    """Results of a model by key, each computed once.

    They are those of one model with one set of weights, evaluated with the same config but for ``sampler``.

    Example:
        >>> shared = SharedResults()
        >>> shared.get("score", lambda: 1.5), shared.get("score", lambda: 2.5)
        (1.5, 1.5)
    """

    def __init__(self) -> None:
        self._results: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], _Result]) -> _Result:
        """Return the result of a key, computed if it is not there yet.

        Args:
            key: What the result is, and all that it depends on apart from the model and the config.
            compute: Called without arguments; where it raises, nothing is kept.
        """
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]
