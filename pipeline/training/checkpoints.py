"""Checkpoints of a run: written whole before they have a name, the last and the best kept, resumed exactly.

A checkpoint is a folder behind any fsspec URL::

    <trial>/checkpoints/step-00001000/   its files, see pipeline.training.checkpoint_format
    <trial>/checkpoints/index.json       the names of the last and of the best checkpoint

Its files are written first and its name gets into ``index.json`` last, so a checkpoint that was cut off is never
found. A folder that the index names is never written to: a trial that repeats a base step, as in population-based
training, saves it as ``step-00001000-2``. Between evaluations checkpoints have no score, and are called
``interim-00000600``.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, cast

import torch
from pydantic import Field, FiniteFloat

from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem, write_file
from pipeline.runtime.untrusted import CHECKPOINT, parse_json
from pipeline.training.checkpoint_format import (
    FILES,
    Checkpoint,
    StrictDocument,
    encode,
    parse,
    parse_state,
    read_checkpoint,
    read_json,
)

__all__ = ["Checkpoints", "read"]

# A name that led elsewhere could have another folder read, or deleted.
_NAME = re.compile(r"(step|interim)-[0-9]{8,}(-[0-9]+)?")


class _Index(StrictDocument):
    """Content of ``index.json``: names of the checkpoints that are kept, and the best one's score."""

    last: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")] | None = None
    best: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")] | None = None
    score: FiniteFloat | None = None


