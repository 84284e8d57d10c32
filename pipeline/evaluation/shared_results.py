"""Results that are computed once: by one of several workers, and for several evaluations of one model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch.distributed as dist

from pipeline.runtime.errors import UserError, one_line

__all__ = ["SharedResults", "on_first_rank"]

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


def on_first_rank(compute: Callable[[], _Result], rank: int, world_size: int) -> _Result:
    """Return a result that the first worker computes and the others receive, or raise its error on all of them.

    Args:
        compute: Called without arguments, on the first worker alone.
        rank: This worker.
        world_size: Number of workers, all of which call this.

    Example:
        >>> on_first_rank(lambda: {"fid": 1.5}, rank=0, world_size=1)
        {'fid': 1.5}
    """
    if world_size == 1:
        return compute()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = compute()
        except Exception as error:
            # The others would wait for a result for ever. An error of another kind may be one that cannot be sent.
            sent = error if isinstance(error, UserError) else RuntimeError(one_line(error))
            dist.broadcast_object_list([None, sent], src=0)
            raise
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