class Checkpoints:
    """Checkpoints of one trial, of which the last and the best are kept.

    Args:
        url: The trial's folder, behind any fsspec URL.
        verify: Called before a checkpoint gets its name; raises where this process may not write there any more.

    Raises:
        UserError: The index cannot be read, or is damaged.

    Example:
        >>> checkpoints = Checkpoints("memory://doctest/trial")
        >>> checkpoints.last is None
        True
        >>> _ = checkpoints.save(10, model={"w": torch.ones(2)}, training={}, state={}, score=3.0)
        >>> _ = checkpoints.save(20, model={"w": torch.ones(2)}, training={}, state={}, score=5.0)
        >>> checkpoints.last, checkpoints.best
        ('memory://doctest/trial/checkpoints/step-00000020', 'memory://doctest/trial/checkpoints/step-00000010')
    """

    def __init__(self, url: str, verify: Callable[[], None] = lambda: None) -> None:
        self._verify = verify
        self.url = f"{url.rstrip('/')}/checkpoints"
        self._files, self._path = filesystem(self.url)
        self._index = _Index()
        with as_user_error(self.url):
            has_index = self._files.exists(f"{self._path}/index.json")
        if has_index:
            document = read_json(self._files, f"{self._path}/index.json")
            self._index = parse(_Index, document, f"{self.url}/index.json", "take a checkpoint's folder")

    @property
    def last(self) -> str | None:
        """The newest checkpoint's URL."""
        return self._url(self._index.last)

    @property
    def best(self) -> str | None:
        """The URL of the checkpoint with the lowest score."""
        return self._url(self._index.best)

    def _url(self, name: str | None) -> str | None:
        return f"{self.url}/{name}" if name else None

    def save(
        self,
        base_step: int,
        *,
        model: dict[str, torch.Tensor],
        training: dict[str, Any],
        state: dict[str, Any],
        score: float | None,
    ) -> str:
        """Write a checkpoint, and delete those that are neither the last nor the best, or that a killed process left.

        Args:
            base_step: Base steps done.
            model: The GEBM's ``state_dict``.
            training: Nested dicts and lists of tensors, numbers, strings and None.
            state: Anything JSON can hold.
            score: The lower the better, for example ``fid_gebm``; ``None`` for a checkpoint between two evaluations,
                and not finite where an evaluation has no score.

        Returns:
            The checkpoint's URL.
        """
        contents = encode(base_step, model, training, state, score)
        kind = "interim" if score is None else "step"
        return self._commit(f"{kind}-{base_step:08d}", contents, math.nan if score is None else score)

    def import_checkpoint(self, url: str) -> str:
        """Make another trial's checkpoint the last one here, as population-based training does.

        Args:
            url: The checkpoint's folder. Where its trial has deleted it since, that trial's newest is taken.

        Returns:
            The URL of the copy.

        Raises:
            UserError: That trial has no checkpoint.
        """
        try:
            files, path = filesystem(url)
            contents = {name: cast(bytes, files.cat_file(f"{path}/{name}")) for name in FILES}
        except FileNotFoundError:
            newest = Checkpoints(url.rstrip("/").rsplit("/checkpoints/", 1)[0]).last
            if newest in (None, url):
                raise UserError(f"no checkpoint at {url} to resume from") from None
            return self.import_checkpoint(str(newest))
        state = parse_state(parse_json(contents["state.json"], CHECKPOINT), url)
        return self._commit(f"step-{state.base_step:08d}", contents, math.nan if state.score is None else state.score)

    def _commit(self, name: str, contents: dict[str, bytes], score: float) -> str:
        """Write a checkpoint's files, name it in the index, and delete those that it supersedes."""
        index = self._index
        # The index names two at most, so one of three names is free.
        candidates = (f"{name}{suffix}" for suffix in ("", "-2", "-3"))
        name = next(candidate for candidate in candidates if candidate not in (index.last, index.best))
        for file, content in contents.items():
            write_file(f"{self.url}/{name}/{file}", content)
        changes: dict[str, Any] = {"last": name}
        # Of equal ones the first, as in the summary.
        if math.isfinite(score) and score < (math.inf if index.score is None else index.score):
            changes |= {"best": name, "score": score}
        committed = index.model_copy(update=changes)
        # The files may have taken minutes.
        self._verify()
        write_file(f"{self.url}/index.json", json.dumps(committed.model_dump(exclude_none=True)).encode())
        superseded = {index.last, index.best} | self._abandoned(name)
        self._index = committed
        for old in superseded - {committed.last, committed.best, None}:
            # The new one is there; what cannot be deleted only takes space.
            with contextlib.suppress(Exception):
                self._files.rm(f"{self._path}/{old}", recursive=True)
        return f"{self.url}/{name}"

    def _abandoned(self, name: str) -> set[str]:
        """Return the folders of this base step and earlier ones, such as those a killed process left half written.

        Later ones may be of a worker that was given up, as with a network that broke, and still writes.
        """
        try:
            entries = self._files.ls(self._path, detail=False)
        except Exception:
            return set()
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return {other for other in names if _NAME.fullmatch(other) and _base_step(other) <= _base_step(name)}


def read(url: str) -> Checkpoint:
    """Read a checkpoint.

    Args:
        url: Its folder, or a trial's folder, whose best checkpoint is then taken.

    Raises:
        UserError: There is none, or it is damaged.
    """
    files, path = filesystem(url)
    with as_user_error(url):
        is_checkpoint = files.exists(f"{path}/state.json")
    if not is_checkpoint:
        return read(_best_of_trial(url))
    return read_checkpoint(url)


def _best_of_trial(url: str) -> str:
    """Return the URL of the best checkpoint of a trial, or the last where none has a score.

    Raises:
        UserError: There is none.
    """
    for trial in (url, url.rstrip("/").removesuffix("/checkpoints")):
        checkpoints = Checkpoints(trial)
        best = checkpoints.best or checkpoints.last
        if best:
            return best
    files, path = filesystem(url)
    with as_user_error(url):
        is_sweep = files.exists(f"{path}/summary.json")
    if is_sweep:
        raise UserError(f"{url} is a sweep: give one of its trials, such as {url.rstrip('/')}/trials/000")
    raise UserError(f"no checkpoint at {url}: give the folder that holds state.json, or a trial's folder")


def _base_step(name: str) -> int:
    return int(name.split("-")[1])
